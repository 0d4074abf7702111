"""From complete items to codec calls: the seam between streams, which have items, and executors, which take batches."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from mpcompress.codec import Array, Coded, CodingParams, TensorSpec, Unit
from mpcompress_server.calls import Call, CompressCall, DecompressCall, Outcome
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.errors import ItemCancelledError, ServerDrainingError
from mpcompress_server.executors import Executor

_log = structlog.get_logger("mpcompress_server.scheduler")


@dataclass(frozen=True, kw_only=True)
class CompressWork:
    """One item to compress: its tensors by input name, and the resolved params."""

    tensors: dict[str, Array]
    params: CodingParams


@dataclass(frozen=True, kw_only=True)
class DecompressWork:
    """One unit to decompress, and the specs that its outputs shall have."""

    unit: Unit
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a job gave. `coding_s`: seconds in the codec, for the batch it was in."""

    outcome: Coded | dict[str, Array]
    coding_s: float


class Job:
    """One item's work. Made by a stream, handed to a scheduler once.

    Args:
        loaded: the codec.
        work: the item; dropped when it is done or cancelled, so that its memory goes at once.
        deadline: time of the event loop's clock at which nobody waits for it any more.
        on_started: called when the codec begins.
    """

    def __init__(
        self,
        *,
        loaded: LoadedCodec,
        work: CompressWork | DecompressWork,
        deadline: float,
        on_started: Callable[[], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.work: CompressWork | DecompressWork | None = work
        self.deadline = deadline
        self.on_started = on_started
        self.result: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()


class Scheduler(Protocol):
    """Takes jobs and decides when, and together with which others, they run."""

    def submit(self, job: Job) -> int:
        """Takes a job; `job.result` ends when nothing uses its memory any more. Returns how many wait before it."""

    def cancel(self, job: Job) -> None:
        """Drops a job that waits. A running one ends by itself, since a codec cannot be stopped inside a call."""

    async def start(self) -> None:
        """Starts taking jobs."""

    async def close(self) -> None:
        """Fails the jobs that wait, waits for those that run."""


class FifoScheduler:
    """First come, first served, one queue per codec, batches of one.

    Args:
        executors: the running instances of each codec, by codec id.
    """

    def __init__(self, executors: dict[str, Sequence[Executor]]) -> None:
        self._executors = executors
        self._lines: dict[str, _Line] = {}
        self._pumps: list[asyncio.Task[None]] = []
        self._closing = False

    async def start(self) -> None:
        """Starts one pump per codec instance."""
        for codec_id, executors in self._executors.items():
            line = self._lines[codec_id] = _Line()
            self._pumps += [asyncio.create_task(self._pump(line, executor)) for executor in executors]

    def submit(self, job: Job) -> int:
        """Queues a job. Returns how many wait before it."""
        if self._closing:
            job.result.set_exception(ServerDrainingError("the server stops"))
            return 0
        return self._lines[job.loaded.id].join(job)

    def cancel(self, job: Job) -> None:
        """Drops a job that waits."""
        if self._lines[job.loaded.id].leave(job):
            job.work = None
            job.result.set_exception(ItemCancelledError("cancelled while it waited"))

    async def close(self) -> None:
        """Fails the jobs that wait, waits for those that run."""
        self._closing = True
        for line in self._lines.values():
            while (job := line.first()) is not None:
                job.work = None
                job.result.set_exception(ServerDrainingError("the server stops"))
        for pump in self._pumps:
            pump.cancel()
        for pump in self._pumps:
            with contextlib.suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, line: _Line, executor: Executor) -> None:
        while True:
            batch = [await line.next()]
            # A job that has left its line is a running one for `cancel`: nothing may come between that and its start.
            running = asyncio.ensure_future(self._run(batch, _begin(batch), executor))
            del batch
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                await running  # the codec is inside a call: its items still get their answers
                raise
            del running

    async def _run(self, batch: list[Job], call: Call, executor: Executor) -> None:
        coding_s = 0.0
        try:
            result = await executor.run(call)
            outcomes, coding_s = result.outcomes, result.coding_s
        except Exception as error:
            _log.error("executor failed", codec=batch[0].loaded.id, exc_info=error)
            outcomes = [error] * len(batch)
        del call
        for job, outcome in zip(batch, outcomes, strict=True):
            _settle(job, outcome, coding_s)


class _Line:
    """Jobs that wait for one codec, in order. Any of them can leave without a trace, whatever its place."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[Job, None] = OrderedDict()
        self._wake = asyncio.Event()

    def join(self, job: Job) -> int:
        """Adds a job at the end. Returns how many are before it."""
        self._jobs[job] = None
        self._wake.set()
        return len(self._jobs) - 1

    def leave(self, job: Job) -> bool:
        """Removes a job. False when it does not wait here."""
        return self._jobs.pop(job, job) is None

    def first(self) -> Job | None:
        """Removes the first job, if there is one."""
        return self._jobs.popitem(last=False)[0] if self._jobs else None

    async def next(self) -> Job:
        """Removes the first job as soon as there is one."""
        while (job := self.first()) is None:
            self._wake.clear()
            await self._wake.wait()
        return job


def _begin(batch: list[Job]) -> Call:
    """The call for a batch. Its jobs count as running now, and the call alone holds their tensors."""
    works: list[Any] = [job.work for job in batch]
    for job in batch:
        job.work = None
        if job.on_started:
            job.on_started()
    if isinstance(works[0], CompressWork):
        return CompressCall(inputs=[work.tensors for work in works], params=works[0].params)
    return DecompressCall(units=[work.unit for work in works], outputs=[work.outputs for work in works])


def _settle(job: Job, outcome: Outcome, coding_s: float) -> None:
    if job.result.done():
        return
    if isinstance(outcome, Exception):
        job.result.set_exception(outcome)
    else:
        job.result.set_result(Finished(outcome=outcome, coding_s=coding_s))
