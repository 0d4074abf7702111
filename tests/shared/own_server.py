"""A real server in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.05
_START_S = 120


@contextmanager
def own_server(folder: Path, config: str, *arguments: str) -> Iterator[str]:
    """Starts `mpcompress-server serve` with `config` in `folder`; gives its address."""
    path, port_file, log = folder / "server.toml", folder / "server.port", folder / "server.log"
    path.write_text(config)
    command = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(path), *arguments]
    command += ["--listen", "127.0.0.1:0", "--port-file", str(port_file)]
    # As many threads as this process has: another number may round products of float32 matrices otherwise, and what
    # comes back is compared in every bit.
    environment = {"OPENBLAS_NUM_THREADS": str(os.cpu_count()), **os.environ}
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)
    try:
        latest = time.monotonic() + _START_S
        while not port_file.exists() and time.monotonic() < latest:
            try:
                process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(f"the server ended: {log.read_text()}")
        if not port_file.exists():
            raise AssertionError(f"the server did not start: {log.read_text()}")
        yield port_file.read_text().strip()
    finally:
        process.terminate()
        process.wait(30)
