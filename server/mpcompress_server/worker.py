"""The process that runs one codec instance for a server: `python -m mpcompress_server.worker SOCKET ARENA`.

It answers one message after the other over an inherited socket, takes tensors from and puts them into inherited
memory, and dies with its parent. Started by `process_executor`; nobody else talks to it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mpcompress import registry
from mpcompress.codec import FeatureCodec
from mpcompress.errors import MpcompressError
from mpcompress_server.allocator import return_freed_memory
from mpcompress_server.arena import Arena, Ref, view
from mpcompress_server.calls import Call, CallResult, CompressCall, Outcome, run_call
from mpcompress_server.codecs import import_plugins
from mpcompress_server.dropping import Dropped, DroppedError

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Hello:
    """First message to a worker: what to load."""

    parent: int
    plugins: tuple[str, ...]
    max_bytes: int | None
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call: arrays are refs into the arena of `size` bytes.

    Args:
        call: with refs in the place of arrays.
        flags: which items are dropped meanwhile.
        outputs: where decompressed tensors go.
        size: of the arena.
    """

    call: Call
    flags: Ref
    outputs: list[dict[str, Ref]]
    size: int


class WorkerBugError(Exception):
    """An exception in a worker that the library does not raise on purpose; the text is its traceback."""


def main() -> None:
    """Loads the codec it is told to, then serves calls until the socket closes."""
    return_freed_memory()
    connection, arena = Connection(int(sys.argv[1])), Arena(int(sys.argv[2]))
    try:
        hello: Hello = connection.recv()
        _die_with(hello.parent)
        _volunteer()
        try:
            import_plugins(hello.plugins)
            codec = registry.load(registry.CodecSpec(**hello.spec))
            codec.warm_up()
            _limit_memory(hello.max_bytes)
        except Exception as error:
            connection.send(_portable(error))
            return
        connection.send(None)
        while True:
            request: Request = connection.recv()
            connection.send(_serve(codec, arena, request))
    except (EOFError, ConnectionError):
        return


def _serve(codec: FeatureCodec, arena: Arena, request: Request) -> CallResult:
    memory = arena.map(request.size)
    dropped = Dropped(len(request.call), view(memory, request.flags))
    result = run_call(codec, _with_arrays(request.call, memory, dropped))
    outcomes: list[Outcome] = []
    for index, outcome in enumerate(result.outcomes):
        if isinstance(outcome, Exception):
            outcomes.append(_portable(outcome))
        elif isinstance(outcome, dict):
            for name, ref in request.outputs[index].items():
                view(memory, ref)[...] = outcome[name]
            outcomes.append({})
        else:
            outcomes.append(outcome)
    return replace(result, outcomes=outcomes)


def _with_arrays(call: Any, memory: Any, dropped: Dropped) -> Any:
    """Replaces refs by arrays, and flags that nobody sets by those that the server sets."""
    if isinstance(call, CompressCall):
        return replace(call, inputs=[_views(item, memory) for item in call.inputs], dropped=dropped)
    units = [replace(unit, context=_views(unit.context, memory)) for unit in call.units]
    return replace(call, units=units, dropped=dropped)


def _views(refs: Any, memory: Any) -> Any:
    return {name: view(memory, ref) for name, ref in refs.items()}


def _portable(error: Exception) -> Exception:
    """An exception that the server can unpickle, whatever it was."""
    if isinstance(error, MemoryError):
        return MemoryError()  # numpy's own kind may not come out of a pickle
    if isinstance(error, (MpcompressError, DroppedError, ImportError)):
        return error.with_traceback(None)
    return WorkerBugError("".join(traceback.format_exception(error)))


def _limit_memory(max_bytes: int | None) -> None:
    """Bounds private memory from now on: what is beyond is a MemoryError here, or the end of this process alone.

    Shared memory, files and reserved addresses do not count, as they do not with the limit on address space.
    """
    if max_bytes is not None and sys.platform == "linux":
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        now_kib = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
        limit = now_kib * 1024 + max_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _volunteer() -> None:
    """When the machine is out of memory, the kernel shall end this process rather than the server."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")


def _die_with(parent: int) -> None:
    """Asks the kernel for a SIGKILL when the server dies: a codec that hangs would not notice the closed socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise EOFError


if __name__ == "__main__":
    # Under its real name, so that what it pickles has the classes that the server knows.
    from mpcompress_server.worker import main as run

    run()
