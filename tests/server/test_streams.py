"""Whole streams: their own errors, flow control, cancelling, timeouts, and clients that behave badly or vanish."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from mpc_test_codecs import GATES, Gate
from raw_wire import (
    CODE,
    call_status,
    compress_messages,
    compress_one,
    decompress_messages,
    details,
    features,
    sort_out,
    talk,
)

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

GATED = {"id": "store", "family": "test_bytes", "options": {"gate": "g"}}
SMALL_ROOM = {"max_item_bytes": 1 << 20, "max_inflight_bytes": 2 << 20}


@pytest.fixture
def gate():
    GATES["g"] = Gate()
    yield GATES["g"]
    GATES["g"].open.set()


async def _arrived(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)


async def _settled(server) -> None:
    """Waits until nothing is reserved any more: for as long as the test runner lets it."""
    while server.servicer.budget.used:
        await asyncio.sleep(0.001)


def _stream(channel, method="Compress"):
    return getattr(pb_grpc.CompressionServiceStub(channel), method)()


def _header(item_id, shape=(4,), **fields):
    spec = pb.TensorSpec(name="h", dtype=pb.DATA_TYPE_FLOAT32, shape=shape)
    return pb.CompressRequest(header=pb.CompressHeader(item_id=item_id, codec_id="store", tensors=[spec], **fields))


def _chunk(item_id, data=b"1234", offset=0):
    return pb.CompressRequest(chunk=pb.TensorChunk(item_id=item_id, offset=offset, data=data))


def _cancel(item_id):
    return pb.CompressRequest(cancel=pb.CancelItem(item_id=item_id))


@pytest.mark.parametrize(
    "requests",
    [
        [pb.CompressRequest()],
        [_header(1), _header(1)],
        [_chunk(1)],
        [_header(1), _chunk(2)],
        [*compress_messages(1, features(4)), _chunk(1)],  # an extra chunk
        [_header(1), _chunk(1, b"1" * 16), _chunk(1, offset=16)],
    ],
    ids=["empty message", "id twice", "chunk of nothing", "chunk of another", "chunk after inline", "chunk too many"],
)
async def test_nonsense_ends_the_stream_and_nothing_else(start_server, connect, requests):
    server = await start_server()
    channel = connect(server)
    other = _stream(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk(channel, requests)
    status = call_status(caught.value)
    assert (caught.value.code(), status["code"]) == (CODE.INVALID_ARGUMENT, CODE.INVALID_ARGUMENT)
    assert status["reason"] == "PROTOCOL_VIOLATION"
    assert status["fields"]
    await other.write(compress_messages(1, features(4))[0])
    assert (await other.read()).result.inline_payload == features(4).tobytes()
    other.cancel()
    await _settled(server)


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0a\x7f", bytes(5 << 20)], ids=["garbage", "cut off", "5 MiB"])
async def test_messages_that_are_none(start_server, connect, data):
    channel = connect(await start_server())
    call = channel.stream_stream(
        "/mpcompress.v1.CompressionService/Compress", response_deserializer=pb.CompressResponse.FromString
    )([data])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [response async for response in call]
    assert call_status(caught.value)["code"] == CODE.INVALID_ARGUMENT


async def test_late_chunks_of_refused_failed_and_cancelled_items_are_dropped(start_server, connect):
    server = await start_server(limits=SMALL_ROOM)
    requests = [
        *[_header(1, (0,)), _chunk(1), _chunk(1)],  # malformed
        *[_header(2, (1 << 20,)), _chunk(2), _chunk(2)],  # too large
        *[_header(3), _chunk(3, offset=99), _chunk(3, offset=4)],  # failed
        *[_header(4), _chunk(4), _cancel(4), _chunk(4, offset=4)],
        *[_header(5), _header(6), _chunk(5), _chunk(6, b"6" * 16)],  # given up for another
        *compress_messages(1, features(3)),  # an id is free again
    ]
    channel = connect(server)
    events = [response async for response in pb_grpc.CompressionServiceStub(channel).Compress(requests)]
    answers = sort_out(events[1:])
    assert details(events[0].error)["code"] == CODE.INVALID_ARGUMENT
    assert details(answers[2].error)["code"] == CODE.RESOURCE_EXHAUSTED
    assert details(answers[3].error)["code"] == CODE.INVALID_ARGUMENT
    assert details(answers[4].error)["code"] == CODE.CANCELLED
    assert details(answers[5].error)["reason"] == "INCOMPLETE_ITEM"
    assert answers[6].payload == b"6" * 16
    assert answers[1].payload == features(3).tobytes()
    assert server.servicer.budget.used == 0


async def test_everything_is_written_before_anything_is_read(start_server, connect):
    """60 MiB in, 60 MiB out, nobody reads: gRPC's own buffers are far smaller than either."""
    limits = {"max_item_bytes": 8 << 20, "max_inflight_bytes": 128 << 20, "reservation_timeout_s": 30.0}
    server = await start_server(limits=limits)
    call = _stream(connect(server))
    h = features(32 * 1024)
    for item in range(60):
        for message in compress_messages(item, h):
            await call.write(message)
    await call.done_writing()
    answers = sort_out([response async for response in call])
    assert len(answers) == 60
    assert all(got.payload == h.tobytes() for got in answers.values())
    await _settled(server)


