"""Starting, what a server says about itself, and stopping without losing what it took."""

from __future__ import annotations

import asyncio
import hashlib

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mpc_test_codecs import GATES, Gate
from raw_wire import CODE, call_status, compress_messages, compress_one, details, features

import mpcompress
from mpcompress_proto.tensors import MAX_CHUNK_BYTES
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.app import ListenError, Server
from mpcompress_server.servicer import SERVICE
from mpcompress_server.settings import Settings, SettingsError

SERVING = health_pb2.HealthCheckResponse.SERVING


def _stub(channel):
    return pb_grpc.CompressionServiceStub(channel)


async def test_health_and_reflection(start_server, connect):
    channel = connect(await start_server())
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", SERVICE):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=service))).status == SERVING
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = [response async for response in stub.ServerReflectionInfo([request])]
    assert SERVICE in {service.name for service in answer.list_services_response.service}


async def test_list_codecs(start_server, connect):
    codecs = [
        {"id": "store", "family": "test_bytes", "options": {"file_bytes": 10}},
        {"id": "absent", "family": "test_bytes", "options": {"missing": True}},
        {"id": "no-package", "family": "test_absent"},
        {"id": "no-file", "family": "test_bytes", "weights": "/no/such/file"},
        {"id": "slow-to-fail", "family": "test_bytes", "options": {"fails_to_warm_up": True}},
    ]
    limits = {"max_item_bytes": 1000, "max_inflight_bytes": 5000, "reservation_timeout_s": 1.5}
    answer = await _stub(connect(await start_server(codecs, limits=limits))).ListCodecs(pb.ListCodecsRequest())
    assert answer.server_version == mpcompress.__version__
    assert answer.limits.max_item_bytes == 1000
    assert answer.limits.max_chunk_bytes == MAX_CHUNK_BYTES
    assert answer.limits.reservation_timeout == Duration(seconds=1, nanos=500_000_000)
    infos = {info.codec_id: info for info in answer.codecs}
    assert list(infos) == sorted(infos) == sorted(entry["id"] for entry in codecs)
    store = infos["store"]
    assert store.available
    assert store.local
    assert store.codec_file_bytes == 10
    assert (store.family, store.bitstream_version, store.arithmetic) == ("test_bytes", 1, pb.ARITHMETIC_EXACT)
    assert len(store.fingerprint) == 8
    assert store.inputs[0].name == "h"
    assert store.qp == pb.QpRange(min_eighths=0, max_eighths=400, default_eighths=192)
    assert not store.HasField("token_res")
    for name, words in [
        ("absent", "install the thing"),
        ("no-package", "mpc_no_such_module"),
        ("no-file", "codec file"),
        ("slow-to-fail", "log"),
    ]:
        assert not infos[name].available
        assert words in infos[name].unavailable_reason
        assert "/" not in infos[name].unavailable_reason


async def test_get_codec_file(start_server, connect):
    size = MAX_CHUNK_BYTES + 1000
    codecs = [
        {"id": "store", "family": "test_bytes", "options": {"file_bytes": size}},
        {"id": "none", "family": "test_bytes"},
    ]
    stub = _stub(connect(await start_server(codecs)))
    header, *parts = [part async for part in stub.GetCodecFile(pb.GetCodecFileRequest(codec_id="store"))]
    content = b"".join(part.data for part in parts)
    assert content == b"x" * size
    assert header.header.size_bytes == size
    assert header.header.sha256 == hashlib.sha256(content).digest()
    assert header.header.file_name == "store.safetensors"
    request = pb.GetCodecFileRequest(codec_id="store", fingerprint=header.header.fingerprint)
    assert len([part async for part in stub.GetCodecFile(request)]) == 3
    for request, code in [
        (pb.GetCodecFileRequest(codec_id="store", fingerprint=b"12345678"), CODE.FAILED_PRECONDITION),
        (pb.GetCodecFileRequest(codec_id="other"), CODE.NOT_FOUND),
        (pb.GetCodecFileRequest(codec_id="none"), CODE.FAILED_PRECONDITION),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [part async for part in stub.GetCodecFile(request)]
        assert caught.value.code() == call_status(caught.value)["code"] == code


async def test_instances_work_at_the_same_time(start_server, connect):
    gate = GATES["two"] = Gate()
    entry = {"id": "store", "family": "test_bytes", "instances": 2, "max_batch": 1, "options": {"gate": "two"}}
    channel = connect(await start_server([entry]))
    tasks = [asyncio.create_task(compress_one(channel, features(4))) for _ in range(2)]
    for _ in tasks:
        assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    gate.open.set()
    for task in tasks:
        assert (await task).error is None


async def test_stopping_finishes_what_was_taken(start_server, connect):
    gate = GATES["stop"] = Gate()
    server = await start_server([{"id": "store", "family": "test_bytes", "options": {"gate": "stop"}}])
    channel = connect(server)
    call, idle = _stub(channel).Compress(), _stub(channel).Decompress()
    await call.write(compress_messages(1, features(4))[0])
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    stopping = asyncio.create_task(server.stop(grace_s=30.0))
    draining = await call.read()
    assert draining.item_id == 0
    assert draining.draining.grace == Duration(seconds=30)
    await call.write(compress_messages(2, features(5))[0])
    refused = await call.read()
    assert (refused.item_id, details(refused.error)["code"]) == (2, CODE.UNAVAILABLE)
    assert "RetryInfo" in details(refused.error)["kinds"]
    gate.open.set()
    assert (await call.read()).result.inline_payload == features(4).tobytes()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), call_status(caught.value)["reason"]) == (CODE.UNAVAILABLE, "SERVER_DRAINING")
    # A stream with nothing to wait for does not hold the server up.
    assert (await idle.read()).WhichOneof("event") == "draining"
    assert await idle.code() == CODE.UNAVAILABLE
    await stopping


async def test_the_grace_period_ends(start_server, connect):
    gate = GATES["grace"] = Gate()
    server = await start_server([{"id": "store", "family": "test_bytes", "options": {"gate": "grace"}}])
    task = asyncio.create_task(compress_one(connect(server), features(4)))
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    stopping = asyncio.create_task(server.stop(grace_s=0.05))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await task
    assert caught.value.code() in (CODE.UNAVAILABLE, CODE.CANCELLED)
    gate.open.set()
    await stopping
    assert server.servicer.budget.used == 0


async def test_other_kinds_of_address(start_server, connect, tmp_path):
    for listen in (f"unix:{tmp_path}/socket", "localhost:0", "[::1]:0"):
        server = await start_server(listen=listen)
        assert server.address.startswith(listen.removesuffix(":0"))
        assert not server.address.endswith(":0")
        assert (await compress_one(connect(server), features(2))).error is None


async def test_a_taken_port(start_server):
    server = await start_server()
    with pytest.raises(ListenError, match="the port is taken"):
        await start_server(listen=server.address)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"codecs": [{"id": "x", "family": "nope"}]}, "codecs[0].family"),
        ({"codecs": [{"id": "store", "family": "test_bytes"}, {"id": "no-such-preset"}]}, "codecs[1].id"),
        ({"plugins": ["no_such_module_anywhere"]}, "plugins[0]"),
    ],
)
async def test_settings_that_only_loading_finds_wrong(settings, key):
    values = {"listen": "127.0.0.1:0", "plugins": ["mpc_test_codecs"], "codecs": [], **settings}
    with pytest.raises(SettingsError) as caught:
        await Server(Settings.model_validate(values)).start()
    assert str(caught.value).startswith(key)
    assert "\n" not in str(caught.value)
