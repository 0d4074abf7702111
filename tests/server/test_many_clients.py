"""More clients than a server has room for: its memory stays bounded, and every item ends in a result or a refusal."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from collections import Counter
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import error_details_pb2
from raw_wire import compress_messages

from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

MIB = 1 << 20
# Beyond what is reserved: what the allocator keeps, and for each connection that sends at the same time gRPC's window
# and a chunk of 1 MiB on its way to where it is used or dropped.
ALLOWANCE = 128 * MIB
PER_CLIENT = 5 * MIB


def _serve(connection, limits) -> None:
    import asyncio

    sys.path.insert(0, str(Path(__file__).parent))
    from mpcompress_server.app import Server
    from mpcompress_server.settings import Settings

    async def serve() -> None:
        codecs = [{"id": "store", "family": "test_bytes"}]
        values = {"listen": "127.0.0.1:0", "plugins": ["mpc_test_codecs"], "codecs": codecs, "limits": limits}
        server = Server(Settings.model_validate(values))
        await server.start()
        connection.send(server.address)
        await asyncio.to_thread(connection.recv)
        connection.send((server.servicer.budget.used, dict(server.counters.items)))
        await server.stop(1.0)

    asyncio.run(serve())


class Clients:
    """Threads with a connection each, which all send the same item; counts how their items end."""

    def __init__(self, address: str, count: int, h: np.ndarray) -> None:
        self._requests = compress_messages(1, h)
        self._address = address
        self._nbytes = h.nbytes
        self._lock = threading.Lock()
        self.ends: Counter[str] = Counter()
        self.threads = [threading.Thread(target=self._run) for _ in range(count)]

    def _run(self) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        end, got = "nothing", 0
        with grpc.insecure_channel(self._address, options=options) as channel:
            for response in pb_grpc.CompressionServiceStub(channel).Compress(iter(self._requests), timeout=900):
                kind = response.WhichOneof("event")
                if kind == "chunk":
                    got += len(response.chunk.data)
                elif kind == "result":
                    end = "result"
                elif kind == "error":
                    end = _reason(response.error)
        with self._lock:
            self.ends[end if end != "result" or got == self._nbytes else "cut short"] += 1


def _reason(status) -> str:
    reasons = []
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reasons.append(info.reason)
    assert any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in status.details)
    return ",".join(reasons)


@pytest.mark.parametrize(
    ("clients", "item", "room", "wait_s"),
    [(24, 4 * MIB, 24 * MIB, 0.5), pytest.param(200, 64 * MIB, 384 * MIB, 5.0, marks=pytest.mark.slow)],
)
def test_memory_is_bounded_and_every_item_has_an_end(clients, item, room, wait_s):
    limits = {"max_item_bytes": item, "max_inflight_bytes": room, "reservation_timeout_s": wait_s}
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs, limits), daemon=True)
    process.start()
    try:
        assert ours.poll(60)
        address, server = ours.recv(), psutil.Process(process.pid)
        before = peak = server.memory_info().rss
        load = Clients(address, clients, np.random.default_rng(0).standard_normal(item // 4).astype(np.float32))
        for thread in load.threads:
            thread.start()
        for thread in load.threads:
            while thread.is_alive():
                thread.join(0.02)
                peak = max(peak, server.memory_info().rss)
        ours.send(None)
        used, counted = ours.recv()
    finally:
        process.kill()
        process.join()
    assert used == 0
    assert set(load.ends) <= {"result", "NO_ROOM"}
    assert load.ends["result"] > 0
    assert sum(load.ends.values()) == sum(counted.values()) == clients
    assert peak - before < room + ALLOWANCE + clients * PER_CLIENT, f"{(peak - before) / MIB:.0f} MiB, {load.ends}"
