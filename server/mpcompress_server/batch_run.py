"""One batch of jobs through one executor: the call, what it gave each job, and what is learnt from its time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import structlog

from mpcompress_server.calls import Call, CompressCall, DecompressCall, Outcome
from mpcompress_server.counters import Counters
from mpcompress_server.dropping import DroppedError
from mpcompress_server.errors import ItemCancelledError
from mpcompress_server.executors import Executor
from mpcompress_server.line import Line
from mpcompress_server.scheduler import CompressWork, Finished, Job

_log = structlog.get_logger("mpcompress_server.scheduler")


async def run_batch(
    batch: list[Job], call: Call, executor: Executor, line: Line, counters: Counters, free: asyncio.Event
) -> None:
    """Runs a call and gives every job its outcome. Sets `free` when the executor can begin another call."""
    clock = asyncio.get_running_loop().time
    start, coding_s, first_s = clock(), 0.0, 0.0
    codec_id = batch[0].loaded.id
    counters.batches[codec_id, len(batch)] += 1
    until: list[float] = []

    def next_may_begin() -> None:
        until.append(clock())
        free.set()

    try:
        result = await executor.run(call, next_may_begin)
        outcomes, coding_s, first_s = result.outcomes, result.coding_s, result.first_s
        if result.too_many:
            line.max_batch = max(1, len(batch) // 2)
            counters.shrunk[codec_id] += 1
            _log.warning("batch too large for the device", codec=codec_id, items=len(batch), now=line.max_batch)
    except Exception as error:
        _log.error("executor failed", codec=codec_id, exc_info=error)
        outcomes = [error] * len(batch)
    finally:
        free.set()
    del call
    _learn(line, batch, outcomes, (until[0] if until else clock()) - start)
    for job, outcome in zip(batch, outcomes, strict=True):
        job.drop = None
        if isinstance(outcome, DroppedError):
            counters.dropped[codec_id] += 1
        _settle(job, outcome, coding_s, first_s)


def begin_batch(batch: list[Job]) -> Call:
    """The call for a batch. Its jobs count as running now, and the call alone holds their tensors."""
    works: list[Any] = [job.work for job in batch]
    call: Call
    if isinstance(works[0], CompressWork):
        call = CompressCall(inputs=[work.tensors for work in works], params=[work.params for work in works])
    else:
        call = DecompressCall(units=[work.unit for work in works], outputs=[work.outputs for work in works])
    for index, job in enumerate(batch):
        job.work = None
        job.drop = _dropper(call, index)
        if job.on_parts is not None:
            call.dropped.listen(index, partial(_tell, asyncio.get_running_loop(), job.on_parts))
        if job.on_started:
            job.on_started()
    return call


def _dropper(call: Call, index: int) -> Any:
    dropped = call.dropped  # not the call: a job must not hold the tensors of others
    return lambda: dropped.drop(index)


def _tell(loop: asyncio.AbstractEventLoop, on_parts: Callable[[int, int], None], done: int, total: int) -> None:
    """Called in the codec's thread."""
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(on_parts, done, total)


def _learn(line: Line, batch: list[Job], outcomes: Sequence[Outcome], seconds: float) -> None:
    """Shares the time of a call among its jobs by their sizes. Failures say nothing about how long jobs take."""
    if any(isinstance(outcome, Exception) for outcome in outcomes):
        return
    total = sum(job.nbytes + 1 for job in batch)
    for job in batch:
        line.observe(job.size_class, seconds * (job.nbytes + 1) / total)


def _settle(job: Job, outcome: Outcome, coding_s: float, first_s: float) -> None:
    if job.result.done():
        return
    if isinstance(outcome, DroppedError):
        job.result.set_exception(ItemCancelledError("cancelled in its codec"))
    elif isinstance(outcome, Exception):
        job.result.set_exception(outcome)
    else:
        job.result.set_result(Finished(outcome=outcome, coding_s=coding_s, first_s=first_s))
