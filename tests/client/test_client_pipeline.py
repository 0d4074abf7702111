"""Many items over one stream: order, bounds, both sides slow, streams that break, and no thread left behind."""

from __future__ import annotations

import threading
from itertools import count

import grpc
import numpy as np
import pytest
from conftest import FINAL
from scripted_server import answer, items, refuse, status, store

from mpcompress_client import (
    CancelledError,
    CodedUnit,
    CompressionClient,
    DeadlineError,
    InvalidRequestError,
    MPCompressError,
    ServerError,
    ServerUnavailableError,
)
from mpcompress_client import ledger as ledger_module
from mpcompress_proto.tensors import pieces
from mpcompress_proto.v1 import compression_pb2 as pb

pytestmark = pytest.mark.usefixtures("no_thread_leak")
CODE = grpc.StatusCode
PATIENCE_S = 30


def numbered(number: int, elements: int = 4) -> np.ndarray:
    return np.full(elements, number, np.int32)


def number_of(unit) -> int:
    assert isinstance(unit, CodedUnit), unit
    return int(np.frombuffer(unit.payload, np.int32)[0])


# -------------------------------------------------------------------------------------- against the real server


def test_results_come_in_order_and_equal_single_calls(client, final):
    units = list(client.compress_many((final[i % 4] for i in range(40)), codec=FINAL, qp=30))
    singles = [client.compress(h, codec=FINAL, qp=30) for h in final]
    assert units == [singles[i % 4] for i in range(40)]
    tensors = list(client.decompress_many(iter(units), dtype="float32"))
    for index, tensor in enumerate(tensors):
        np.testing.assert_array_equal(tensor, client.decompress(singles[index % 4], dtype="float32"))


def test_a_producer_may_wait_for_results(client, final):
    """Item n + 1 depends on the result of item n: only a client that reads while it writes gets through."""
    queue: list[np.ndarray] = [final[0]]
    more = threading.Condition()

    def feedback():
        for _ in range(5):
            with more:
                assert more.wait_for(lambda: queue, PATIENCE_S)
                yield queue.pop()

    units = client.compress_many(feedback(), codec=FINAL, qp=24)
    for unit in units:
        with more:
            queue.append(client.decompress(unit))
            more.notify_all()


def test_look_ahead_is_bounded_by_items(client, final):
    pulled = count()
    taken = 0
    latest = 0

    def producer():
        nonlocal latest
        for _ in range(30):
            latest = next(pulled) + 1
            assert latest - taken <= 5 + 1  # the one being handed out has left its slot
            yield final[0]

    for _ in client.compress_many(producer(), codec=FINAL, qp=40, look_ahead=5):
        taken += 1
    assert (taken, latest) == (30, 30)


def test_look_ahead_is_bounded_by_bytes(client, final):
    ahead = []
    taken = 0

    def producer():
        for number in range(12):
            ahead.append(number + 1 - taken)
            yield final[0].astype(np.float32)

    limit = 2 * final[0].size * 4
    for _ in client.compress_many(producer(), codec=FINAL, qp=40, look_ahead=100, look_ahead_bytes=limit):
        taken += 1
    assert taken == 12
    assert max(ahead) <= 3 + 1


def test_large_items_both_ways(client, final):
    large = np.concatenate([final] * 3).astype(np.float32)
    units = list(client.compress_many((large for _ in range(5)), codec=FINAL, qp=24))
    tensors = list(client.decompress_many(units))
    assert all(np.array_equal(tensor, tensors[0]) for tensor in tensors)
    assert tensors[0].shape == large.shape


def test_no_items(client):
    assert list(client.compress_many([], codec=FINAL)) == []
    assert list(client.decompress_many(iter(()), errors="return")) == []


def test_what_the_producer_raises_comes_after_the_results_before_it(client, final):
    def producer():
        yield final[0]
        yield final[1]
        raise KeyError("camera")

    results = client.compress_many(producer(), codec=FINAL)
    assert isinstance(next(results), CodedUnit)
    assert isinstance(next(results), CodedUnit)
    with pytest.raises(KeyError, match="camera"):
        next(results)


