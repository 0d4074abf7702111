"""Giving up items at every stage: what they hold comes back, and the counters say where they were."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from mpc_load_codecs import BATCHES
from mpc_test_codecs import GATES, Gate
from raw_wire import compress_messages, compress_one, details, features, talk

from mpcompress.codec import CodingParams
from mpcompress.registry import CodecSpec
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server import messages, operations
from mpcompress_server.calls import CompressCall, begin_call
from mpcompress_server.dropping import DroppedError

PLUGINS = ("mpc_test_codecs", "mpc_load_codecs")
GATED = {"id": "store", "family": "test_staged", "max_batch": 4, "options": {"first": "first", "second": "second"}}
# Long enough for an item to reach its stage on a busy machine.
SHORT = Duration(nanos=700_000_000)


@pytest.fixture
def gates():
    GATES["first"], GATES["second"] = Gate(), Gate()
    yield GATES["first"], GATES["second"]
    for name in ("first", "second"):
        GATES[name].open.set()


async def _arrived(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)


async def _settled(server) -> None:
    while server.servicer.budget.used or server.servicer.budget.items:
        await asyncio.sleep(0.001)


def _cancel(item: int) -> pb.CompressRequest:
    return pb.CompressRequest(cancel=pb.CancelItem(item_id=item))


async def _reach(call, stage: str, gates, **fields) -> None:
    """Sends item 1 and waits until it is at a stage; for "queued" item 9 is before it."""
    if stage == "queued":
        await call.write(compress_messages(9, features(2))[0])
        await _arrived(gates[0])
    messages = compress_messages(1, features(5), chunk=40, **fields)
    for message in messages[:2] if stage == "receiving" else messages:
        await call.write(message)
    if stage == "running":
        await _arrived(gates[0])


@pytest.mark.parametrize("stage", ["receiving", "queued", "running"])
@pytest.mark.parametrize("cause", ["item", "deadline", "call"])
async def test_every_cause_at_every_stage(start_server, connect, gates, cause, stage):
    server = await start_server([GATED], plugins=PLUGINS)
    call = pb_grpc.CompressionServiceStub(connect(server)).Compress()
    await _reach(call, stage, gates, want_progress=True, **({"timeout": SHORT} if cause == "deadline" else {}))
    if cause == "call":
        reached = pb.ItemProgress.STAGE_ACCEPTED if stage == "receiving" else pb.ItemProgress.STAGE_QUEUED
        while (await call.read()).progress.stage != reached:
            pass
        call.cancel()
    else:
        if cause == "item":
            await call.write(_cancel(1))
        while (response := await call.read()).WhichOneof("event") == "progress":
            pass
        wanted = "ITEM_CANCELLED" if cause == "item" else "ITEM_TIMEOUT"
        assert (response.item_id, details(response.error)["reason"]) == (1, wanted)
    async with asyncio.timeout(30):
        while not server.counters.cancelled[cause, stage]:
            await asyncio.sleep(0.001)
    for gate in gates:
        gate.open.set()
    await _settled(server)
    if stage == "running":
        assert server.counters.dropped == {"store": 1}
    assert (await compress_one(connect(server), features(6))).payload == features(6).tobytes()


@pytest.mark.parametrize(
    ("stage", "module", "name"), [("checking", operations, "shaped"), ("answering", messages, "report_message")]
)
async def test_large_items_can_be_given_up_off_the_event_loop_too(
    start_server, connect, monkeypatch, stage, module, name
):
    """What is done to their bytes before and after the codec is done in a thread, which is held here."""
    gate, original = Gate(), getattr(module, name)

    def held(*arguments):
        gate.pass_through()
        return original(*arguments)

    server = await start_server([{"id": "store", "family": "test_bytes"}])
    monkeypatch.setattr(module, name, held)
    call = pb_grpc.CompressionServiceStub(connect(server)).Compress()
    for message in compress_messages(1, features(300_000)):
        await call.write(message)
    await _arrived(gate)
    await call.write(_cancel(1))
    assert details((await call.read()).error)["reason"] == "ITEM_CANCELLED"
    assert server.counters.cancelled == {("item", stage): 1}
    assert server.servicer.budget.items == 1  # its memory is still in use
    gate.open.set()
    await _settled(server)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_a_batch_drops_the_second_stage_of_its_cancelled_members_only(start_server, connect, gates):
    first, second = gates
    server = await start_server([{**GATED, "max_delay_ms": 60_000}], plugins=PLUGINS)
    BATCHES.clear()
    call = pb_grpc.CompressionServiceStub(connect(server)).Compress()
    for item in range(4):
        await call.write(compress_messages(item, features(5))[0])
    await _arrived(first)
    for item in (1, 2):
        await call.write(_cancel(item))
        assert details((await call.read()).error)["reason"] == "ITEM_CANCELLED"
    for gate in gates:
        gate.open.set()
    assert {(await call.read()).item_id, (await call.read()).item_id} == {0, 3}
    await call.done_writing()
    await _settled(server)
    assert BATCHES == [4]
    assert [second.arrived.acquire(blocking=False) for _ in range(3)] == [True, True, False]
    assert server.counters.dropped == {"store": 2}


async def test_a_worker_process_drops_cancelled_members_too(start_server, connect, gates):
    """The gates of this process do not hold a worker: what is cancelled while it runs depends on who is faster."""
    server = await start_server([{"id": "store", "family": "test_staged", "isolation": "process"}], plugins=PLUGINS)
    requests = []
    for item in range(40):
        requests += [*compress_messages(item, features(50 + item)), _cancel(item)]
    got = await talk(connect(server), [*requests, *compress_messages(99, features(7))])
    assert got[99].payload == features(7).tobytes()
    for item in range(40):
        assert got[item].error is not None or got[item].payload == features(50 + item).tobytes()
    await _settled(server)


def test_dropped_items_are_known_in_every_stage():
    from mpc_load_codecs import StagedCodec

    codec = StagedCodec(CodecSpec(id="store", family="test_staged"))
    BATCHES.clear()
    call = CompressCall(inputs=[{"h": features(4)}] * 3, params=[CodingParams()] * 3)
    call.dropped.drop(0)
    finish = begin_call(codec, call)
    call.dropped.drop(2)
    outcomes = finish().outcomes
    assert BATCHES == [2]
    assert [isinstance(outcome, DroppedError) for outcome in outcomes] == [True, False, True]


async def test_a_waiting_header_and_unread_results_are_counted(start_server, connect, gates):
    server = await start_server([GATED], plugins=PLUGINS, limits={"max_inflight_items": 1})
    call = pb_grpc.CompressionServiceStub(connect(server)).Compress()
    for item in (1, 2):
        await call.write(compress_messages(item, features(5))[0])
    while not server.servicer.budget.waiting:
        await asyncio.sleep(0.001)
    call.cancel()
    while not server.counters.cancelled["call", "reserving"]:
        await asyncio.sleep(0.001)
    assert server.counters.cancelled["call", "running"] == 1
    for gate in gates:
        gate.open.set()
    await _settled(server)


async def test_results_that_nobody_reads_are_counted(start_server, connect):
    server = await start_server([{"id": "store", "family": "test_bytes"}])
    call = pb_grpc.CompressionServiceStub(connect(server)).Compress()
    for item in range(8):
        for message in compress_messages(item, features(100_000)):
            await call.write(message)
    while server.counters.items["compress", "ok"] < 8:
        await asyncio.sleep(0.001)
    call.cancel()
    await _settled(server)
    assert server.counters.cancelled["call", "writing"] > 0
