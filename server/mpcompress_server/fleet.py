"""The codecs that run, each with a queue and executors of its own, so that they can be exchanged one by one.

An item keeps the codec that its header found. A codec that was taken out therefore lives on until the last of its items
is gone, and is closed then; new items find the new set.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import structlog

from mpcompress import registry
from mpcompress.codec import FeatureCodec
from mpcompress.picture.strips import cores
from mpcompress.registry import CodecSpec
from mpcompress_server.batching import Batching, BatchScheduler
from mpcompress_server.codecs import CodecSet, LoadedCodec, give_up
from mpcompress_server.counters import Counters
from mpcompress_server.executors import Executor, ThreadExecutor
from mpcompress_server.forwarder import Forwarder
from mpcompress_server.process_executor import ProcessExecutor
from mpcompress_server.remote_options import RemoteOptions
from mpcompress_server.remotes import RemoteServers
from mpcompress_server.scheduler import Job, Scheduler
from mpcompress_server.settings import Settings, SettingsError
from mpcompress_server.slots import Slots

_log = structlog.get_logger("mpcompress_server.fleet")


class CodecScheduler(Scheduler, Protocol):
    """A scheduler of one codec."""

    def waiting(self) -> dict[str, int]:
        """Jobs that wait, by codec id."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """What works for one codec. Knows its id only: whoever holds the codec itself keeps it from being closed."""

    codec_id: str
    executors: tuple[Executor, ...]
    scheduler: CodecScheduler

    @property
    def restarts(self) -> int:
        """Worker processes that were started again."""
        return sum(getattr(executor, "restarts", 0) for executor in self.executors)

    @property
    def ready(self) -> bool:
        """Whether one of its instances can run calls."""
        if isinstance(self.scheduler, Forwarder):
            return self.scheduler.ready
        return any(executor.ready for executor in self.executors) or not self.executors

    async def close(self) -> None:
        """Fails the jobs that wait; ends worker processes, waits for threads."""
        await asyncio.gather(self.scheduler.close(), *(executor.close() for executor in self.executors))


class Fleet:
    """A scheduler over all codecs of a server.

    Args:
        counters: told about every batch.
    """

    def __init__(self, counters: Counters) -> None:
        self.codecs = CodecSet([])
        self.on_change: Callable[[], None] = lambda: None
        """Called in the event loop when what `ready` says has changed for a codec."""
        self._remotes = RemoteServers(self._changed)
        self.slots: Slots | None = None
        """Of a worker: what all codecs share."""
        self._counters = counters
        self._running: weakref.WeakKeyDictionary[LoadedCodec, Running] = weakref.WeakKeyDictionary()
        self._retiring: dict[Running, asyncio.Task[None]] = {}
        self._past_restarts: Counter[str] = Counter()

    async def start_codec(self, loaded: LoadedCodec, settings: Settings) -> None:
        """Starts all instances of a codec; one that cannot start becomes unavailable.

        Raises:
            SettingsError: the connection to another server cannot be made as its entry says.
        """
        if loaded.entry.remote is not None:
            await self._connect(loaded, loaded.entry.remote)
            return
        if loaded.unavailable or loaded.codec is None or loaded.spec is None:
            return
        if settings.role == "vtm-worker":
            await self._start_in_slots(loaded, loaded.spec, settings)
            return
        devices: tuple[str | None, ...] = loaded.entry.devices or (None,)
        places = [device for device in devices for _ in range(loaded.entry.instances)]
        executors = [_executor(loaded, settings, device, index) for index, device in enumerate(places)]
        for executor in executors:
            executor.on_change = self._changed
        try:
            for executor in executors:
                await executor.start()
        except BaseException as error:
            for executor in executors:
                await executor.close()
            if not isinstance(error, Exception):
                raise
            give_up(loaded, error)
            return
        batching = Batching(max_batch=loaded.entry.max_batch, max_delay_s=loaded.entry.max_delay_ms / 1000)
        scheduler = BatchScheduler({loaded.id: executors}, {loaded.id: batching}, self._counters)
        await scheduler.start()
        self._running[loaded] = Running(codec_id=loaded.id, executors=tuple(executors), scheduler=scheduler)

    async def _start_in_slots(self, loaded: LoadedCodec, spec: CodecSpec, settings: Settings) -> None:
        if self.slots is None:
            self.slots = Slots(settings.worker.slots or cores(), self._counters)
        try:
            scheduler = await self.slots.codec(loaded, partial(registry.load, spec))
        except Exception as error:
            give_up(loaded, error)
            return
        self._running[loaded] = Running(codec_id=loaded.id, executors=(), scheduler=scheduler)

    async def _connect(self, loaded: LoadedCodec, options: RemoteOptions) -> None:
        try:
            loaded.remote = self._remotes.open(options)
        except SettingsError as error:
            raise SettingsError(f"codec {loaded.id}: {error}") from error
        scheduler = Forwarder(loaded.id, loaded.remote, self._remotes)
        self._running[loaded] = Running(codec_id=loaded.id, executors=(), scheduler=scheduler)
        await loaded.remote.wait_until_asked()

    def ready(self, loaded: LoadedCodec) -> bool:
        """Whether a codec can code: not when it is unavailable, nor while all its worker processes are in back-off."""
        running = self._running.get(loaded)
        return not loaded.unavailable and running is not None and running.ready

    def _changed(self) -> None:
        self.on_change()

    def exchange(self, codecs: CodecSet) -> None:
        """Makes these the codecs of new items. Those that are not among them close when their items are gone."""
        old, self.codecs = self.codecs, codecs
        kept = set(map(id, codecs))
        loop = asyncio.get_running_loop()
        for loaded in old:
            running = self._running.get(loaded)
            if id(loaded) not in kept and running is not None:
                gone = asyncio.Event()
                weakref.finalize(loaded, _tell, loop, gone.set).atexit = False
                self._retiring[running] = asyncio.create_task(self._retire(running, gone))

    async def discard(self, loaded: LoadedCodec) -> None:
        """Closes a codec that was started and never exchanged in."""
        running = self._running.pop(loaded, None)
        if running is not None:
            await running.close()

    async def _retire(self, running: Running, gone: asyncio.Event) -> None:
        await gone.wait()
        await running.close()
        self._past_restarts[running.codec_id] += running.restarts
        del self._retiring[running]
        _log.info("codec closed", codec=running.codec_id)

    # ------------------------------------------------------------------------------------------- as a Scheduler

    async def start(self) -> None:
        """Does nothing: codecs are started one by one."""

    def submit(self, job: Job) -> int | None:
        """Queues a job with its codec. Returns how many go before it, if that is known."""
        return self._running[job.loaded].scheduler.submit(job)

    def cancel(self, job: Job) -> None:
        """Drops a job: at once when it waits, before its next stage when it runs."""
        self._running[job.loaded].scheduler.cancel(job)

    def expected_s(self, codec_id: str, stream: Hashable, size_class: Hashable) -> float:
        """Seconds until a job that came now would be done, as far as that is known."""
        loaded = self.codecs.get(codec_id)
        running = None if loaded is None else self._running.get(loaded)
        return 0.0 if running is None else running.scheduler.expected_s(codec_id, stream, size_class)

    async def close(self) -> None:
        """Closes all codecs, whatever they do."""
        for task in list(self._retiring.values()):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await asyncio.gather(*(running.close() for running in [*self._running.values(), *self._retiring]))
        if self.slots is not None:
            await self.slots.close()

    # ------------------------------------------------------------------------------------------------ for metrics

    def waiting(self) -> dict[str, int]:
        """Jobs that wait, by codec id."""
        found: Counter[str] = Counter()
        for running in [*self._current(), *self._retiring]:
            found.update(running.scheduler.waiting())
        return dict(found)

    def restarts(self) -> dict[str, int]:
        """Worker processes started again since the server started, by codec id."""
        found = Counter(self._past_restarts)
        for running in [*self._current(), *self._retiring]:
            found[running.codec_id] += running.restarts
        return dict(found)

    def _current(self) -> Iterator[Running]:
        return (running for loaded in self.codecs if (running := self._running.get(loaded)) is not None)


def _tell(loop: asyncio.AbstractEventLoop, callback: Callable[[], object]) -> None:
    """A codec's last reference may go in any thread, and after the loop."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback)


def _executor(loaded: LoadedCodec, settings: Settings, device: str | None, index: int) -> Executor:
    codec, spec = loaded.codec, loaded.spec
    assert codec is not None
    assert spec is not None
    if device is not None:
        spec = replace(spec, options={**spec.options, "device": device})
    if loaded.entry.isolation == "process":
        bounds = settings.executors
        return ProcessExecutor(
            spec,
            plugins=settings.plugins,
            watchdog_s=bounds.watchdog_s,
            start_timeout_s=bounds.start_timeout_s,
            max_bytes=loaded.entry.max_worker_bytes,
        )
    # The first instance is the one that checks headers, the others are copies.
    shared = index == 0 and device is None
    load: Callable[[], FeatureCodec] = (lambda: codec) if shared else (lambda: registry.load(spec))
    return ThreadExecutor(load, f"{loaded.id}-{index}")