def test_an_abandoned_iterator_stops_pulling(client, final):
    pulled = []

    def producer():
        for number in count():
            pulled.append(number)
            yield final[0]

    results = client.compress_many(producer(), codec=FINAL, look_ahead=4)
    next(results)
    results.close()
    seen = len(pulled)
    assert seen <= 6
    dropped = client.compress_many(producer(), codec=FINAL, look_ahead=4)
    next(dropped)
    del dropped
    assert len(pulled) <= seen + 6


def test_nothing_happens_before_the_first_result_is_asked_for(client):
    def producer():
        raise AssertionError("pulled")
        yield

    client.compress_many(producer(), codec=FINAL)


# ------------------------------------------------------------------------------------- against a scripted server


def test_answers_out_of_order_are_put_in_order(scripted):
    def backwards(requests, context):
        for header, data in reversed(list(items(requests))):
            yield from answer(header, data, chunk=3)

    with CompressionClient(scripted(compress=backwards)) as client:
        units = client.compress_many((numbered(i) for i in range(9)), codec="x", look_ahead=10)
        assert [number_of(unit) for unit in units] == list(range(9))


def test_progress_and_events_of_the_stream_are_no_results(scripted):
    def chatty(requests, context):
        for header, data in items(requests):
            yield pb.CompressResponse(item_id=header.item_id, progress=pb.ItemProgress(stage=1))
            yield pb.CompressResponse(item_id=999, progress=pb.ItemProgress(stage=1))
            yield from answer(header, data)
            yield from answer(header, data)  # twice: the second is nobody's

    with CompressionClient(scripted(compress=chatty)) as client:
        assert [number_of(u) for u in client.compress_many(map(numbered, range(5)), codec="x")] == list(range(5))
        assert number_of(client.compress(numbered(7), codec="x")) == 7


@pytest.mark.parametrize("errors", ["raise", "return"])
def test_a_stream_that_breaks_fails_what_it_has_not_answered(scripted, errors):
    """Without retries: the first stream answers two of four items and breaks; those after them go over a second."""
    streams = count()

    def breaks_once(requests, context):
        first = next(streams) == 0
        for number, (header, data) in enumerate(items(requests)):
            if first and number == 3:
                context.abort(CODE.UNAVAILABLE, "gone")
            if not first or number < 2:
                yield from answer(header, data)

    with CompressionClient(scripted(compress=breaks_once), retry=None) as client:
        results = client.compress_many(map(numbered, range(8)), codec="x", look_ahead=4, errors=errors)
        if errors == "raise":
            assert [number_of(next(results)) for _ in range(2)] == [0, 1]
            with pytest.raises(ServerUnavailableError, match="gone"):
                next(results)
            return
        kinds = list(results)
    assert len(kinds) == 8
    failed = [index for index, result in enumerate(kinds) if isinstance(result, MPCompressError)]
    assert failed[:2] == [2, 3]
    assert failed == list(range(2, 2 + len(failed)))
    assert len(failed) <= 4  # never more than were ahead
    assert all(isinstance(kinds[index], ServerUnavailableError) for index in failed)
    assert [number_of(kinds[index]) for index in range(8) if index not in failed] == [
        index for index in range(8) if index not in failed
    ]


def test_a_server_that_is_not_there_fails_every_item_once():
    with CompressionClient("127.0.0.1:1") as client:
        results = list(client.compress_many(map(numbered, range(5)), codec="x", errors="return"))
        assert [type(result) for result in results] == [ServerUnavailableError] * 5
        with pytest.raises(ServerUnavailableError):
            next(client.compress_many(map(numbered, range(5)), codec="x"))


def test_a_stream_that_ends_too_early_is_an_error(scripted):
    def answers_one(requests, context):
        header, data = next(items(requests))
        yield from answer(header, data)

    with CompressionClient(scripted(compress=answers_one)) as client:
        results = list(client.compress_many(map(numbered, range(3)), codec="x", look_ahead=3, errors="return"))
        assert number_of(results[0]) == 0
        assert len(results) == 3
    mute = scripted(compress=lambda requests, context: [])
    with CompressionClient(mute) as client, pytest.raises(ServerError, match="without"):
        client.compress(numbered(1), codec="x")


