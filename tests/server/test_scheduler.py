"""The scheduler and the byte budget alone: order, and leaving a queue at every place."""

from __future__ import annotations

import asyncio

import pytest
from mpc_test_codecs import BytesCodec

from mpcompress.codec import CodingParams
from mpcompress.errors import InvalidInputError
from mpcompress.registry import CodecSpec
from mpcompress_server.batching import BatchScheduler
from mpcompress_server.calls import CallResult, CompressCall, DecompressCall, run_call
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.errors import ItemCancelledError, ServerDrainingError
from mpcompress_server.reservation import ByteBudget
from mpcompress_server.scheduler import CompressWork, Job
from mpcompress_server.settings import CodecEntry


class Recorder:
    """An executor that says what it got, when the test lets it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.gate = asyncio.Semaphore(0)

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def run(self, call: CompressCall | DecompressCall, next_may_begin: object) -> CallResult:
        assert isinstance(call, CompressCall)
        (name,) = call.inputs[0]
        self.seen.append(name)
        await self.gate.acquire()
        if name == "broken":
            raise RuntimeError("an executor that fails")
        return CallResult(outcomes=[InvalidInputError(name)], coding_s=0.0)


def _job(name: str) -> Job:
    loaded = LoadedCodec(entry=CodecEntry(id="codec"))
    work = CompressWork(tensors={name: None}, params=CodingParams())  # type: ignore[dict-item]
    return Job(loaded=loaded, work=work, deadline=0.0)


async def _error(job: Job) -> str:
    with pytest.raises((RuntimeError, InvalidInputError)) as caught:
        await job.result
    return str(caught.value)


@pytest.fixture
async def line():
    executor = Recorder()
    scheduler = BatchScheduler({"codec": [executor]})
    await scheduler.start()
    yield executor, scheduler
    for _ in range(9):
        executor.gate.release()
    await scheduler.close()


async def test_first_come_first_served(line):
    executor, scheduler = line
    jobs = [_job(name) for name in ("a", "broken", "c")]
    assert [scheduler.submit(job) for job in jobs] == [0, 1, 2]
    for _ in jobs:
        executor.gate.release()
    assert [await _error(job) for job in jobs] == ["a", "an executor that fails", "c"]
    assert executor.seen == ["a", "broken", "c"]


async def test_cancelled_jobs_leave_their_place_to_others(line):
    executor, scheduler = line
    first, second, third = (_job(name) for name in ("a", "b", "c"))
    for job in (first, second):
        scheduler.submit(job)
    await asyncio.sleep(0)  # the first is running now
    scheduler.cancel(first)
    assert not first.result.done()
    scheduler.cancel(second)
    scheduler.cancel(second)
    assert second.work is None
    assert isinstance(second.result.exception(), ItemCancelledError)
    assert scheduler.submit(third) == 0
    for _ in range(2):
        executor.gate.release()
    assert [await _error(first), await _error(third)] == ["a", "c"]
    assert executor.seen == ["a", "c"]


async def test_closing_fails_what_waits_and_waits_for_what_runs(line):
    executor, scheduler = line
    running, waiting = _job("a"), _job("b")
    scheduler.submit(running)
    scheduler.submit(waiting)
    await asyncio.sleep(0)
    closing = asyncio.create_task(scheduler.close())
    await asyncio.sleep(0)
    late = _job("c")
    scheduler.submit(late)
    for job in (waiting, late):
        assert isinstance(job.result.exception(), ServerDrainingError)
    executor.gate.release()
    await closing
    assert await _error(running) == "a"


def test_one_bad_item_does_not_spoil_its_batch():
    import numpy as np

    codec = BytesCodec(CodecSpec(id="store", family="test_bytes"))
    good, bad = np.ones((2, 2), np.float32), np.full((2, 2), np.nan, np.float32)
    result = run_call(codec, CompressCall(inputs=[{"h": good}, {"h": bad}, {"h": good}], params=[CodingParams()] * 3))
    assert [isinstance(outcome, Exception) for outcome in result.outcomes] == [False, True, False]


async def test_the_budget_is_fair_and_gives_back():
    budget = ByteBudget(100)
    first = await budget.reserve(60)
    large = asyncio.create_task(budget.reserve(90))
    await asyncio.sleep(0)
    small = asyncio.create_task(budget.reserve(10))
    await asyncio.sleep(0)
    assert budget.waiting == 2  # the small one would fit, and does not overtake
    first.shrink(20)
    first.shrink(50)
    assert budget.used == 20
    large.cancel()
    await asyncio.gather(large, return_exceptions=True)
    (await small).release()
    first.release()
    first.release()
    assert (budget.used, budget.waiting) == (0, 0)


async def test_a_wait_given_up_in_the_turn_it_is_granted_leaks_nothing():
    budget = ByteBudget(100)
    first = await budget.reserve(100)
    waiting = asyncio.create_task(budget.reserve(100))
    await asyncio.sleep(0)
    first.release()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (budget.used, budget.waiting) == (0, 0)
