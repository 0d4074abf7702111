"""The server under soak, in a process and a folder of its own, and what it holds on to."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.soak.cases import PLUGINS, write_configs

_POLL_S = 0.1
_SAMPLE_S = 1.0

Usage = dict[str, int]


class SoakedServer:
    """A server process.

    Args:
        folder: for its files; nothing else is in it.
    """

    def __init__(self, folder: Path) -> None:
        self.configs = write_configs(folder)
        self.config = folder / "server.toml"
        self.config.write_text(list(self.configs.values())[-1])
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "server.log"
        port_file = folder / "port"
        command = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(self.config)]
        command += ["--listen", "127.0.0.1:0", "--port-file", str(port_file), "--log-format", "json"]
        path = os.pathsep.join([str(PLUGINS), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("wb") as sink:
            environment = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": path}
            self.process = subprocess.Popen([*command, "--log-level", "warning"], stderr=sink, env=environment)
        while not port_file.exists():
            try:
                self.process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"the server ended: {self.log.read_text()}")
        self.address = port_file.read_text().strip()

    def children(self) -> list[int]:
        """Its processes: workers, and encoders that run."""
        found: list[int] = []
        for task in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            try:
                found += map(int, task.read_text().split())
            except OSError:  # a thread that has just ended
                continue
        return sorted(found)

    def usage(self) -> Usage:
        """What it holds: resident bytes, descriptors, threads, processes, temporary files."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "resident bytes": int(status["VmRSS"].split()[0]) << 10,
            "descriptors": len(os.listdir(proc / "fd")),  # noqa: PTH208 - they come and go while they are counted
            "threads": int(status["Threads"]),
            "processes": len(self.children()),
            "temporary files": sum(1 for path in self.temporary.rglob("*") if path.is_file()),
        }


class Sampler(threading.Thread):
    """Looks at a server every second.

    Args:
        server: whose `usage` is taken.
        done: ends it.
    """

    def __init__(self, server: SoakedServer, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self.samples: list[Usage] = []
        self._server, self._done = server, done

    def run(self) -> None:
        while not self._done.wait(_SAMPLE_S):
            self.samples.append(self._server.usage())


@contextmanager
def soaked_server(folder: Path) -> Iterator[SoakedServer]:
    """Starts a server; ends it with SIGTERM."""
    server = SoakedServer(folder)
    try:
        yield server
        server.process.terminate()
        if server.process.wait(60):
            raise RuntimeError(f"the server ended with {server.process.returncode}: {server.log.read_text()[-2000:]}")
    finally:
        server.process.kill()
        server.process.wait()
