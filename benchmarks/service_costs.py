"""What a measurement of the service needs: processes that end with it, and their CPU time beside this one's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mpcompress_client.cli.load import process_cpu_s

HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Wall and CPU seconds, of this process and of the server's."""

    wall_s: float
    here_s: float
    there_s: float

    @property
    def cpu_s(self) -> float:
        """Of both."""
        return self.here_s + self.there_s


def measure(run: Callable[[], object], server: subprocess.Popen[str] | None) -> Cost:
    """Runs something once."""
    there = process_cpu_s(server.pid) if server else 0.0
    here, wall = time.process_time(), time.perf_counter()
    run()
    wall, here = time.perf_counter() - wall, time.process_time() - here
    after = process_cpu_s(server.pid) if server else 0.0
    if there is None or after is None:
        raise SystemExit("CPU time of another process cannot be read here: this needs Linux")
    return Cost(wall_s=wall, here_s=here, there_s=after - there)


@contextmanager
def started(command: list[str], python: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    # Another Python gets this project, and has packages of its own.
    own = [str(HERE), str(HERE.parent), *(str(HERE.parent / name) for name in ("proto", "client", "server"))]
    path = os.pathsep.join(own if python != sys.executable else [*own, *filter(None, sys.path)])
    process = subprocess.Popen(
        [python, *command],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    """What a server writes into its port file."""
    while not path.exists() or not path.read_text().strip():
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.1)
    return path.read_text().strip()
