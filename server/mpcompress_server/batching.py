"""The scheduler of the server: a line per codec, and a pump per instance that takes batches from it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from mpcompress_server.calls import Call, CompressCall, DecompressCall, Outcome
from mpcompress_server.counters import Counters
from mpcompress_server.dropping import DroppedError
from mpcompress_server.errors import ItemCancelledError, ServerDrainingError
from mpcompress_server.executors import Executor
from mpcompress_server.line import Line
from mpcompress_server.scheduler import CompressWork, Finished, Job

_log = structlog.get_logger("mpcompress_server.scheduler")

# Calls that an instance may be in: one in each stage.
_IN_FLIGHT = 2


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How the items of a codec are put together: see `CodecEntry`."""

    max_batch: int = 1
    max_delay_s: float = 0.0


class BatchScheduler:
    """Batches of equal keys, streams in turn; while a batch is in its second stage the next one begins.

    Args:
        executors: the running instances of each codec, by codec id.
        batching: by codec id; those that are not there get batches of one.
        counters: told about every batch.
    """

    def __init__(
        self,
        executors: dict[str, Sequence[Executor]],
        batching: dict[str, Batching] | None = None,
        counters: Counters | None = None,
    ) -> None:
        self._executors = executors
        self._batching = batching or {}
        self.counters = counters or Counters()
        self._lines: dict[str, Line] = {}
        self._pumps: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Starts one pump per codec instance."""
        for codec_id, executors in self._executors.items():
            batching = self._batching.get(codec_id, Batching())
            line = self._lines[codec_id] = Line(
                max_batch=batching.max_batch,
                max_delay_s=batching.max_delay_s,
                instances=len(executors),
                clock=asyncio.get_running_loop().time,
            )
            self._pumps += [asyncio.create_task(self._pump(line, executor)) for executor in executors]

    def submit(self, job: Job) -> int:
        """Queues a job. Returns how many go before it."""
        if self._closing:
            job.result.set_exception(ServerDrainingError("the server stops"))
            return 0
        return self._lines[job.loaded.id].join(job)

    def cancel(self, job: Job) -> None:
        """Drops a job: at once when it waits, before its next stage when it runs."""
        if self._lines[job.loaded.id].leave(job):
            job.work = None
            job.result.set_exception(ItemCancelledError("cancelled while it waited"))
        elif job.drop is not None:
            job.drop()

    def expected_s(self, codec_id: str, stream: Hashable, size_class: Hashable) -> float:
        """Seconds until a job that came now would be done, as far as that is known."""
        return self._lines[codec_id].expected_s(stream, size_class)

    def waiting(self) -> dict[str, int]:
        """Jobs that wait, by codec id."""
        return {codec_id: len(line) for codec_id, line in self._lines.items()}

    async def close(self) -> None:
        """Fails the jobs that wait, waits for those that run."""
        self._closing = True
        for line in self._lines.values():
            for job in line.drain():
                job.work = None
                job.result.set_exception(ServerDrainingError("the server stops"))
        for pump in self._pumps:
            pump.cancel()
        for pump in self._pumps:
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, line: Line, executor: Executor) -> None:
        running: set[asyncio.Task[None]] = set()
        try:
            while True:
                batch = await line.next_batch()
                # Jobs that have left their line are running ones for `cancel`: nothing may come between that and
                # their start.
                free = asyncio.Event()
                running.add(asyncio.create_task(self._run(batch, _begin(batch), executor, line, free)))
                turn = [(job.stream, job.key) for job in batch]
                del batch
                await free.wait()
                line.served(turn)
                while len(running := {task for task in running if not task.done()}) >= _IN_FLIGHT:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if running:
                await asyncio.wait(running)  # the codec is inside a call: its items still get their answers
            raise

    async def _run(self, batch: list[Job], call: Call, executor: Executor, line: Line, free: asyncio.Event) -> None:
        clock = asyncio.get_running_loop().time
        start, coding_s, first_s = clock(), 0.0, 0.0
        codec_id = batch[0].loaded.id
        self.counters.batches[codec_id, len(batch)] += 1
        until: list[float] = []

        def next_may_begin() -> None:
            until.append(clock())
            free.set()

        try:
            result = await executor.run(call, next_may_begin)
            outcomes, coding_s, first_s = result.outcomes, result.coding_s, result.first_s
            if result.too_many:
                line.max_batch = max(1, len(batch) // 2)
                self.counters.shrunk[codec_id] += 1
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
                self.counters.dropped[codec_id] += 1
            _settle(job, outcome, coding_s, first_s)


def _begin(batch: list[Job]) -> Call:
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
        if job.on_started:
            job.on_started()
    return call


def _dropper(call: Call, index: int) -> Any:
    dropped = call.dropped  # not the call: a job must not hold the tensors of others
    return lambda: dropped.drop(index)


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
