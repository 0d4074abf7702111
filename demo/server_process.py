"""A real `mpcompress-server` in a process of its own, on a free port, for as long as a `with` block lasts."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["ServerDiedError", "running_server"]

_START_S = 180  # compiling the coder takes seconds on a fast machine, and happens once; then starting takes one
_STOP_S = 10
_LOG_LINES = 20


class ServerDiedError(RuntimeError):
    """The server ended, or never started to serve; the message ends with the last lines of its log."""


def _command() -> list[str]:
    """Return how to start the server that belongs to this interpreter's environment."""
    script = Path(sys.executable).with_name("mpcompress-server")
    if not script.is_file():
        raise ServerDiedError(f"no {script.name} beside {sys.executable}: pip install -e '.[demo]'")
    return [str(script), "serve", "--listen", "127.0.0.1:0"]


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:]) or "(it wrote nothing)"


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """Start the server, yield its ``"127.0.0.1:PORT"`` once it serves, and stop it however the block ends.

    Raises:
        ServerDiedError: it did not start, or was found dead when the block ended.
    """
    with tempfile.TemporaryDirectory(prefix="mpcompress-demo-") as folder:
        port_file, log = Path(folder) / "port", Path(folder) / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [*_command(), "--port-file", str(port_file)], stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
        try:
            yield f"127.0.0.1:{_wait_for_port(process, port_file, log)}"
        except Exception as error:
            # A dead server explains whatever its client stumbled over, and its log says why it died.
            if process.poll() is not None and not isinstance(error, ServerDiedError):
                raise ServerDiedError(f"the server ended with status {process.returncode}:\n{_tail(log)}") from error
            raise
        finally:
            _stop(process)


def _wait_for_port(process: subprocess.Popen[bytes], port_file: Path, log: Path) -> int:
    """Wait until the server has written its port, which it does when it serves."""
    deadline = time.monotonic() + _START_S
    while not port_file.exists():
        try:
            status = process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                raise ServerDiedError(f"the server does not serve after {_START_S} s:\n{_tail(log)}") from None
        else:
            raise ServerDiedError(f"the server ended with status {status}:\n{_tail(log)}")
    # "PORT" or "HOST:PORT"
    return int(port_file.read_text().strip().rpartition(":")[2])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to finish, then insist."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
