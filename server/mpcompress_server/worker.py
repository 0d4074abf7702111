"""The process that runs one codec instance for a server: `python -m mpcompress_server.worker SOCKET ARENA`.

It answers one message after the other over an inherited socket, takes tensors from and puts them into inherited
memory, and dies with its parent. Started by `process_executor`; nobody else talks to it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from mpcompress import registry
from mpcompress.codec import FeatureCodec
from mpcompress.errors import MpcompressError
from mpcompress_server.arena import Arena, Ref, view
from mpcompress_server.calls import Call, CallResult, CompressCall, Outcome, run_call
from mpcompress_server.codecs import import_plugins

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class Hello:
    """First message to a worker: what to load."""

    parent: int
    plugins: tuple[str, ...]
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One call: arrays are refs into the arena of `size` bytes; `outputs` are where decompressed tensors go."""

    call: Call
    outputs: list[dict[str, Ref]]
    size: int


class WorkerBugError(Exception):
    """An exception in a worker that the library does not raise on purpose; the text is its traceback."""


def main() -> None:
    """Loads the codec it is told to, then serves calls until the socket closes."""
    connection, arena = Connection(int(sys.argv[1])), Arena(int(sys.argv[2]))
    try:
        hello: Hello = connection.recv()
        _die_with(hello.parent)
        try:
            import_plugins(hello.plugins)
            codec = registry.load(registry.CodecSpec(**hello.spec))
            codec.warm_up()
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
    memory = arena.map(request.size) if request.size else b""
    result = run_call(codec, _with_arrays(request.call, memory))
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


def _with_arrays(call: Any, memory: Any) -> Any:
    """Replaces refs by arrays."""
    if isinstance(call, CompressCall):
        return replace(call, inputs=[_views(item, memory) for item in call.inputs])
    return replace(call, units=[replace(unit, context=_views(unit.context, memory)) for unit in call.units])


def _views(refs: Any, memory: Any) -> Any:
    return {name: view(memory, ref) for name, ref in refs.items()}


def _portable(error: Exception) -> Exception:
    """An exception that the server can unpickle, whatever it was."""
    if isinstance(error, (MpcompressError, MemoryError, ImportError)):
        return error.with_traceback(None)
    return WorkerBugError("".join(traceback.format_exception(error)))


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