def test_a_draining_server_gets_no_new_items(scripted):
    """Each stream takes one item, drains and finishes; the client opens as many as it needs and loses nothing."""
    streams = []

    def drains(requests, context):
        streams.append(0)
        for header, data in items(requests):
            streams[-1] += 1
            yield pb.CompressResponse(draining=pb.Draining())
            yield from answer(header, data)

    with CompressionClient(scripted(compress=drains)) as client:
        units = client.compress_many(map(numbered, range(6)), codec="x", look_ahead=1)
        assert [number_of(unit) for unit in units] == list(range(6))
    assert sum(streams) == 6
    assert max(streams) == 1


def test_a_server_that_never_answers_runs_into_the_deadline(silent, monkeypatch):
    monkeypatch.setattr(ledger_module, "GRACE_S", 0.05)

    with CompressionClient(silent, timeout_s=0.2) as client:
        results = list(client.compress_many(map(numbered, range(3)), codec="x", errors="return"))
        assert {type(result) for result in results} == {DeadlineError}
        assert len(results) == 3
        with pytest.raises(DeadlineError):
            client.compress(numbered(0), codec="x")


def test_an_item_refused_early_is_not_sent_to_its_end(scripted):
    """The rest of a refused item would only be dropped: it stops, and the next item follows."""
    received = []

    def refuses_headers(requests, context):
        for request in requests:
            received.append(request.WhichOneof("message"))
            if request.WhichOneof("message") == "header" and request.header.inline_data:
                yield from answer(request.header, request.header.inline_data)
            elif request.WhichOneof("message") == "header":
                yield refuse(request.header.item_id, status(CODE.RESOURCE_EXHAUSTED, "no room"))

    large = np.zeros(64 << 18, np.int32)  # 64 MiB
    with CompressionClient(scripted(compress=refuses_headers)) as client:
        results = list(client.compress_many([large, numbered(1)], codec="x", errors="return"))
    assert "no room" in str(results[0])
    assert number_of(results[1]) == 1
    assert received[0] == "header"
    assert received[-1] == "header"
    assert received.count("chunk") < 64


def test_one_item_larger_than_the_look_ahead(scripted):
    def stores(requests, context):
        for header, _ in items(requests):
            yield from answer(header, b"\x05\0\0\0")

    with CompressionClient(scripted(compress=stores)) as client:
        assert number_of(client.compress(np.zeros(17 << 20, np.int32), codec="x")) == 5


def test_closing_the_client_cancels_its_streams(scripted):
    def waits(requests, context):
        for header, data in items(requests):
            yield from answer(header, data)
            if header.item_id == 2:
                context.abort(CODE.CANCELLED, "x") if ended.wait(PATIENCE_S) else None

    ended = threading.Event()
    client = CompressionClient(scripted(compress=waits))
    pulled = threading.Event()

    def producer():
        for number in count():
            if number == 3:
                pulled.set()  # so number 2 has its place on the stream
            yield numbered(number)

    results = client.compress_many(producer(), codec="x", errors="return", look_ahead=4)
    assert [number_of(next(results)) for _ in range(2)] == [0, 1]
    assert pulled.wait(PATIENCE_S)
    client.close()
    assert isinstance(next(results), CancelledError)
    ended.set()
    with pytest.raises(InvalidRequestError, match="closed"):
        all(isinstance(result, CancelledError) for result in results)


ANSWERS = {
    "chunk first": lambda h: [pb.CompressResponse(item_id=h.item_id, chunk=pb.PayloadChunk(data=b"x"))],
    "nothing set": lambda h: [pb.CompressResponse(item_id=h.item_id)],
    "no unit": lambda h: [pb.CompressResponse(item_id=h.item_id, result=pb.CompressedItem())],
    "immense payload": lambda h: [_result(h, payload_bytes=1 << 50)],
    "payload too short": lambda h: [_result(h, b"abc", payload_bytes=4)],
    "another checksum": lambda h: [_result(h, b"abc", payload_crc32=5)],
    "two results": lambda h: [_result(h, payload_bytes=3), _result(h, payload_bytes=3)],
    "a gap": lambda h: [
        _result(h, payload_bytes=3),
        pb.CompressResponse(item_id=h.item_id, chunk=pb.PayloadChunk(offset=1, data=b"x")),
    ],
}


