"""Files for one run of a program: private, and gone when the run is over, even if this process is killed.

On Linux they are anonymous memory that the program opens as /proc/self/fd/N; nothing ever has a name on a disk.
Elsewhere they lie in a private temporary directory.
"""

from __future__ import annotations

import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType

from mpcompress.errors import CodecCrashedError

__all__ = ["Scratch", "open_scratch"]


class Scratch(ABC):
    """Input and output files of one run; a context manager."""

    @abstractmethod
    def put(self, name: str, data: bytes | memoryview) -> str:
        """Makes a file with `data`; returns the path under which the program finds it."""

    @abstractmethod
    def take(self, name: str, limit_bytes: int) -> bytes:
        """The content of a file; empty if there is none. Raises CodecCrashedError above `limit_bytes`."""

    @property
    @abstractmethod
    def pass_fds(self) -> tuple[int, ...]:
        """File descriptors the program must inherit."""

    @abstractmethod
    def close(self) -> None:
        """Removes everything."""

    def __enter__(self) -> Scratch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Memory(Scratch):
    """Anonymous memory files."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}

    def put(self, name: str, data: bytes | memoryview) -> str:
        fd = self._fds[name] = os.memfd_create(f"mpcompress-{name}", os.MFD_CLOEXEC)
        rest = memoryview(data).cast("B")
        while rest:
            rest = rest[os.write(fd, rest) :]
        return f"/proc/self/fd/{fd}"

    def take(self, name: str, limit_bytes: int) -> bytes:
        fd = self._fds[name]
        _check(name, os.fstat(fd).st_size, limit_bytes)
        with os.fdopen(os.dup(fd), "rb") as file:
            file.seek(0)
            return file.read(limit_bytes)

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return tuple(self._fds.values())

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])


class _Directory(Scratch):
    """Files in a directory that only this user can enter."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="mpcompress-", ignore_cleanup_errors=True)

    def put(self, name: str, data: bytes | memoryview) -> str:
        path = Path(self._folder.name) / name
        path.write_bytes(data)
        return str(path)

    def take(self, name: str, limit_bytes: int) -> bytes:
        path = Path(self._folder.name) / name
        if not path.is_file():
            return b""
        _check(name, path.stat().st_size, limit_bytes)
        return path.read_bytes()

    @property
    def pass_fds(self) -> tuple[int, ...]:
        return ()

    def close(self) -> None:
        self._folder.cleanup()


def open_scratch() -> Scratch:
    """The best kind this platform has."""
    if hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir():
        return _Memory()
    return _Directory()


def _check(name: str, size: int, limit_bytes: int) -> None:
    if size > limit_bytes:
        raise CodecCrashedError(f"{name} has {size} bytes; at most {limit_bytes} can be right")
