"""The scheduler of a worker: one line for all codecs, as many codec calls at a time as there are slots.

    codec A ─┐                ┌─► slot 0
    codec B ─┼──► one line ───┼─► slot 1      each slot has its own instance of every codec that it has run
    codec C ─┘                └─► ...

A picture encoder keeps one core busy: with a slot for each core and one process for each item no two items share a
core, and every core works until the line is empty. Clients that want progress hear in between where their items are.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Hashable

import structlog

from mpcompress.codec import FeatureCodec
from mpcompress_server.batch_run import begin_batch, run_batch
from mpcompress_server.calls import Call, CallResult
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.counters import Counters
from mpcompress_server.errors import ItemCancelledError, ServerDrainingError
from mpcompress_server.executors import Executor, ThreadExecutor
from mpcompress_server.line import Line
from mpcompress_server.scheduler import Job

_log = structlog.get_logger("mpcompress_server.slots")

HEARTBEAT_S = 1.0


class Slots:
    """A line for all codecs of a worker, and the slots that take from it. Made in a running event loop.

    Args:
        count: codec calls at a time.
        counters: told about every call.
        heartbeat_s: how often waiting and running jobs tell where they are, seconds.
    """

    def __init__(self, count: int, counters: Counters, heartbeat_s: float = HEARTBEAT_S) -> None:
        self.count = count
        self.line = Line(instances=count, clock=asyncio.get_running_loop().time)
        self.running: dict[Job, _Parts] = {}
        """Jobs that are in a slot."""
        self._counters = counters
        self._heartbeat_s = heartbeat_s
        self._codecs: weakref.WeakKeyDictionary[LoadedCodec, SlotCodec] = weakref.WeakKeyDictionary()
        self._tasks: list[asyncio.Task[None]] = []

    async def codec(self, loaded: LoadedCodec, load: Callable[[], FeatureCodec]) -> SlotCodec:
        """A scheduler for the jobs of one codec.

        Args:
            loaded: the codec.
            load: makes an instance of it for a slot.

        Raises:
            Exception: what loading and warming up its first instance raises.
        """
        codec = SlotCodec(self, loaded, load)
        await codec.executor(0)
        self._codecs[loaded] = codec
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._work(slot)) for slot in range(self.count)]
            self._tasks.append(asyncio.create_task(self._tell()))
        return codec

    async def close(self) -> None:
        """Ends the slots; waits for the calls that they are in."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _work(self, slot: int) -> None:
        while True:
            (job,) = await self.line.next_batch()
            # Jobs that have left the line are running ones for `cancel`: nothing may come between that and their start.
            self.running[job] = parts = _Parts(job.on_parts)
            if job.on_parts is not None:
                job.on_parts = parts.hear
            turn = (job.stream, job.key)
            running = asyncio.create_task(self._run(job, begin_batch([job]), self._codecs[job.loaded], slot))
            del job, parts
            try:
                await asyncio.shield(running)
            except asyncio.CancelledError:
                await asyncio.wait((running,))  # the codec is inside a call: its item still gets its answer
                raise
            self.line.served([turn])

    async def _run(self, job: Job, call: Call, codec: SlotCodec, slot: int) -> None:
        clock = asyncio.get_running_loop().time
        start = clock()
        try:
            executor = await codec.executor(slot)
        except Exception as failure:
            executor = _Broken(failure)
        try:
            await run_batch([job], call, executor, self.line, self._counters, asyncio.Event())
        finally:
            del self.running[job]
            done = job.result.done() and not job.result.cancelled()
            error = job.result.exception() if done else None
            _log.info(
                "job done" if error is None else "job failed",
                codec=job.loaded.id,
                slot=slot,
                waited_s=round(start - job.queued_at, 3),
                took_s=round(clock() - start, 3),
                **({} if error is None else {"error": type(error).__name__}),
            )

    async def _tell(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            for position, job in enumerate(self.line.in_order()):
                if job.on_position is not None:
                    job.on_position(position)
            for parts in self.running.values():
                parts.tell()


class SlotCodec:
    """The jobs of one codec, as a Scheduler, and its instances by slot.

    Args:
        slots: what runs them.
        loaded: the codec; not kept, for whoever holds it keeps it from being closed.
        load: makes an instance.
    """

    def __init__(self, slots: Slots, loaded: LoadedCodec, load: Callable[[], FeatureCodec]) -> None:
        self._slots = slots
        self._id = loaded.id
        self._loaded = weakref.ref(loaded)
        self._load = load
        self._executors: dict[int, Executor] = {}
        self._closing = False

    async def executor(self, slot: int) -> Executor:
        """The instance of a slot, which alone asks for it. Raises what loading raises."""
        if slot not in self._executors:
            executor = ThreadExecutor(self._load, f"{self._id}-{slot}")
            try:
                await executor.start()
            except BaseException:
                await executor.close()
                raise
            self._executors[slot] = executor
        return self._executors[slot]

    def submit(self, job: Job) -> int:
        """Puts a job into the line. Returns how many go before it."""
        if self._closing:
            job.result.set_exception(ServerDrainingError("the server stops"))
            return 0
        # Codecs differ in speed by orders of magnitude.
        job.size_class = (self._id, job.size_class)
        return self._slots.line.join(job)

    def cancel(self, job: Job) -> None:
        """Drops a job: at once when it waits, else its encoder is ended."""
        if self._slots.line.leave(job):
            job.work = None
            job.result.set_exception(ItemCancelledError("cancelled while it waited"))
        elif job.drop is not None:
            job.drop()

    def expected_s(self, codec_id: str, stream: Hashable, size_class: Hashable) -> float:
        """Seconds until a job that came now would be done, as far as that is known."""
        return self._slots.line.expected_s(stream, (codec_id, size_class))

    def waiting(self) -> dict[str, int]:
        """Jobs of this codec that wait."""
        return {self._id: len(self._jobs())}

    async def start(self) -> None:
        """Does nothing: `Slots.codec` has started it."""

    async def close(self) -> None:
        """Fails the jobs of this codec that wait, waits for those that run, and gives its instances back."""
        self._closing = True
        for job in self._jobs():
            self._slots.line.leave(job)
            job.work = None
            job.result.set_exception(ServerDrainingError("the server stops"))
        running = [job.result for job in self._slots.running if job.loaded is self._loaded()]
        if running:
            await asyncio.wait(running)
        executors, self._executors = list(self._executors.values()), {}
        await asyncio.gather(*(executor.close() for executor in executors))

    def _jobs(self) -> list[Job]:
        return [job for job in self._slots.line.in_order() if job.loaded is self._loaded()]


class _Parts:
    """How far a running job is, and who wants to know."""

    def __init__(self, on_parts: Callable[[int, int], None] | None) -> None:
        self._on_parts = on_parts
        self._done = (0, 0)

    def hear(self, done: int, total: int) -> None:
        """The codec has done something."""
        self._done = (done, total)
        self.tell()

    def tell(self) -> None:
        """Says what is known."""
        if self._on_parts is not None:
            self._on_parts(*self._done)


class _Broken:
    """In place of an instance that could not be made: its error becomes the item's."""

    def __init__(self, error: Exception) -> None:
        self.ready = False
        self.on_change: Callable[[], None] = lambda: None
        self._error = error

    async def start(self) -> None:
        """Never called."""

    async def run(self, call: Call, next_may_begin: Callable[[], None]) -> CallResult:
        """Gives every item the error."""
        return CallResult(outcomes=[self._error] * len(call), coding_s=0.0)

    async def close(self) -> None:
        """Nothing to give back."""
