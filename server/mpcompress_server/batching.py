"""The scheduler of the server: a line per codec, and a pump per instance that takes batches from it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from mpcompress_server.batch_run import begin_batch, run_batch
from mpcompress_server.counters import Counters
from mpcompress_server.errors import ItemCancelledError, ServerDrainingError
from mpcompress_server.executors import Executor
from mpcompress_server.line import Line
from mpcompress_server.scheduler import Job

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
                running.add(
                    asyncio.create_task(run_batch(batch, begin_batch(batch), executor, line, self.counters, free))
                )
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
