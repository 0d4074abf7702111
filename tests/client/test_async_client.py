"""The asyncio client: same results as the synchronous one, both directions at once, cancellation, no task left."""

from __future__ import annotations

import asyncio
import gc
import threading
from itertools import count

import grpc
import numpy as np
import pytest
from conftest import BLOCK6, FINAL
from scripted_server import answer, items, refuse, status, store

from mpcompress_client import (
    AsyncCompressionClient,
    CancelledError,
    CodedUnit,
    DeadlineError,
    InvalidRequestError,
    MPCompressError,
    ServerUnavailableError,
    UnknownCodecError,
)
from mpcompress_client import ledger as ledger_module
from mpcompress_proto.v1 import compression_pb2 as pb

CODE = grpc.StatusCode
PATIENCE_S = 30


@pytest.fixture(autouse=True)
async def no_task_leak():
    yield
    gc.collect()
    current = asyncio.current_task()
    for _ in range(1000):
        left = [task for task in asyncio.all_tasks() if task is not current and "mpcompress" in repr(task.get_coro())]
        if not left:
            return
        await asyncio.sleep(0)
    pytest.fail(f"left over: {left}")


def numbered(number: int, elements: int = 4) -> np.ndarray:
    return np.full(elements, number, np.int32)


def number_of(unit) -> int:
    assert isinstance(unit, CodedUnit), unit
    return int(np.frombuffer(unit.payload, np.int32)[0])


# -------------------------------------------------------------------------------------- against the real server


async def test_the_same_calls_and_results_as_the_synchronous_client(server, client, final):
    async with AsyncCompressionClient(server) as connected:
        unit = await connected.compress(final[0], codec=FINAL, qp=24)
        assert unit == client.compress(final[0], codec=FINAL, qp=24)
        np.testing.assert_array_equal(await connected.decompress(unit), client.decompress(unit))
        assert [info.id for info in await connected.codecs()] == [BLOCK6, FINAL]
        assert await connected.limits() == client.limits()
        assert await connected.codec_file(FINAL) == client.codec_file(FINAL)
        with pytest.raises(UnknownCodecError):
            await connected.compress(final[0], codec="none")
        # Parameters that several families know: the server is asked whose they are.
        with pytest.raises(InvalidRequestError):
            await connected.compress(final[0], codec=FINAL, trun_low=[-1.0], trun_high=[1.0])


@pytest.mark.parametrize("kind", ["list", "generator", "async"])
async def test_many_in_order(server, client, final, kind):
    inputs = [final[number % 4] for number in range(30)]

    async def asynchronous():
        for tensor in inputs:
            await asyncio.sleep(0)
            yield tensor

    source = {"list": inputs, "generator": (tensor for tensor in inputs), "async": asynchronous()}[kind]
    singles = [client.compress(tensor, codec=FINAL, qp=30) for tensor in final]
    async with AsyncCompressionClient(server) as connected:
        units = [unit async for unit in connected.compress_many(source, codec=FINAL, qp=30)]
        assert units == [singles[number % 4] for number in range(30)]
        tensors = [tensor async for tensor in connected.decompress_many(units)]
    for number, tensor in enumerate(tensors):
        np.testing.assert_array_equal(tensor, client.decompress(singles[number % 4]))


async def test_a_producer_may_wait_for_results(server, final):
    """Item n + 1 depends on the result of item n: only a client that reads while it writes gets through."""
    queue: asyncio.Queue[np.ndarray] = asyncio.Queue()
    queue.put_nowait(final[0])

    async def feedback():
        for _ in range(5):
            yield await asyncio.wait_for(queue.get(), PATIENCE_S)

    async with AsyncCompressionClient(server) as client:
        async for unit in client.compress_many(feedback(), codec=FINAL, qp=24):
            queue.put_nowait(await client.decompress(unit))


async def test_many_calls_at_once(server, client, final):
    async with AsyncCompressionClient(server) as connected:
        units = await asyncio.gather(*(connected.compress(final[n % 4], codec=FINAL, qp=40) for n in range(12)))
    assert units == [client.compress(final[n % 4], codec=FINAL, qp=40) for n in range(12)]


