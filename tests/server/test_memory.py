"""A server's memory depends on its limits, not on how much it is sent. Measured in a process of its own."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from google.rpc import code_pb2
from raw_wire import compress_messages, features, talk

from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.items import Item

MIB = 1 << 20
LIMITS = {"max_item_bytes": 16 * MIB, "max_inflight_bytes": 64 * MIB, "reservation_timeout_s": 60.0}
# Beyond what is reserved: gRPC's buffers, one message in each direction, and what the allocator keeps.
ALLOWANCE = 96 * MIB


def _serve(connection) -> None:
    import asyncio

    sys.path.insert(0, str(Path(__file__).parent))
    from mpcompress_server.app import Server
    from mpcompress_server.settings import Settings

    async def serve() -> None:
        codecs = [{"id": "store", "family": "test_bytes"}]
        values = {"listen": "127.0.0.1:0", "plugins": ["mpc_test_codecs"], "codecs": codecs, "limits": LIMITS}
        server = Server(Settings.model_validate(values))
        await server.start()
        connection.send(server.address)
        await asyncio.to_thread(connection.recv)
        connection.send(server.servicer.budget.used)
        await server.stop(1.0)

    asyncio.run(serve())


@pytest.fixture
def server():
    """Process, address and a pipe to it."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    assert ours.poll(60)
    yield psutil.Process(process.pid), ours.recv(), ours
    process.kill()
    process.join()


def _peak_growth(server, requests, check) -> int:
    """Bytes by which the server grew at most, looked at after every answer."""
    process, address, pipe = server
    before, peak = process.memory_info().rss, 0
    with grpc.insecure_channel(address) as channel:
        for response in pb_grpc.CompressionServiceStub(channel).Compress(requests):
            if response.WhichOneof("event") != "chunk":
                peak = max(peak, process.memory_info().rss)
                check(response)
    pipe.send(None)
    assert pipe.recv() == 0
    return peak - before


def _items(total: int, h: np.ndarray):
    for item in range(total // h.nbytes):
        yield from compress_messages(item, h)


@pytest.mark.parametrize("total", [256 * MIB, pytest.param(2048 * MIB, marks=pytest.mark.slow)])
def test_streaming_much(server, total):
    def check(response):
        assert response.WhichOneof("event") == "result"

    assert _peak_growth(server, _items(total, features(128 * 1024)), check) < LIMITS["max_inflight_bytes"] + ALLOWANCE


def test_items_that_fail_leave_nothing_behind(server):
    def check(response):
        assert response.error.code == code_pb2.INVALID_ARGUMENT

    growth = _peak_growth(server, _items(256 * MIB, features(128 * 1024, np.nan)), check)
    assert growth < LIMITS["max_inflight_bytes"] + ALLOWANCE


async def test_small_items_that_fail_in_their_codec_wait_for_no_garbage_collection(start_server, connect):
    channel = connect(await start_server())
    await talk(channel, compress_messages(1, features(4)))
    gc.collect()
    gc.disable()
    try:
        requests = [m for item in range(1, 41) for m in compress_messages(item, features(4, first=float("nan")))]
        answers = await talk(channel, requests)
        assert all(got.error is not None for got in answers.values())
        left = sum(type(thing) is Item for thing in gc.get_objects())  # isinstance() would ask proxies of the dead
    finally:
        gc.enable()
    assert left <= 1
