"""Workers for pictures, each a real process that a test may kill, and the encoders that they have started."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import psutil
import pytest

FAKES = Path(__file__).resolve().parents[1] / "fakes"
WAIT_S = 60.0

needs_encoders = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("av", "imageio_ffmpeg")), reason="needs the extra [vvc]"
)


def stand_in() -> ModuleType:
    """The module that stands in for VTM."""
    spec = importlib.util.spec_from_file_location("vtm_stand_in", FAKES / "vtm_stand_in.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class WorkerProcess:
    """`mpcompress-server serve --role vtm-worker`."""

    def __init__(self, folder: Path, *, vtm: Path | None, slots: int = 1, listen: str = "127.0.0.1:0", more: str = ""):
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "log"
        port_file = folder / "port"
        port_file.unlink(missing_ok=True)
        config = folder / "worker.toml"
        codecs = "".join(
            f'[[codecs]]\nid = "{codec_id}"\n' for codec_id in ("vtm-dinov2-cls", "vtm-dinov2-dpt", "x265-dinov2-cls")
        )
        config.write_text(f"{more}\n[worker]\nslots = {slots}\n{codecs}")
        words = [sys.executable, "-m", "mpcompress_server", "serve", "--role", "vtm-worker", "--config", str(config)]
        words += ["--listen", listen, "--port-file", str(port_file), "--log-format", "json"]
        environment = {key: value for key, value in os.environ.items() if key != "VTM_HOME"}
        if vtm is not None:
            environment["VTM_HOME"] = str(vtm)
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(words, stdout=sink, stderr=sink, env=environment)
        self._port_file = port_file
        self.address = ""

    async def ready(self) -> None:
        """Waits until it serves."""

        def serves() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self._port_file.exists()

        await until(serves)
        self.address = self._port_file.read_text().strip()

    def encoders(self) -> list[int]:
        """Pids of the encoders that it runs."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child.pid for child in children if "EncoderApp" in " ".join(child.cmdline())]
        except psutil.NoSuchProcess:
            return []

    def events(self, name: str) -> list[dict[str, object]]:
        """What it logged under that name."""
        records = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [record for record in records if record["event"] == name]

    def kill(self) -> None:
        """Ends it as a lost machine would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@contextmanager
def worker_processes() -> Iterator[Callable[..., WorkerProcess]]:
    """Starts workers, and ends them."""
    workers: list[WorkerProcess] = []

    def start(folder: Path, **options: object) -> WorkerProcess:
        workers.append(WorkerProcess(folder, **options))  # type: ignore[arg-type]
        return workers[-1]

    try:
        yield start
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.kill()


async def until(condition: Callable[[], object]) -> None:
    """Waits until something is so, but not for ever."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.02)
