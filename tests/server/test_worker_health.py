"""What health and metrics say about a codec whose worker processes die again and again."""

from __future__ import annotations

import asyncio
import re
import urllib.request

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mpc_test_codecs import CRASH
from raw_wire import compress_one, details, features

from mpcompress_server import process_executor

HEALTH = health_pb2.HealthCheckResponse
SERVICE = health_pb2.HealthCheckRequest(service="codec/store")
OVERALL = health_pb2.HealthCheckRequest(service="")
METRICS = {"listen": "127.0.0.1:0"}


def _entry(**changes):
    return {"id": "store", "family": "test_bytes", "isolation": "process", "options": {"reckless": True}, **changes}


async def _next(watch):
    """The next status that a watcher of the codec's health is told."""
    return (await asyncio.wait_for(watch.read(), 60)).status


async def _ready(server):
    def read():
        with urllib.request.urlopen(f"http://127.0.0.1:{server.metrics.port}/metrics", timeout=30) as answer:
            return answer.read().decode()

    (value,) = re.findall(
        r'^mpcompress_codec_ready\{codec="store"\} (.+)$', await asyncio.to_thread(read), re.MULTILINE
    )
    return float(value)


async def _crash(channel):
    assert details((await compress_one(channel, features(5, CRASH))).error)["reason"] == "CODEC_CRASHED"


async def test_back_off_is_not_serving_and_ends_by_itself(start_server, connect):
    server = await start_server([_entry(), {"id": "other", "family": "test_bytes"}], metrics=METRICS)
    channel = connect(server)
    watch = health_pb2_grpc.HealthStub(channel).Watch(SERVICE)
    assert await _next(watch) == HEALTH.SERVING
    assert await _ready(server) == 1
    # The first death is no reason to send clients elsewhere: a new worker is on its way. The second is.
    await _crash(channel)
    await _crash(channel)
    assert await _next(watch) == HEALTH.NOT_SERVING
    # No item asks for it: a load balancer sends none to a codec that does not serve.
    assert await _next(watch) == HEALTH.SERVING
    assert await _ready(server) == 1
    assert (await compress_one(channel, features(5))).payload == features(5).tobytes()
    watch.cancel()


async def test_in_back_off(start_server, connect, monkeypatch):
    monkeypatch.setattr(process_executor, "_FIRST_BACKOFF_S", 30.0)
    server = await start_server([_entry(), {"id": "other", "family": "test_bytes"}], metrics=METRICS)
    channel = connect(server)
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(SERVICE)
    assert await _next(watch) == HEALTH.SERVING
    await _crash(channel)
    await _crash(channel)
    assert await _next(watch) == HEALTH.NOT_SERVING
    assert await _ready(server) == 0
    assert (await stub.Check(OVERALL)).status == HEALTH.SERVING
    error = details((await compress_one(channel, features(5))).error)
    assert error["reason"] == "CODEC_CRASHED"
    assert "RetryInfo" in error["kinds"]
    assert (await compress_one(channel, features(5), codec="other")).error is None
    # A reload to the same codecs changes nothing about it; one that replaces the codec does.
    await server.reload(server.settings)
    assert (await stub.Check(SERVICE)).status == HEALTH.NOT_SERVING
    fresh = server.settings.codecs[0].model_copy(update={"options": {"reckless": True, "salt": "2"}})
    await server.reload(server.settings.model_copy(update={"codecs": (fresh,)}))
    assert await _next(watch) == HEALTH.SERVING
    assert await _ready(server) == 1
    watch.cancel()
    await asyncio.wait_for(server.stop(grace_s=0.0), 20)


async def test_a_second_instance_keeps_a_codec_serving(start_server, connect, monkeypatch):
    monkeypatch.setattr(process_executor, "_FIRST_BACKOFF_S", 30.0)
    server = await start_server([_entry(instances=2)], metrics=METRICS)
    first, second = next(iter(server.fleet._current())).executors
    changes = asyncio.Queue()
    first.on_change, second.on_change = (lambda: changes.put_nowait(first)), (lambda: changes.put_nowait(second))
    channel = connect(server)
    while first.ready and second.ready:
        await _crash(channel)
    assert await asyncio.wait_for(changes.get(), 30) in (first, second)
    assert await _ready(server) == 1
    assert (await health_pb2_grpc.HealthStub(channel).Check(SERVICE)).status == HEALTH.SERVING


@pytest.mark.parametrize("options", [{"dies_at_start": True}, {"fails_to_warm_up": True}])
async def test_a_codec_that_never_started_is_not_ready(start_server, connect, options):
    server = await start_server([_entry(options=options)], metrics=METRICS)
    assert await _ready(server) == 0
    assert (await health_pb2_grpc.HealthStub(connect(server)).Check(SERVICE)).status == HEALTH.NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError):
        await health_pb2_grpc.HealthStub(connect(server)).Check(health_pb2.HealthCheckRequest(service="codec/no"))