async def test_look_ahead_is_bounded_both_sides_slow(server, final):
    pulled = taken = 0

    async def producer():
        nonlocal pulled
        for _ in range(20):
            await asyncio.sleep(0.001)
            pulled += 1
            assert pulled - taken <= 5 + 1
            yield final[0]

    async with AsyncCompressionClient(server) as client:
        async for _ in client.compress_many(producer(), codec=FINAL, qp=40, look_ahead=5):
            await asyncio.sleep(0.002)
            taken += 1
    assert (taken, pulled) == (20, 20)


async def test_large_items_both_ways(server, final):
    large = np.concatenate([final] * 3).astype(np.float32)
    async with AsyncCompressionClient(server) as client:
        units = [unit async for unit in client.compress_many([large] * 4, codec=FINAL, qp=24)]
        tensors = [tensor async for tensor in client.decompress_many(units)]
    assert all(np.array_equal(tensor, tensors[0]) for tensor in tensors)
    assert tensors[0].shape == large.shape


async def test_per_item_errors_are_results_or_raised(server, final):
    bad = final[0].astype(np.float32)
    bad[3, 5] = np.nan
    async with AsyncCompressionClient(server) as client:
        given = [final[0], bad, final[1], "no tensor"]
        results = [r async for r in client.compress_many(given, codec=FINAL, errors="return")]
        assert [type(result) for result in results] == [CodedUnit, InvalidRequestError, CodedUnit, InvalidRequestError]
        many = client.compress_many(given, codec=FINAL)
        assert isinstance(await anext(many), CodedUnit)
        with pytest.raises(InvalidRequestError):
            await anext(many)
        with pytest.raises(StopAsyncIteration):
            await anext(many)


async def test_what_the_producer_raises_comes_after_the_results_before_it(server, final):
    async def producer():
        yield final[0]
        raise KeyError("camera")

    async with AsyncCompressionClient(server) as client:
        many = client.compress_many(producer(), codec=FINAL)
        assert isinstance(await anext(many), CodedUnit)
        with pytest.raises(KeyError, match="camera"):
            await anext(many)


async def test_no_items_and_nothing_before_the_first_is_asked_for(server):
    def producer():
        raise AssertionError("pulled")
        yield

    async with AsyncCompressionClient(server) as client:
        assert [unit async for unit in client.compress_many([], codec=FINAL)] == []
        client.compress_many(producer(), codec=FINAL)
        await client.compress_many(producer(), codec=FINAL).aclose()


# ------------------------------------------------------------------------------------- against a scripted server


async def test_as_completed(scripted):
    def backwards(requests, context):
        for header, data in reversed(list(items(requests))):
            yield from answer(header, data, chunk=3)

    async with AsyncCompressionClient(scripted(compress=backwards)) as client:
        many = client.compress_many((numbered(n) for n in range(5)), codec="x")
        found = [(index, number_of(unit)) async for index, unit in many.as_completed()]
        assert found == [(n, n) for n in reversed(range(5))]
        with pytest.raises(InvalidRequestError, match="instead"):
            many.as_completed()


async def test_cancelling_the_task_cancels_the_item_and_the_call(scripted):
    cancelled, begun = threading.Event(), threading.Event()

    def silent(requests, context):
        context.add_callback(cancelled.set)
        next(requests)
        begun.set()
        cancelled.wait(PATIENCE_S)
        yield from ()

    async with AsyncCompressionClient(scripted(compress=silent)) as client:
        task = asyncio.create_task(client.compress(numbered(1), codec="x"))
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(cancelled.wait, PATIENCE_S)


