"""Bundles on the wire: who sends and reads them, that they mean what their messages mean alone, and what they hold."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from itertools import chain

import grpc
import pytest
from mpc_test_codecs import GATES, Gate
from raw_wire import CODE, call_status, compress_messages, compress_one, details, features, sort_out

from mpcompress_proto import bundles
from mpcompress_proto.parcel import COMPRESS_REQUEST, COMPRESS_RESPONSE, Parcel
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.errors import UnreadAnswersError
from mpcompress_server.outbox import Outbox

GATED = {"id": "gated", "family": "test_bytes", "options": {"gate": "g"}}
CODECS = [{"id": "store", "family": "test_bytes"}, GATED]


@pytest.fixture
def gate():
    GATES["g"] = Gate()
    yield GATES["g"]
    GATES["g"].open.set()


def _bundle(*requests):
    return pb.CompressRequest(bundle=pb.CompressRequestBundle(requests=requests))


def _compress(channel, *, reads_bundles):
    metadata = bundles.METADATA if reads_bundles else None
    return pb_grpc.CompressionServiceStub(channel).Compress(metadata=metadata)


async def _rest(call):
    """The responses until the end, as they came."""
    await call.done_writing()
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    return responses


def _single(responses):
    return list(chain.from_iterable(one.bundle.responses or (one,) for one in responses))


@pytest.mark.parametrize("reads_bundles", [True, False])
async def test_only_who_reads_bundles_gets_them(start_server, connect, gate, reads_bundles):
    server = await start_server(CODECS, limits={"max_unread_answers": 64})
    call = _compress(connect(server), reads_bundles=reads_bundles)
    await call.write(compress_messages(1, features(1))[0])
    assert (await call.read()).result is not None
    assert bundles.accepted(await call.initial_metadata()) == (bundles.MAX_BUNDLE if reads_bundles else 1)
    # The second of two answers is there before the first has left: all end at once.
    await call.write(compress_messages(2, features(2), "gated", want_progress=True)[0])
    for item in range(3, 20):
        await call.write(compress_messages(item, features(2), "gated")[0])
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    gate.open.set()
    responses = await _rest(call)
    assert set(sort_out(_single(responses))) == set(range(2, 20))
    assert any(response.HasField("bundle") for response in responses) == reads_bundles
    assert all(len(response.bundle.responses) != 1 for response in responses)


async def test_a_bundle_means_what_its_messages_mean(start_server, connect, gate):
    server = await start_server(CODECS)
    channel = connect(server)
    large = features(3000)
    header, *chunks = compress_messages(6, large, chunk=50_000)
    call = _compress(channel, reads_bundles=False)
    # Whole items, one that is refused, one that is cancelled, a header whose chunks follow in the next bundle.
    await call.write(
        _bundle(
            *compress_messages(1, features(5)),
            *compress_messages(2, features(5), codec="nope"),
            *compress_messages(3, features(7), codec="gated"),
            pb.CompressRequest(cancel=pb.CancelItem(item_id=3)),
            *compress_messages(4, features(9)),
            header,
        )
    )
    await call.write(_bundle(*chunks, *compress_messages(5, features(2))))
    gate.open.set()
    got = sort_out(await _rest(call))
    for item, h in {1: features(5), 4: features(9), 5: features(2), 6: large}.items():
        assert got[item].payload == h.tobytes()
    assert details(got[2].error)["reason"] == "UNKNOWN_CODEC"
    assert details(got[3].error)["code"] == CODE.CANCELLED
    assert server.servicer.budget.used == 0


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (_bundle(), "without messages"),
        (_bundle(_bundle(*compress_messages(1, features(1)))), "in a bundle"),
        (_bundle(pb.CompressRequest()), "without header"),
        (_bundle(*[pb.CompressRequest(cancel=pb.CancelItem(item_id=n)) for n in range(65)]), "at most 64"),
        (_bundle(*compress_messages(7, features(1)), *compress_messages(7, features(1))), "is not answered yet"),
    ],
)
async def test_a_bundle_that_is_none_ends_its_stream_only(start_server, connect, bad, said):
    server = await start_server(CODECS)
    channel = connect(server)
    call = _compress(channel, reads_bundles=False)
    await call.write(compress_messages(9, features(4))[0])
    await call.write(bad)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await _rest(call)
    error = call_status(raised.value)
    assert error["code"] == CODE.INVALID_ARGUMENT
    assert error["reason"] == "PROTOCOL_VIOLATION"
    assert said in error["message"]
    assert (await compress_one(channel, features(5))).payload == features(5).tobytes()
    assert server.servicer.budget.used == 0


async def test_an_item_holds_its_own_bytes_only(start_server, connect, gate):
    """Else a small item that waits would keep a megabyte that nobody has reserved."""
    server = await start_server(CODECS)
    call = _compress(connect(server), reads_bundles=False)

    # Of bytes: other elements would be copied where they are not aligned.
    small = features(2000, dtype="int8")

    async def round_trip(item):
        await call.write(_bundle(*compress_messages(item, small, "gated"), *compress_messages(1, features(30_000))))
        assert (await call.read()).item_id == 1

    await round_trip(2)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for item in range(3, 9):
            await round_trip(item)
        gc.collect()
        # Two messages may still be on their way: the last ones each way.
        assert tracemalloc.get_traced_memory()[0] - before < 3_500_000
    finally:
        tracemalloc.stop()
    gate.open.set()
    assert set(sort_out(await _rest(call))) == set(range(2, 9))


class TestOutbox:
    """What goes together."""

    def _outbox(self, most=64, max_unread=64):
        self.released = []
        return Outbox(max_unread, most, bundles.Pace(lambda: 0.0))

    def _put(self, outbox, item, nbytes=100, messages=1):
        parcels = [Parcel(pb.CompressResponse(item_id=item), bytes([n])) for n in range(messages)]
        outbox.final(iter(parcels), nbytes, lambda: self.released.append(item))

    async def _sent(self, outbox):
        sent = []

        async def send(message):
            assert len(self.released) == sum(len(batch) for batch in sent)
            sent.append([one.message.item_id for one in message.bundle or (message,)])

        await outbox.write(send, lambda: True)
        return sent

    async def test_answers_that_wait_travel_together_up_to_what_the_client_reads(self):
        outbox = self._outbox(most=4)
        for item in range(1, 11):
            self._put(outbox, item)
        # How fast the line is, only the first one tells.
        assert await self._sent(outbox) == [[1], [2, 3, 4, 5], [6, 7, 8, 9], [10]]
        assert self.released == list(range(1, 11))

    async def test_who_reads_no_bundles_gets_none(self):
        outbox = self._outbox(most=1)
        for item in (1, 2, 3):
            self._put(outbox, item)
        assert await self._sent(outbox) == [[1], [2], [3]]

    async def test_a_bundle_is_no_larger_than_a_message(self):
        outbox = self._outbox()
        for item, nbytes in enumerate([100, 600_000, 400_000, 100_000, 1_000_000, 50_000, 40_000]):
            self._put(outbox, item, nbytes)
        assert await self._sent(outbox) == [[0], [1, 2], [3], [4], [5, 6]]

    async def test_what_has_chunks_travels_by_itself(self):
        outbox = self._outbox()
        for item, messages in enumerate([1, 1, 3, 1, 1]):
            self._put(outbox, item, 100 if messages == 1 else None, messages)
        sent = []

        async def send(message):
            sent.append([one.message.item_id for one in message.bundle or (message,)])

        await outbox.write(send, lambda: True)
        assert sent == [[0], [1], [2], [2], [2], [3, 4]]

    async def test_a_bundle_that_is_given_up_is_released_and_counted(self):
        outbox = self._outbox()
        for item in range(1, 6):
            self._put(outbox, item)
        stuck = asyncio.Event()

        async def send(message):
            if message.bundle:
                stuck.set()
                await asyncio.Event().wait()

        writer = asyncio.create_task(outbox.write(send, lambda: False))
        await stuck.wait()
        self._put(outbox, 6)
        writer.cancel()
        assert outbox.close() == 5  # all but the first, which was written
        await asyncio.gather(writer, return_exceptions=True)
        assert sorted(self.released) == [1, 2, 3, 4, 5, 6]

    async def test_all_of_a_bundle_count_as_unread_until_it_is_written(self):
        outbox = self._outbox(max_unread=3)
        for item in (1, 2, 3):
            self._put(outbox, item)
        with pytest.raises(UnreadAnswersError):
            self._put(outbox, 4)
        await self._sent(outbox)
        for item in (5, 6, 7):
            self._put(outbox, item)


def test_both_sides_mean_the_same_message():
    """What the server writes with its own code is what any protobuf reads, and the other way round."""
    requests = _bundle(*compress_messages(1, features(600)), *compress_messages(2, features(1)))
    assert [one.message.header.item_id for one in COMPRESS_REQUEST.read(requests.SerializeToString()).bundle] == [1, 2]
    answers = [pb.CompressResponse(item_id=n, progress=pb.ItemProgress(stage=n)) for n in (1, 2)]
    whole = pb.CompressResponse(bundle=pb.CompressResponseBundle(responses=answers))
    assert list(COMPRESS_RESPONSE.read(whole.SerializeToString()).bundle) == [Parcel(answer) for answer in answers]