def _result(header: pb.CompressHeader, payload: bytes = b"", **fields) -> pb.CompressResponse:
    (response,) = answer(header, payload)
    for name, value in fields.items():
        setattr(response.result.unit, name, value)
    return response


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_break_the_contract(scripted, name):
    def broken(requests, context):
        for header, data in items(requests):
            if header.item_id == 1:
                yield from ANSWERS[name](header)
            else:
                yield from answer(header, data)

    with CompressionClient(scripted(compress=broken)) as client:
        with pytest.raises(ServerError, match="breaks the contract"):
            client.compress(numbered(1), codec="x")
        results = list(client.compress_many(map(numbered, range(2)), codec="x", errors="return"))
        assert isinstance(results[0], ServerError)
        assert number_of(results[1]) == 1


def test_tensors_that_break_the_contract(scripted):
    specs = {
        "none": [],
        "immense": [pb.TensorSpec(name="h", dtype=1, shape=[2**31 - 1, 4])],
        "same names": [pb.TensorSpec(name="h", dtype=1, shape=[1])] * 2,
        "no type": [pb.TensorSpec(name="h", shape=[1])],
    }

    def script(tensors):
        def broken(requests, context):
            item_id = next(requests).header.item_id
            yield pb.DecompressResponse(item_id=item_id, result=pb.DecompressedItem(tensors=tensors))

        return broken

    with CompressionClient(scripted(compress=store)) as client:
        unit = client.compress(numbered(1), codec="x")
    for tensors in specs.values():
        target = scripted(decompress=script(tensors))
        with CompressionClient(target) as client, pytest.raises(ServerError, match="breaks the contract"):
            client.decompress(unit)


def test_codec_files_that_arrive_damaged(scripted):
    import hashlib

    good = pb.CodecFileHeader(size_bytes=3, sha256=hashlib.sha256(b"abc").digest())
    for header, data in ((good, b"abX"), (good, b"ab"), (good, b"abcd"), (None, b"abc"), (good, b"")):

        def script(requests, context, header=header, data=data):
            if header is not None:
                yield pb.GetCodecFileResponse(header=header)
            if data:
                yield pb.GetCodecFileResponse(data=data)

        with CompressionClient(scripted(codec_file=script)) as client, pytest.raises(ServerError, match="damaged"):
            client.codec_file("x")

    def whole(requests, context):
        yield pb.GetCodecFileResponse(header=good)
        yield pb.GetCodecFileResponse(data=b"a")
        yield pb.GetCodecFileResponse(data=b"bc")

    with CompressionClient(scripted(codec_file=whole)) as client:
        assert client.codec_file("x") == b"abc"


def test_context_and_several_outputs(scripted):
    """A context codec's unit travels with its context, inline or in chunks, and gives two tensors."""
    seen = []

    def echoes_context(requests, context):
        header = next(requests).header
        size = header.unit.payload_bytes + 4 * int(np.prod(header.tensors[0].shape))
        data = bytearray(header.inline_data)
        kinds = []
        while len(data) < size:
            request = next(requests)
            kinds.append(request.WhichOneof("message"))
            data += request.payload.data or request.chunk.data
        seen.append(kinds)
        specs = [pb.TensorSpec(name=name, dtype=1, shape=header.tensors[0].shape) for name in ("h_hat", "h_hat_share")]
        yield pb.DecompressResponse(item_id=header.item_id, result=pb.DecompressedItem(tensors=specs))
        for index in range(2):
            for _, offset, part in pieces([memoryview(data)[header.unit.payload_bytes :]]):
                chunk = pb.TensorChunk(item_id=header.item_id, tensor_index=index, offset=offset, data=part)
                yield pb.DecompressResponse(item_id=header.item_id, chunk=chunk)

    with CompressionClient(scripted(compress=store, decompress=echoes_context)) as client:
        unit = client.compress(numbered(3, elements=5), codec="x")
        for shape in ((3, 5), (700, 700)):
            ctx = np.random.default_rng(1).normal(size=shape).astype(np.float32)
            for given in (ctx, {"ctx": ctx}):
                found = client.decompress(unit, ctx=given)
                assert list(found) == ["h_hat", "h_hat_share"]
                np.testing.assert_array_equal(found["h_hat_share"], ctx)
            (many,) = client.decompress_many([(unit, ctx)])
            np.testing.assert_array_equal(many["h_hat"], ctx)
    assert seen[0] == []
    assert seen[-1][:2] == ["payload", "chunk"]
