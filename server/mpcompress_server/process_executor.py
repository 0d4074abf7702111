"""A codec in a supervised process: when it crashes, hangs or runs out of memory, only the call in it fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import structlog

from mpcompress.codec import Array, TensorSpec
from mpcompress.errors import CodecCrashedError
from mpcompress.registry import CodecSpec
from mpcompress_server.arena import Arena, Layout, Ref, view
from mpcompress_server.calls import Call, CallResult, CompressCall
from mpcompress_server.worker import Hello, Request

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
        self._worker: _Worker | None = None
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
            worker = _Worker(self._hello)
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


class _Worker:
    """One process with its socket and its arena."""

    def __init__(self, hello: Hello) -> None:
        ours, theirs = socket.socketpair()
        self._arena = Arena.create()
        # The worker finds what this process finds, but not what lies in the current directory.
        path = os.pathsep.join(entry for entry in sys.path if entry)
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    *(sys.executable, "-P", "-m", "mpcompress_server.worker"),
                    *(str(theirs.fileno()), str(self._arena.descriptor)),
                ],
                pass_fds=(theirs.fileno(), self._arena.descriptor),
                stdin=subprocess.DEVNULL,
                stdout=sys.__stderr__.fileno() if sys.__stderr__ else subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                # Ctrl-C in a terminal goes to the whole group; the worker ends when the server has finished.
                start_new_session=True,
            )
        finally:
            theirs.close()
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        self.pid = self._process.pid
        self._connection.send(hello)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Waits for the codec to be loaded. Raises what loading raised."""
        error = self._receive(timeout_s)
        if error is not None:
            raise error

    def run(self, call: Call, timeout_s: float) -> CallResult:
        """Runs one call. Raises CodecCrashedError when the process dies or hangs in it."""
        layout = Layout()
        flags = layout.place(TensorSpec(name="dropped", dtype="int8", shape=(len(call),)))
        inputs: list[tuple[Ref, Array]] = []
        stripped = _strip(call, layout, inputs)
        outputs: list[dict[str, Ref]] = []
        if not isinstance(call, CompressCall):
            outputs = [{spec.name: layout.place(spec) for spec in specs} for specs in call.outputs]
        self._arena.resize(layout.size)
        with self._arena.map(layout.size) as memory:
            for ref, array in inputs:
                view(memory, ref)[...] = array
            call.dropped.mirror(view(memory, flags))
            try:
                self._connection.send(Request(call=stripped, flags=flags, outputs=outputs, size=layout.size))
                result: CallResult = self._receive(timeout_s)
            except OSError as error:
                raise self._obituary() from error
            finally:
                call.dropped.mirror(None)
            for index, refs in enumerate(outputs):
                if isinstance(result.outcomes[index], dict):
                    result.outcomes[index] = {name: np.array(view(memory, ref)) for name, ref in refs.items()}
        self._arena.resize(0)
        return result

    def kill(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()

    def close(self) -> None:
        """Ends the process and gives back what belonged to it."""
        self._process.kill()
        self._process.wait()
        self._connection.close()
        self._arena.close()

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._connection.poll(timeout_s):
                raise CodecCrashedError(f"the codec's process gave no sign of life for {timeout_s:g} s and was ended")
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._obituary() from error

    def _obituary(self) -> CodecCrashedError:
        self._process.kill()
        status = self._process.wait()
        how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
        return CodecCrashedError(f"the codec's process ended {how} during this item")


def _strip(call: Call, layout: Layout, arrays: list[tuple[Ref, Array]]) -> Any:
    """The call with refs in the place of arrays, which are put into `arrays`."""

    def refs(tensors: Mapping[str, Array]) -> Any:
        found = {}
        for name, array in tensors.items():
            found[name] = layout.place(TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape))
            arrays.append((found[name], array))
        return found

    if isinstance(call, CompressCall):
        return replace(call, inputs=[refs(item) for item in call.inputs])
    return replace(call, units=[replace(unit, context=refs(unit.context)) for unit in call.units])
