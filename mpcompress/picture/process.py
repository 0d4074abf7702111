"""Runs a program that may hang, crash, flood its outputs or outlive its caller, and is none the worse for it.

The program gets its own process group and limits of CPU seconds, memory and file size (Linux kills it with its parent;
elsewhere the CPU limit ends it). Its outputs are drained; their tails are kept. The group is killed, not asked, on
cancel, timeout and every error: it owns nothing worth cleaning up, its files live in a `Scratch`.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcompress.errors import CodecCrashedError, CodecUnavailableError
from mpcompress.picture.cancel import CancelToken, raise_if_cancelled

__all__ = ["Finished", "Limits", "run"]

_LAUNCHER = str(Path(__file__).with_name("_launch.py"))
_LAUNCH_FAILED = 125
_TAIL_BYTES = 2000
_POLL_S = 0.05
# Programs need to find their libraries and a writable nothing; they do not need the caller's secrets.
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a program may use. Reaching any of them ends it.

    Args:
        wall_s: seconds from start to end.
        cpu_s: CPU seconds.
        memory_bytes: address space (Linux only).
        file_bytes: size of each file it writes.
    """

    wall_s: float
    cpu_s: int
    memory_bytes: int
    file_bytes: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """How a program ended: exit status (negative: the signal that killed it) and the ends of its outputs."""

    returncode: int
    output: str
    errors: str

    @property
    def how(self) -> str:
        """For messages: exit status or signal, with the last thing it said."""
        ending = f"exit status {self.returncode}"
        if self.returncode < 0:
            ending = f"signal {signal.Signals(-self.returncode).name}"
        said = (self.errors.strip() or self.output.strip())[-500:]
        return f"{ending}: {said}" if said else ending


def run(
    argv: Sequence[str],
    *,
    limits: Limits,
    what: str,
    cancel: CancelToken | None = None,
    pass_fds: Sequence[int] = (),
    tail_bytes: int = _TAIL_BYTES,
) -> Finished:
    """Runs `argv` to its end.

    Args:
        argv: absolute path of a program and its arguments; never seen by a shell.
        limits: see Limits.
        what: the program in words, for messages ("the VTM encoder").
        cancel: gives up when set.
        pass_fds: file descriptors the program inherits under the same numbers.
        tail_bytes: how much of the end of each output to keep.

    Raises:
        CodingCancelledError: `cancel` was set.
        CodecCrashedError: it ran past its wall or CPU limit.
        CodecUnavailableError: it cannot be started.
    """
    raise_if_cancelled(cancel)
    numbers = (os.getpid(), limits.cpu_s, limits.memory_bytes, limits.file_bytes)
    command = [sys.executable, "-I", "-S", _LAUNCHER, *(str(number) for number in numbers), *argv]
    environment = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ} | {"LC_ALL": "C"}
    with subprocess.Popen(  # noqa: S603 - an argument list that this package built
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        pass_fds=tuple(pass_fds),
        env=environment,
        cwd="/",
    ) as process:
        try:
            tails = _drain(process, time.monotonic() + limits.wall_s, cancel, what, tail_bytes)
        finally:
            # Before the leader is reaped: until then the group's number cannot become someone else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            returncode = process.wait()
    output, errors = (bytes(tail).decode("utf-8", "replace") for tail in tails)
    if returncode == _LAUNCH_FAILED and errors.startswith("cannot run "):
        raise CodecUnavailableError(f"{what}: {errors.strip()}")
    if returncode == -signal.SIGXCPU:
        raise CodecCrashedError(f"{what} used more than {limits.cpu_s} CPU seconds and was stopped")
    return Finished(returncode=returncode, output=output, errors=errors)


def _drain(
    process: subprocess.Popen[bytes], deadline: float, cancel: CancelToken | None, what: str, tail_bytes: int
) -> tuple[bytearray, bytearray]:
    """Reads both outputs until the program has ended; returns their tails."""
    tails = (bytearray(), bytearray())
    with selectors.DefaultSelector() as selector:
        for stream, tail in zip((process.stdout, process.stderr), tails, strict=True):
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, tail)
        ended = False
        while True:
            # After the end, what is still in the pipes is read without waiting: a grandchild may hold them open.
            ready = selector.select(0 if ended else _POLL_S) if selector.get_map() else []
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                del key.data[:-tail_bytes]
                if not data:
                    selector.unregister(key.fileobj)
            if ended and (not ready or not selector.get_map()):
                return tails
            ended = ended or _has_ended(process, wait=not selector.get_map())
            raise_if_cancelled(cancel)
            if time.monotonic() > deadline:
                raise CodecCrashedError(f"{what} ran past its time limit and was stopped")


def _has_ended(process: subprocess.Popen[bytes], *, wait: bool) -> bool:
    """Whether the program has ended, without reaping it where the platform can; waits a moment if `wait`."""
    if hasattr(os, "waitid"):
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    else:
        ended = process.poll() is not None
    if not ended and wait:
        time.sleep(_POLL_S)
    return ended
