"""A codec in a supervised process: when it crashes, hangs or runs out of memory, only the call in it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import structlog

from mpcompress.errors import CodecCrashedError
from mpcompress.registry import CodecSpec
from mpcompress_server.calls import Call, CallResult
from mpcompress_server.worker import Hello
from mpcompress_server.worker_process import WorkerProcess

_log = structlog.get_logger("mpcompress_server.workers")

# After failed starts, and crashes without a good call in between: do not burn a core on a codec that cannot run.
_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
# Items that come while a worker may not start yet wait this long rather than fail.
_PATIENCE_S = 5.0


class ProcessExecutor:
    """One worker process, started again when it dies.

    Args:
        spec: the codec.
        plugins: modules that the worker imports first.
        watchdog_s: a call that takes longer has hung.
        start_timeout_s: loading and warming up may take this long.
        max_bytes: memory that the worker may take beyond what it has when it is warm; None: no bound.
    """

    def __init__(
        self,
        spec: CodecSpec,
        *,
        plugins: tuple[str, ...],
        watchdog_s: float,
        start_timeout_s: float,
        max_bytes: int | None = None,
    ) -> None:
        self._hello = Hello(
            parent=os.getpid(),
            plugins=plugins,
            max_bytes=max_bytes,
            spec={"id": spec.id, "family": spec.family, "weights": spec.weights, "options": dict(spec.options)},
        )
        self._watchdog_s = watchdog_s
        self._start_timeout_s = start_timeout_s
        # The kernel's "die with your parent" means the thread that started the worker: this one, which stays.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"{spec.id}-worker")
        self._lock = threading.Lock()
        self._worker: WorkerProcess | None = None
        self._closing = threading.Event()
        self._failures = 0
        self._not_before = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next_start: asyncio.TimerHandle | None = None
        self.restarts = 0
        self.pause_s = 0.0
        """How long the next worker had to wait after the last one failed, seconds."""
        self.ready = False
        """Whether calls can be run now, or as soon as a worker that died for the first time is replaced."""
        self.on_change: Callable[[], None] = lambda: None
        """Called in the event loop when `ready` has changed."""

    async def start(self) -> None:
        """Starts the worker. Raises what loading raises there."""
        self._loop = asyncio.get_running_loop()
        await self._loop.run_in_executor(self._pool, self._start)

    async def run(self, call: Call, next_may_begin: Callable[[], None]) -> CallResult:
        """Runs one call; a worker that dies in it gives every item of it a CodecCrashedError."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._run, call)

    async def close(self) -> None:
        """Ends the worker at once; a call that is still in it fails."""
        with self._lock:
            self._closing.set()
            if self._worker is not None:
                self._worker.kill()
        if self._next_start is not None:
            self._next_start.cancel()
        await asyncio.get_running_loop().run_in_executor(None, self._shut_down)

    def _shut_down(self) -> None:
        self._pool.shutdown()
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _run(self, call: Call) -> CallResult:
        try:
            if self._worker is None:
                self._start()
            assert self._worker is not None
            result = self._worker.run(call, self._watchdog_s)
        except CodecCrashedError as error:
            self._bury(error)
            result = CallResult(outcomes=[error] * len(call), coding_s=0.0)
        else:
            if any(isinstance(outcome, MemoryError) for outcome in result.outcomes):
                # What it still holds, or has cut into pieces, nobody knows.
                self._bury(CodecCrashedError("it was out of memory"))
            else:
                self._failures = 0
        return result

    def _start(self) -> None:
        wait_s = self._not_before - time.monotonic()
        if wait_s > _PATIENCE_S or (wait_s > 0 and self._closing.wait(wait_s)) or self._closing.is_set():
            raise CodecCrashedError("the codec's process could not be started; it will be tried again")
        try:
            worker = WorkerProcess(self._hello)
        except OSError as error:  # no memory or no descriptors for another process: perhaps later
            self._failed(at_start=True)
            raise CodecCrashedError(f"the codec's process could not be started: {error.strerror}") from error
        with self._lock:
            self._worker = worker
        if self._closing.is_set():  # while it was being made
            worker.kill()
        try:
            worker.wait_until_ready(self._start_timeout_s)
        except Exception:
            self._bury(None)
            raise
        self._is_ready(True)

    def _restart(self) -> None:
        """Starts a new worker before somebody asks: a codec that says it is not ready would never be asked."""
        if self._worker is not None or self._closing.is_set():
            return
        try:
            self._start()
        except Exception as error:
            _log.error("worker did not start again", codec=self._hello.spec["id"], error=str(error))

    def _bury(self, cause: CodecCrashedError | None) -> None:
        """Ends a worker that failed, if there is one, and says when the next may start: the first time at once."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is None:
            return
        worker.close()
        if self._closing.is_set():  # killed because nobody needs it any more: no failure
            return
        self.restarts += 1
        self._failed(at_start=cause is None)
        if cause is not None:
            _log.error("worker died", codec=self._hello.spec["id"], pid=worker.pid, error=cause.message)

    def _failed(self, *, at_start: bool) -> None:
        """Counts a failure and lets the next worker start after a pause that grows with their number."""
        self._failures += 1
        doublings = self._failures - (1 if at_start else 2)
        self.pause_s = 0.0 if doublings < 0 else min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2 ** min(doublings, 30))
        self._not_before = time.monotonic() + self.pause_s
        if self.pause_s:
            self._is_ready(False)
        self._in_loop(self._plan_start)

    def _plan_start(self) -> None:
        """In the event loop: a timer for the next start."""

        def start() -> None:
            with self._lock:
                if not self._closing.is_set():
                    self._pool.submit(self._restart)

        if self._next_start is not None:
            self._next_start.cancel()
        if self._loop is not None and not self._closing.is_set():
            self._next_start = self._loop.call_later(max(0.0, self._not_before - time.monotonic()), start)

    def _is_ready(self, ready: bool) -> None:
        if ready is not self.ready:
            self.ready = ready
            self._in_loop(self.on_change)

    def _in_loop(self, callback: Callable[[], None]) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody needs to know
                self._loop.call_soon_threadsafe(callback)