async def test_who_does_not_read_is_refused_and_still_gets_every_answer(start_server, connect):
    server = await start_server(limits={**SMALL_ROOM, "reservation_timeout_s": 0.05})
    call = _stream(connect(server))
    h = features(20_000)
    for item in range(30):
        for message in compress_messages(item, h):
            await call.write(message)
    await call.done_writing()
    answers = sort_out([response async for response in call])
    assert len(answers) == 30
    refused = [details(got.error) for got in answers.values() if got.error]
    assert refused
    assert all(got.payload == h.tobytes() for got in answers.values() if not got.error)
    for error in refused:
        assert (error["code"], error["reason"]) == (CODE.RESOURCE_EXHAUSTED, "NO_ROOM")
        assert "RetryInfo" in error["kinds"]
    await _settled(server)


async def test_unread_errors_have_a_bound(start_server, connect, logs):
    server = await start_server(limits={"max_unread_answers": 50})
    call = _stream(connect(server))
    item, server_failed = 0, False
    while not server_failed:  # gRPC itself buffers thousands of small answers first
        for _ in range(1000):
            item += 1
            await call.write(_header(item, (0,)))
        server_failed = any(record.get("reason") == "UNREAD_ANSWERS" for record in logs)
    await call.done_writing()
    answers = 0
    with pytest.raises(grpc.aio.AioRpcError) as caught:  # noqa: PT012 - after the answers that were there
        async for response in call:
            assert response.WhichOneof("event") == "error"
            answers += 1
    assert call_status(caught.value)["reason"] == "UNREAD_ANSWERS"
    assert 50 <= answers < item
    await _settled(server)


async def test_items_of_a_stream_have_a_bound(start_server, connect, gate):
    server = await start_server([GATED], limits={"max_items_per_stream": 2, "reservation_timeout_s": 0.05})
    call = _stream(connect(server))
    for item in range(3):
        await call.write(compress_messages(item, features(1 + item))[0])
    refused = await call.read()
    assert refused.item_id == 2
    assert details(refused.error)["reason"] == "NO_ROOM"
    gate.open.set()
    assert {(await call.read()).item_id, (await call.read()).item_id} == {0, 1}
    await call.write(compress_messages(3, features(4))[0])
    assert (await call.read()).result.inline_payload == features(4).tobytes()


async def test_a_waiting_reservation_is_served_when_room_comes(start_server, connect, gate):
    server = await start_server([GATED], limits={**SMALL_ROOM, "reservation_timeout_s": 60.0})
    channel = connect(server)
    h = features(20_000)  # two of these do not fit
    first = asyncio.create_task(compress_one(channel, h))
    await _arrived(gate)
    second = asyncio.create_task(compress_one(channel, h))
    while not server.servicer.budget.waiting:
        await asyncio.sleep(0.001)
    gate.open.set()
    for task in (first, second):
        assert (await task).payload == h.tobytes()
    await _settled(server)


