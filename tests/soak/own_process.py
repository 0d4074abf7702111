"""The server under soak, in a process and a folder of its own, and what it holds on to."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODEC = "klt-imgfocus-vits14-final"
# Comes and goes with reloads.
EXTRA = "klt-imgfocus-vits14-block6"
# A plug-in of the server's tests that stores elements as they are, in worker processes.
ISOLATED = "store"
_PLUGINS = Path(__file__).parents[1] / "server"
CONFIG = f"""
plugins = ["mpc_test_codecs"]
[metrics]
listen = "127.0.0.1:0"
[limits]
max_item_bytes = 16777216
max_inflight_bytes = 134217728
max_unread_answers = 64
[[codecs]]
id = "{CODEC}"
[[codecs]]
id = "{ISOLATED}"
family = "test_bytes"
isolation = "process"
instances = 2
"""
CONFIGS = {
    "with another codec": f'{CONFIG}[[codecs]]\nid = "{EXTRA}"\n',
    "with a mistake": f'{CONFIG}[[codecs]]\nid = "{EXTRA}"\nfamily = "no such family"\n',
    "as at the start": CONFIG,
}
_POLL_S = 0.1


class SoakedServer:
    """A server process.

    Args:
        folder: for its files; nothing else is in it.
    """

    def __init__(self, folder: Path) -> None:
        self.config = folder / "server.toml"
        self.config.write_text(CONFIG)
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.log = folder / "server.log"
        port_file = folder / "port"
        command = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(self.config)]
        command += ["--listen", "127.0.0.1:0", "--port-file", str(port_file), "--log-format", "json"]
        with self.log.open("wb") as sink:
            environment = {**os.environ, "TMPDIR": str(self.temporary), "PYTHONPATH": str(_PLUGINS)}
            self.process = subprocess.Popen([*command, "--log-level", "warning"], stderr=sink, env=environment)
        while not port_file.exists():
            try:
                self.process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            raise RuntimeError(f"the server ended: {self.log.read_text()}")
        self.address = port_file.read_text().strip()

    def workers(self) -> list[int]:
        """Its worker processes."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return sorted(int(pid) for task in tasks for pid in task.read_text().split())

    def usage(self) -> dict[str, int]:
        """What it holds: resident bytes, descriptors, threads, processes, temporary files."""
        proc = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
        return {
            "rss_bytes": int(status["VmRSS"].split()[0]) << 10,
            "descriptors": len(list((proc / "fd").iterdir())),
            "threads": int(status["Threads"]),
            "processes": len(self.workers()),
            "temporary files": sum(1 for path in self.temporary.rglob("*") if path.is_file()),
        }


@contextmanager
def soaked_server(folder: Path) -> Iterator[SoakedServer]:
    """Starts a server; ends it with SIGTERM."""
    server = SoakedServer(folder)
    try:
        yield server
        server.process.terminate()
        server.process.wait(60)
    finally:
        server.process.kill()
        server.process.wait()
