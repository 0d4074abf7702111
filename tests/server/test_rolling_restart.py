"""Two servers behind one target are restarted in turn under load: no item fails, none is lost, none comes twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mpcompress_client import CompressionClient, RetryPolicy

HERE = Path(__file__).parent
CONFIG = """
plugins = ["mpc_test_codecs"]
grace_s = 30.0
[[codecs]]
id = "store"
family = "test_bytes"
"""
HEALTH = health_pb2.HealthCheckResponse
SPREAD = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))
TIMEOUT_S = 120.0
_POLL_S = 0.05


class Server:
    """A server process that can be restarted on its port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "server.toml"
        self._config.write_text(CONFIG)
        self.address = "127.0.0.1:0"
        self.start()

    def start(self) -> None:
        port_file = self._folder / "port"
        command = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(self._config)]
        command += ["--listen", self.address, "--port-file", str(port_file), "--log-format", "json"]
        self.log = self._folder / "log"
        path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("ab") as sink:
            self.process = subprocess.Popen(command, stderr=sink, env={**os.environ, "PYTHONPATH": path})
        latest = time.monotonic() + TIMEOUT_S
        while not port_file.exists() and time.monotonic() < latest:
            try:
                self.process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"the server ended: {self.log.read_text()}")
        self.address = port_file.read_text().strip()

    def restart(self) -> None:
        """SIGTERM, what its health says then, its end, and a new process."""
        with grpc.insecure_channel(self.address) as channel:
            request = health_pb2.HealthCheckRequest(service="codec/store")
            watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=TIMEOUT_S)
            assert next(watch).status == HEALTH.SERVING
            self.process.send_signal(signal.SIGTERM)
            assert next(watch).status == HEALTH.NOT_SERVING
            watch.cancel()
        assert self.process.wait(TIMEOUT_S) == 0
        self.start()


class Load(threading.Thread):
    """Items without a pause, there and back, each compared with what was sent."""

    def __init__(self, target: str, seed: int, options: tuple[tuple[str, str], ...]) -> None:
        super().__init__(daemon=True)
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self.results = 0
        self.resubmitted = 0
        self._client = CompressionClient(
            target,
            timeout_s=TIMEOUT_S,
            retry=RetryPolicy(attempts=20, max_backoff_s=0.5, reconnect_s=TIMEOUT_S),
            options=options,
        )
        random = np.random.default_rng(seed)
        self._tensors = [random.standard_normal((side, 500)).astype(np.float32) for side in (1, 30, 500)]
        self._sent: list[np.ndarray] = []

    def run(self) -> None:
        try:
            with self._client as client:
                units = client.compress_many(self._items(), codec="store", look_ahead=8, progress=self._heard)
                for number, tensor in enumerate(client.decompress_many(units, look_ahead=8, progress=self._heard)):
                    np.testing.assert_array_equal(tensor, self._sent[number], strict=True)
                    self.results = number + 1
            assert self.results == len(self._sent)
        except BaseException as error:  # for the test
            self.error = error

    def _items(self) -> Iterator[np.ndarray]:
        while not self.stop.is_set():
            self._sent.append(self._tensors[len(self._sent) % 3])
            yield self._sent[-1]

    def _heard(self, event: object) -> None:
        self.resubmitted += event.stage == "resubmitted"

    def advance(self, count: int) -> None:
        """Waits until so many more results have come. Fails when one never comes."""
        wanted, latest = self.results + count, time.monotonic() + TIMEOUT_S
        while self.results < wanted:
            assert self.error is None, self.error
            assert time.monotonic() < latest, f"no further result after {self.results}"
            self.join(_POLL_S)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    running = []
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            running.append(Server(tmp_path / name))
        yield running
    finally:
        for server in running:
            server.process.kill()
            server.process.wait()


@pytest.mark.parametrize("options", [(), (SPREAD,)], ids=["one after the other", "spread over both"])
def test_no_item_is_lost(servers, options):
    target = "ipv4:" + ",".join(server.address for server in servers)
    loads = [Load(target, seed, options) for seed in range(3)]
    for load in loads:
        load.start()
    for server in servers:
        for load in loads:
            load.advance(20)
        server.restart()
    for load in loads:
        load.advance(20)
        load.stop.set()
    for load in loads:
        load.join(TIMEOUT_S)
        assert load.error is None, load.error
        assert not load.is_alive()
    # The restarts met items under way: they were sent again, and came once.
    assert sum(load.resubmitted for load in loads) > 0
