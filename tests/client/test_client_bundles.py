"""Bundles of a client: only to a server that reads them, of what is ready, and with the results of single messages."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from conftest import FINAL
from scripted_server import answer, items, refuse, status

from mpcompress_client import AsyncCompressionClient, CompressionClient, ResourceExhaustedError, ServerError
from mpcompress_client.items import CompressItem
from mpcompress_client.ledger import Ledger
from mpcompress_client.retry import Contact, RetryPolicy
from mpcompress_proto import bundles
from mpcompress_proto.v1 import compression_pb2 as pb

PATIENCE_S = 30
COUNT = 40


def numbered(number: int, elements: int = 4) -> np.ndarray:
    return np.full(elements, number, np.int32)


def number_of(unit) -> int:
    return int(np.frombuffer(unit.payload, np.int32)[0])


class Bundling:
    """A script that answers so many items at a time, reads bundles if it says so, and notes how long they were."""

    def __init__(self, *, reads: bool = True, writes: int = 1) -> None:
        self.sizes: list[int] = []
        self.announced: list[str] = []
        self._reads = reads
        self._writes = writes

    def __call__(self, requests, context):
        self.announced += [value for key, value in context.invocation_metadata() if key == bundles.KEY]
        if self._reads:
            context.send_initial_metadata(bundles.METADATA)
        waiting = []
        for header, data in items(self._single(requests)):
            waiting += answer(header, data)
            if len(waiting) == self._writes:
                yield self._together(waiting)
                waiting = []
        if waiting:
            yield self._together(waiting)

    def _single(self, requests) -> Iterator[pb.CompressRequest]:
        for request in requests:
            inside = list(request.bundle.requests) or [request]
            self.sizes.append(len(inside))
            yield from inside

    @staticmethod
    def _together(responses) -> pb.CompressResponse:
        if len(responses) == 1:
            return responses[0]
        return pb.CompressResponse(bundle=pb.CompressResponseBundle(responses=responses))


@pytest.fixture
def steady(monkeypatch):
    """A line on which everything leaves at once, however busy the machine is."""
    monkeypatch.setattr(bundles.Pace, "left", lambda pace: setattr(pace, "room", bundles.MAX_BUNDLE_BYTES))


def test_what_is_ready_travels_together_once_the_server_reads_bundles(scripted, steady):
    script = Bundling()
    with CompressionClient(scripted(compress=script)) as client:
        units = client.compress_many(map(numbered, range(COUNT)), codec="x")
        assert [number_of(unit) for unit in units] == list(range(COUNT))
    assert script.announced == [str(bundles.MAX_BUNDLE)]
    assert sum(script.sizes) == COUNT
    assert script.sizes[0] == 1
    assert max(script.sizes) > 1


def test_a_server_that_has_not_said_so_gets_single_messages(scripted, steady):
    script = Bundling(reads=False)
    with CompressionClient(scripted(compress=script)) as client:
        units = client.compress_many(map(numbered, range(COUNT)), codec="x")
        assert [number_of(unit) for unit in units] == list(range(COUNT))
    assert script.sizes == [1] * COUNT


def test_a_call_with_one_item_asks_for_no_bundles(scripted):
    script = Bundling()
    with CompressionClient(scripted(compress=script)) as client:
        assert number_of(client.compress(numbered(3), codec="x")) == 3
    assert script.announced == []


@pytest.mark.parametrize("ordered", [True, False])
def test_answers_in_bundles(scripted, ordered):
    script = Bundling(writes=7)
    with CompressionClient(scripted(compress=script)) as client:
        many = client.compress_many(map(numbered, range(COUNT)), codec="x")
        found = list(enumerate(many)) if ordered else list(many.as_completed())
        assert [(index, number_of(unit)) for index, unit in found] == [(n, n) for n in range(COUNT)]


def test_progress_and_errors_in_bundles(scripted):
    """An item that is refused in a bundle is sent again, and events of nobody are dropped."""
    refused = []

    def script(requests, context):
        for header, data in items(requests):
            some = [
                pb.CompressResponse(item_id=header.item_id, progress=pb.ItemProgress(stage=1)),
                pb.CompressResponse(item_id=999, progress=pb.ItemProgress(stage=1)),
            ]
            if header.item_id == 2 and not refused:
                refused.append(header.item_id)
                some.append(refuse(2, status(grpc.StatusCode.UNAVAILABLE, "later")))
            else:
                some += answer(header, data)
                some += answer(header, data)  # twice: the second is nobody's
            yield pb.CompressResponse(bundle=pb.CompressResponseBundle(responses=some))

    stages = []
    with CompressionClient(scripted(compress=script)) as client:
        units = client.compress_many(
            map(numbered, range(4)), codec="x", errors="return", progress=lambda event: stages.append(event.index)
        )
        assert [number_of(unit) for unit in units] == [0, 1, 2, 3]
    assert refused == [2]
    assert set(stages) == {0, 1, 2, 3}


def test_an_item_that_is_there_does_not_wait_for_a_slow_source(scripted, steady):
    """The source makes its next item only when the result of the one before has come."""
    came = threading.Semaphore(0)

    def source():
        for number in range(12):
            yield numbered(number)
            if number >= 4:
                assert came.acquire(timeout=PATIENCE_S)

    with CompressionClient(scripted(compress=Bundling())) as client:
        for index, unit in enumerate(client.compress_many(source(), codec="x")):
            assert number_of(unit) == index
            if index >= 4:
                came.release()


async def test_the_asyncio_client_sends_and_reads_them_too(scripted, steady):
    script = Bundling(writes=3)
    async with AsyncCompressionClient(scripted(compress=script)) as client:
        units = client.compress_many([numbered(n) for n in range(COUNT)], codec="x")
        assert [number_of(unit) async for unit in units] == list(range(COUNT))
    assert script.announced == [str(bundles.MAX_BUNDLE)]
    assert sum(script.sizes) == COUNT
    assert max(script.sizes) > 1


def test_large_and_small_items_in_turn(client, final):
    """Against the real server: what needs chunks goes between the bundles."""
    large = np.tile(final[0], (12, 1, 1)).astype(np.float32)
    tensors = [large if n % 5 == 4 else final[n % 4] for n in range(20)]
    units = list(client.compress_many(tensors, codec=FINAL, qp=36))
    singles = [client.compress(h, codec=FINAL, qp=36) for h in [*final[:4], large]]
    assert units == [singles[4 if n % 5 == 4 else n % 4] for n in range(20)]
    for unit, tensor in zip(units, client.decompress_many(units), strict=True):
        assert tensor.flags.writeable
        np.testing.assert_array_equal(tensor, client.decompress(unit))


class TestBooks:
    """Which slots a bundle gets."""

    def _ledger(self, *sizes: int) -> Ledger:
        ledger: Ledger = Ledger(
            target="host:1",
            look_ahead=99,
            look_ahead_bytes=1 << 30,
            ordered=True,
            policy=RetryPolicy(),
            contact=Contact(),
        )
        for size in sizes:
            tensors = {"h": np.zeros(size, np.int8)}
            ledger.admit(CompressItem(tensors, codec_id="x", params=pb.CodingParams(), timeout_s=60.0))
        return ledger

    @staticmethod
    def _sent(ledger: Ledger, most: int, room: int) -> list[list[int]]:
        found = []
        while chosen := ledger.next_to_send(most, room):
            found.append([slot.index for slot, _ in chosen])
        return found

    @pytest.mark.parametrize(
        ("sizes", "most", "room", "expected"),
        [
            ((10, 10, 10), 1, 100, [[0], [1], [2]]),
            ((10, 10, 10), 2, 100, [[0, 1], [2]]),
            ((10, 10, 10), 64, 20, [[0, 1], [2]]),
            ((10, 10, 10), 64, 0, [[0], [1], [2]]),
            ((30, 10, 10), 64, 20, [[0], [1, 2]]),
            ((10, 2 << 20, 10, 10), 64, 9 << 20, [[0], [1], [2, 3]]),
        ],
    )
    def test_in_order_up_to_the_room(self, sizes, most, room, expected):
        assert self._sent(self._ledger(*sizes), most, room) == expected

    def test_what_is_sent_again_later_is_passed_over(self):
        ledger = self._ledger(10, 10, 10)
        ((slot, _),) = ledger.next_to_send()
        error = ResourceExhaustedError("no room")
        error.retry_after_s = 30.0
        assert ledger.settle(slot, error)
        assert [slot.index for slot, _ in ledger.next_to_send(64, 1000)] == [1, 2]

    def test_an_item_without_time_left_is_not_in_its_bundle(self):
        ledger = self._ledger(10, 10, 10)
        chosen = ledger.next_to_send(64, 1000)
        ledger.settle(chosen[1][0], ServerError("it failed meanwhile"))
        (parcel,) = ledger.parcels(chosen)
        assert [one.message.header.item_id for one in parcel.bundle] == [1, 3]
