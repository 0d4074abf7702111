"""Two workers, real processes, behind a server: one is killed in the middle of its encodes, and no item is lost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import psutil
import pytest
from raw_wire import compress_messages, compress_one, decompress_messages, sort_out, talk
from worker_process import WAIT_S, needs_encoders, stand_in, until, worker_processes

from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

pytestmark = needs_encoders

CODEC, QUICK = "vtm-dinov2-cls", "x265-dinov2-cls"
ITEMS = 4
H = (5 * np.random.default_rng(0).standard_normal((96, 128))).astype(np.float32)


@pytest.fixture
def start_worker():
    with worker_processes() as start:
        yield start


def _remote(codec, *workers):
    target = "ipv4:" + ",".join(worker.address for worker in workers)
    return {"id": codec, "family": "remote", "options": {"target": target}}


async def _connected_to(channel, *workers):
    """Sends items that take no time until each worker had one."""
    async with asyncio.timeout(WAIT_S):
        while not all(worker.events("job done") for worker in workers):
            assert (await compress_one(channel, H, codec=QUICK)).error is None


@pytest.mark.parametrize(
    "kind",
    [
        "stand_in",
        pytest.param("vtm", marks=pytest.mark.skipif(not os.environ.get("VTM_HOME"), reason="no VTM_HOME")),
    ],
)
@pytest.mark.parametrize("inline", [True, False], ids=["inline", "chunks"])
async def test_a_killed_worker_loses_no_item(start_server, connect, start_worker, tmp_path, kind, inline, logs):
    if kind == "vtm":
        homes = [Path(os.environ["VTM_HOME"])] * 2
    else:
        # The first never finishes, so that it is surely in the middle of its items when it is killed.
        homes = [stand_in().install(tmp_path / "slow", encoder="slow"), stand_in().install(tmp_path / "good")]
    first, second = (start_worker(tmp_path / str(n), vtm=home, slots=2) for n, home in enumerate(homes))
    await first.ready()
    await second.ready()
    server = await start_server([_remote(CODEC, first, second), _remote(QUICK, first, second)])
    await _connected_to(connect(server), first, second)
    params = {"qp_eighths": 176, "picture": {"speed": "faster" if kind == "stand_in" else "fast", "strips": 1}}
    messages = []
    for item in range(1, ITEMS + 1):
        messages += compress_messages(item, H, CODEC, None if inline else 20_000, params=params, want_progress=True)
    call = pb_grpc.CompressionServiceStub(connect(server)).Compress()
    for message in messages:
        await call.write(message)
    await call.done_writing()
    # Items go to the workers in turn, so that the first has some.
    await until(first.encoders)
    encoders = first.encoders()
    first.kill()
    items = sort_out([response async for response in call])
    assert sorted(items) == list(range(1, ITEMS + 1))
    assert all(got.error is None for got in items.values())
    assert {got.payload for got in items.values()} == {items[1].payload}
    done = [job for worker in (first, second) for job in worker.events("job done") if job["codec"] == CODEC]
    assert len(done) == ITEMS
    assert any(record["event"] == "item goes to another worker" for record in logs)
    # The encoders of the dead worker died with it.
    await until(lambda: not any(psutil.pid_exists(pid) for pid in encoders))
    unit, payload = items[1].result.unit, items[1].payload
    decoded = (await talk(connect(server), decompress_messages(1, unit, payload), "Decompress"))[1]
    assert decoded.error is None
    h_hat = decoded.arrays()["h_hat"]
    assert h_hat.shape == H.shape
    assert h_hat.dtype == H.dtype
    assert np.square(h_hat - H).mean() < 0.1 * np.square(H).mean()
    await until(lambda: not server.servicer.budget.used and not server.servicer.budget.items)