@pytest.mark.parametrize("where", ["collecting", "queued", "running"])
async def test_cancel_item(start_server, connect, gate, where):
    server = await start_server([GATED])
    call = _stream(connect(server))
    if where == "queued":
        await call.write(compress_messages(9, features(2))[0])
        await _arrived(gate)
    for message in compress_messages(1, features(3), chunk=40)[: 2 if where == "collecting" else None]:
        await call.write(message)
    if where == "running":
        await _arrived(gate)
    await call.write(_cancel(1))
    await call.write(_cancel(77))  # never announced: nothing happens
    response = await call.read()
    assert response.item_id == 1
    assert details(response.error)["reason"] == "ITEM_CANCELLED"
    gate.open.set()
    await call.write(compress_messages(2, features(4))[0])
    answers = {(await call.read()).item_id for _ in range(2 if where == "queued" else 1)}
    assert answers == ({9, 2} if where == "queued" else {2})
    await _settled(server)


@pytest.mark.parametrize("where", ["collecting", "queued", "running"])
async def test_an_item_has_a_timeout_of_its_own(start_server, connect, gate, where):
    server = await start_server([GATED])
    call = _stream(connect(server))
    timeout = Duration(nanos=50_000_000)
    if where == "queued":
        await call.write(compress_messages(9, features(2))[0])
        await _arrived(gate)
    if where == "collecting":
        await call.write(_header(1, timeout=timeout))
    else:
        await call.write(compress_messages(1, features(3), timeout=timeout)[0])
    response = await call.read()
    assert response.item_id == 1
    assert details(response.error)["code"] == CODE.DEADLINE_EXCEEDED
    gate.open.set()
    await call.write(compress_messages(2, features(4))[0])
    answers = {(await call.read()).item_id for _ in range(2 if where == "queued" else 1)}
    assert 2 in answers
    await _settled(server)


async def test_the_server_has_a_timeout_for_items_without_one(start_server, connect):
    server = await start_server(limits={"default_timeout_s": 0.05})
    call = _stream(connect(server))
    await call.write(_header(1))
    assert details((await call.read()).error)["reason"] == "ITEM_TIMEOUT"


@pytest.mark.parametrize("where", ["collecting", "running", "waiting", "answered"])
async def test_a_client_that_vanishes_leaves_nothing(start_server, connect, gate, where):
    limits = {**SMALL_ROOM, "reservation_timeout_s": 60.0}
    server = await start_server([GATED], limits=limits)
    call = _stream(connect(server))
    budget = server.servicer.budget
    h = features(20_000)
    if where == "collecting":
        await call.write(compress_messages(1, h, chunk=1000)[0])
        while not budget.used:
            await asyncio.sleep(0.001)
    else:
        await call.write(compress_messages(1, h)[0])
        await _arrived(gate)
    if where == "waiting":
        await call.write(compress_messages(2, h)[0])
        while not budget.waiting:
            await asyncio.sleep(0.001)
    if where == "answered":
        gate.open.set()
        while budget.used > h.nbytes + 10_000:  # shrunk to its result, which nobody reads
            await asyncio.sleep(0.001)
    call.cancel()
    gate.open.set()
    await _settled(server)
    assert not budget.waiting
    assert (await compress_one(connect(server), features(3))).error is None


async def test_the_deadline_of_the_call_ends_everything(start_server, connect, gate):
    server = await start_server([GATED])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk(connect(server), compress_messages(1, features(3)), timeout=0.2)
    assert caught.value.code() == CODE.DEADLINE_EXCEEDED
    gate.open.set()
    await _settled(server)


async def test_answers_come_as_items_finish(start_server, connect, gate):
    server = await start_server([GATED, {"id": "quick", "family": "test_bytes"}])
    call = _stream(connect(server))
    await call.write(compress_messages(1, features(3))[0])
    await call.write(compress_messages(2, features(4), codec="quick")[0])
    assert (await call.read()).item_id == 2
    gate.open.set()
    assert (await call.read()).item_id == 1


async def test_duplicate_ids_in_decompress(start_server, connect, gate):
    server = await start_server([GATED])
    channel = connect(server)
    gate.open.set()
    got = await compress_one(channel, features(3))
    gate.open.clear()
    messages = decompress_messages(1, got.result.unit, got.payload)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await talk(channel, messages * 2, "Decompress")
    assert call_status(caught.value)["fields"] == ["header.item_id"]
    gate.open.set()
    await _settled(server)
