"""A real server that is killed, drained and started again under running calls: no item is lost, none is wrong."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FINAL

from mpcompress_client import AsyncCompressionClient, CompressionClient, RetryPolicy, ServerUnavailableError

ITEMS = 40
# A loaded machine starts a server slowly.
PATIENT = RetryPolicy(attempts=20, max_backoff_s=1.0, reconnect_s=300.0)
TIMEOUT_S = 400.0
_POLL_S = 0.05


class Server:
    """A server process that can be ended and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "server.toml"
        self._config.write_text(f'grace_s = 20.0\n[[codecs]]\nid = "{FINAL}"\n')
        self.target = "127.0.0.1:0"
        self._starts = 0
        self.start()
        self.wait_until_ready()

    def start(self) -> None:
        self._starts += 1
        self._port_file = self._folder / f"port{self._starts}"
        command = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(self._config)]
        command += ["--listen", self.target, "--port-file", str(self._port_file)]
        self._log = self._folder / f"log{self._starts}"
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(command, stdout=sink, stderr=sink)

    def wait_until_ready(self) -> None:
        while not self._port_file.exists():
            try:
                self._process.wait(_POLL_S)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"the server ended: {self._log.read_text()}")
        self.target = self._port_file.read_text().strip()

    def end(self, how: signal.Signals) -> None:
        self._process.send_signal(how)
        self._process.wait(60)

    def restart(self, how: signal.Signals) -> None:
        self.end(how)
        self.start()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    if running._process.poll() is None:
        running.end(signal.SIGKILL)


@pytest.fixture
def batches(final: np.ndarray) -> list[np.ndarray]:
    """Items large enough that several are under way when the server ends, (16, 257, 384) each."""
    return [np.concatenate([tensor[None]] * 16) for tensor in final]


@pytest.mark.usefixtures("no_thread_leak")
def test_killed_and_drained_under_compress_many(server, batches):
    with CompressionClient(server.target, timeout_s=TIMEOUT_S, retry=PATIENT) as client:
        expected = [client.compress(tensor, codec=FINAL, qp=20) for tensor in batches]
        events: list[str] = []
        units = client.compress_many(
            (batches[number % 4] for number in range(ITEMS)),
            codec=FINAL,
            qp=20,
            look_ahead=8,
            progress=lambda event: events.append(event.stage),
        )
        for number, unit in enumerate(units):
            assert unit == expected[number % 4], number
            if number == 10:
                server.restart(signal.SIGKILL)
            elif number == 25:
                server.restart(signal.SIGTERM)
        assert number == ITEMS - 1
        assert events.count("done") == ITEMS
        assert events.count("resubmitted") > 0
        tensors = [client.decompress(unit) for unit in expected]
        for number, tensor in enumerate(client.decompress_many(expected[n % 4] for n in range(ITEMS))):
            np.testing.assert_array_equal(tensor, tensors[number % 4])
            if number == 10:
                server.restart(signal.SIGKILL)


async def test_killed_and_drained_under_asyncio(server, batches):
    async with AsyncCompressionClient(server.target, timeout_s=TIMEOUT_S, retry=PATIENT) as client:
        expected = [await client.compress(tensor, codec=FINAL, qp=20) for tensor in batches]
        seen: dict[int, object] = {}
        many = client.compress_many((batches[number % 4] for number in range(ITEMS)), codec=FINAL, qp=20, look_ahead=8)
        async for index, unit in many.as_completed():
            seen[index] = unit
            if len(seen) == 10:
                server.restart(signal.SIGKILL)
            elif len(seen) == 25:
                server.restart(signal.SIGTERM)
    assert sorted(seen) == list(range(ITEMS))
    assert all(unit == expected[index % 4] for index, unit in seen.items())


def test_one_call_waits_for_a_server_that_it_knew(server, final):
    with CompressionClient(server.target, timeout_s=TIMEOUT_S, retry=PATIENT) as client:
        unit = client.compress(final[0], codec=FINAL, qp=20)
        server.restart(signal.SIGKILL)
        assert client.compress(final[0], codec=FINAL, qp=20) == unit
    with CompressionClient(server.target, retry=None) as client:
        client.limits()
        server.end(signal.SIGKILL)
        results = list(client.compress_many(final, codec=FINAL, errors="return"))
        assert [type(result) for result in results] == [ServerUnavailableError] * 4
