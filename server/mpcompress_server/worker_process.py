"""One worker process as its server sees it: starts it, hands it calls through shared memory, says how it died."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from mpcompress.codec import Array, TensorSpec
from mpcompress.errors import CodecCrashedError
from mpcompress_server.arena import Arena, Layout, Ref, view
from mpcompress_server.calls import Call, CallResult, CompressCall
from mpcompress_server.worker import Hello, Request


class WorkerProcess:
    """A process with its socket and its arena; used by one thread at a time, but for `kill`.

    Args:
        hello: what it is to load.

    Raises:
        OSError: there is no memory, or no descriptor, for another process.
    """

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