async def test_cancelling_a_task_that_waits_for_the_producer(scripted):
    """The producer is cancelled with the call: its `finally` runs."""
    waits, ended = asyncio.Event(), asyncio.Event()

    async def producer():
        try:
            yield numbered(0)
            waits.set()
            await asyncio.sleep(3600)
        finally:
            ended.set()

    async def consume():
        async for _ in client.compress_many(producer(), codec="x"):
            pass

    async with AsyncCompressionClient(scripted(compress=store)) as client:
        task = asyncio.create_task(consume())
        await asyncio.wait_for(waits.wait(), PATIENCE_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(ended.wait(), PATIENCE_S)


async def test_a_timeout_around_a_call(silent):
    async with AsyncCompressionClient(silent) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.compress(numbered(0), codec="x")


async def test_a_server_that_never_answers_runs_into_the_deadline(silent, monkeypatch):
    monkeypatch.setattr(ledger_module, "GRACE_S", 0.05)

    async with AsyncCompressionClient(silent, timeout_s=0.2) as client:
        results = [r async for r in client.compress_many(map(numbered, range(3)), codec="x", errors="return")]
        assert [type(result) for result in results] == [DeadlineError] * 3
        with pytest.raises(DeadlineError):
            await client.compress(numbered(0), codec="x")


async def test_an_iterator_left_early_stops_pulling_and_leaves_no_task(scripted):
    pulled = count()
    latest = 0

    async def producer():
        nonlocal latest
        while True:
            latest = next(pulled)
            yield numbered(latest)

    async with AsyncCompressionClient(scripted(compress=store)) as client:
        many = client.compress_many(producer(), codec="x", look_ahead=4)
        await anext(many)
        await many.aclose()
        assert latest <= 6
        async for _ in client.compress_many(producer(), codec="x", look_ahead=4):
            break


async def test_closing_the_client_cancels_its_streams(scripted):
    pulled, never = asyncio.Event(), asyncio.Event()

    def two_answers(requests, context):
        for header, data in items(requests):
            if header.item_id <= 2:
                yield from answer(header, data)

    async def producer():
        for number in range(3):
            yield numbered(number)
        pulled.set()
        await never.wait()

    client = AsyncCompressionClient(scripted(compress=two_answers))
    many = client.compress_many(producer(), codec="x", errors="return")
    assert [number_of(await anext(many)) for _ in range(2)] == [0, 1]
    await asyncio.wait_for(pulled.wait(), PATIENCE_S)
    waiting = asyncio.create_task(anext(many))
    await asyncio.sleep(0)
    await client.close()
    never.set()
    assert isinstance(await waiting, CancelledError)
    with pytest.raises(InvalidRequestError, match="closed"):
        await client.compress(numbered(0), codec="x")
    await many.aclose()


async def test_a_server_that_is_not_there():
    async with AsyncCompressionClient("127.0.0.1:1") as client:
        results = [r async for r in client.compress_many(map(numbered, range(3)), codec="x", errors="return")]
        assert [type(result) for result in results] == [ServerUnavailableError] * 3
        with pytest.raises(ServerUnavailableError, match="cannot reach"):
            await client.codecs()


async def test_refused_items_and_broken_streams_are_sent_again(scripted):
    seen: list[int] = []

    def unsteady(requests, context):
        for header, data in items(requests):
            seen.append(header.item_id)
            if seen.count(header.item_id) == 1 and header.item_id == 2:
                yield refuse(header.item_id, status(CODE.UNAVAILABLE, "worker died"))
            elif seen.count(header.item_id) == 1 and header.item_id == 4:
                context.abort(CODE.UNAVAILABLE, "gone")
            elif seen.count(header.item_id) == 1 and header.item_id == 6:
                yield pb.CompressResponse(draining=pb.Draining())
                yield from answer(header, data)
            else:
                yield from answer(header, data)

    async with AsyncCompressionClient(scripted(compress=unsteady)) as client:
        units = [unit async for unit in client.compress_many(map(numbered, range(8)), codec="x", look_ahead=3)]
    assert [number_of(unit) for unit in units] == list(range(8))
    assert all(seen.count(item_id) <= 3 for item_id in seen)


async def test_a_progress_callback_runs_in_the_loop_and_may_end_the_call(scripted):
    def chatty(requests, context):
        for header, data in items(requests):
            assert header.want_progress
            for stage in (1, 2, 3):
                yield pb.CompressResponse(item_id=header.item_id, progress=pb.ItemProgress(stage=stage))
            yield from answer(header, data)

    events = []

    def note(event):
        assert asyncio.get_running_loop()
        events.append((event.index, event.stage))
        if event.index == 5:
            raise KeyError("enough")

    async with AsyncCompressionClient(scripted(compress=chatty)) as client:
        await client.compress(numbered(0), codec="x", progress=note)
        assert events == [(0, "accepted"), (0, "queued"), (0, "started"), (0, "done")]
        many = client.compress_many(map(numbered, range(9)), codec="x", progress=note, errors="return", look_ahead=1)

        async def consume():
            async for result in many:
                assert isinstance(result, CodedUnit | MPCompressError)

        with pytest.raises(KeyError, match="enough"):
            await consume()
