"""What Prometheus finds when it scrapes a server that serves: names, types, labels and sums."""

from __future__ import annotations

import asyncio
import importlib.util
import re

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from mpc_test_codecs import CRASH, GATES, Gate
from raw_wire import compress_messages, compress_one, decompress_messages, details, features, talk
from scraping import LISTEN, TYPES, scrape, when

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.grpc_metrics import go_name
from mpcompress_server.servicer import SERVICE
from mpcompress_server.settings import SettingsError


async def test_names_types_and_sums(start_server, connect):
    gate = GATES["metrics"] = Gate()
    codecs = [
        {"id": "store", "family": "test_bytes"},
        {"id": "gated", "family": "test_bytes", "options": {"gate": "metrics"}, "max_batch": 1},
        {"id": "absent", "family": "test_bytes", "options": {"missing": True}},
    ]
    server = await start_server(codecs, metrics=LISTEN)
    channel = connect(server)
    sizes = [3, 5, 1000]
    items = await talk(channel, [m for i, n in enumerate(sizes) for m in compress_messages(i, features(n), chunk=4096)])
    came = sum(features(n).nbytes for n in sizes)
    chunks = sum(-(-features(n).nbytes // 4096) for n in sizes)
    unit, payload = items[2].result.unit, items[2].payload
    await talk(channel, decompress_messages(1, unit, payload), "Decompress")
    await talk(channel, [*compress_messages(1, features(3), "nope"), *compress_messages(2, features(3), "absent")])
    await pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())
    # While it serves: one item inside its codec, one behind it.
    call = pb_grpc.CompressionServiceStub(channel).Compress()
    for number in (1, 2):
        await call.write(compress_messages(number, features(7), "gated", want_progress=True)[0])
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    during = await when(server, lambda found: found("mpcompress_queue_items", codec="gated") == 1)
    assert during("mpcompress_inflight_items") == 2
    assert 0 < during("mpcompress_inflight_bytes") == server.servicer.budget.used
    assert during("mpcompress_inflight_bytes_limit") == server.settings.limits.max_inflight_bytes
    await call.write(pb.CompressRequest(cancel=pb.CancelItem(item_id=2)))
    await when(server, lambda found: found("mpcompress_items_cancelled_total", cause="item", stage="queued") == 1)
    gate.open.set()
    await call.done_writing()
    while await call.read() is not grpc.aio.EOF:
        pass
    method = {"grpc_type": "bidi_stream", "grpc_service": SERVICE, "grpc_method": "Compress"}
    found = await when(server, lambda found: found("grpc_server_handled_total", grpc_code="OK", **method) == 3)
    missing = {name: kind for name, kind in TYPES.items() if found.types.get(name) != kind}
    assert not missing, found.types
    assert found("grpc_server_started_total", **method) == 3
    assert found("grpc_server_msg_received_total", **method) == (3 + chunks) + 2 + 3
    assert found("grpc_server_msg_sent_total", **method) >= 3 + 2 + 2
    assert found("grpc_server_handling_seconds_count", **method) == 3
    unary = {"grpc_type": "unary", "grpc_service": SERVICE, "grpc_method": "ListCodecs"}
    assert found("grpc_server_handled_total", grpc_code="OK", **unary) == 1
    assert found("grpc_server_msg_received_total", **unary) == found("grpc_server_msg_sent_total", **unary) == 1

    compress = {"operation": "compress", "codec": "store"}
    assert found("mpcompress_input_bytes_total", **compress) == came
    assert found("mpcompress_output_bytes_total", **compress) == sum(len(item.payload) for item in items.values())
    decompress = {"operation": "decompress", "codec": "store"}
    assert found("mpcompress_input_bytes_total", **decompress) == len(payload)
    assert found("mpcompress_output_bytes_total", **decompress) == features(1000).nbytes
    assert found("mpcompress_bpfp_count", codec="store") == 3
    reported = sum(item.result.report.bpfp for item in items.values())
    assert found("mpcompress_bpfp_sum", codec="store") == pytest.approx(reported)
    assert found("mpcompress_batch_items_sum", codec="store") == 4
    assert found("mpcompress_batch_items_bucket", codec="store", le="+Inf") <= 4
    assert found("mpcompress_batch_items_count", codec="gated") == 1
    for stage in ("receive", "queue", "codec", "send"):
        assert found("mpcompress_stage_seconds_count", stage=stage, **compress) == 3
        assert found("mpcompress_stage_seconds_sum", stage=stage, **compress) > 0
        assert found("mpcompress_stage_seconds_count", stage=stage, **decompress) == 1
    assert found("mpcompress_items_total", operation="compress", result="ok") == 4
    assert found("mpcompress_items_total", operation="decompress", result="ok") == 1
    assert found("mpcompress_items_total", operation="compress", result="UNKNOWN_CODEC") == 1
    assert found("mpcompress_items_rejected_total", operation="compress", reason="CODEC_UNAVAILABLE") == 1
    assert found("mpcompress_items_cancelled_total", cause="item", stage="queued") == 1
    assert found("mpcompress_codec_ready", codec="store") == 1
    assert found("mpcompress_codec_ready", codec="absent") == 0
    assert ("mpcompress_codec_ready", frozenset({("codec", "absent")})) in found.samples
    assert found("mpcompress_queue_items", codec="gated") == 0
    assert found("mpcompress_inflight_items") == 0
    # Nothing that a client makes up becomes a label.
    assert "nope" not in {value for _, labels in found.samples for _, value in labels}
    assert all(re.fullmatch(r"[a-z_]+", name) for name, _ in found.samples)


async def test_stages_of_a_codec_with_two(start_server, connect):
    codec = "klt-imgfocus-vits14-final"
    server = await start_server([{"id": codec}], metrics=LISTEN)
    channel = connect(server)
    h = features(257).repeat(48, axis=1)
    item = (await talk(channel, compress_messages(1, h, codec)))[1]
    assert item.error is None, details(item.error)
    await talk(channel, decompress_messages(1, item.result.unit, item.payload), "Decompress")
    found = await scrape(server)
    for operation in ("compress", "decompress"):
        for stage in ("transform", "entropy"):
            labels = {"operation": operation, "codec": codec, "stage": stage}
            assert found("mpcompress_stage_seconds_count", **labels) == 1
        assert found("mpcompress_stage_seconds_count", operation=operation, codec=codec, stage="codec") == 0


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs the extra vvc")
async def test_the_stage_of_picture_codecs(start_server, connect):
    codec = "x265-dinov2-cls"
    server = await start_server([{"id": codec}], metrics=LISTEN)
    channel = connect(server)
    h = features(33).repeat(64, axis=1)
    item = (await talk(channel, compress_messages(1, h, codec)))[1]
    assert item.error is None, details(item.error)
    await talk(channel, decompress_messages(1, item.result.unit, item.payload), "Decompress")
    found = await when(
        server, lambda found: found("mpcompress_stage_seconds_count", operation="decompress", codec=codec, stage="send")
    )
    for operation in ("compress", "decompress"):
        stages = {
            dict(labels)["stage"]: value
            for (name, labels), value in found.samples.items()
            if name == "mpcompress_stage_seconds_count" and ("operation", operation) in labels
        }
        assert stages == {"receive": 1, "queue": 1, "external": 1, "send": 1}
        labels = {"operation": operation, "codec": codec, "stage": "external"}
        assert found("mpcompress_stage_seconds_sum", **labels) > 0


async def test_worker_restarts(start_server, connect):
    entry = {"id": "store", "family": "test_bytes", "isolation": "process", "options": {"reckless": True}}
    server = await start_server([entry], metrics=LISTEN)
    channel = connect(server)
    assert (await scrape(server))("mpcompress_worker_restarts_total", codec="store") == 0
    got = await compress_one(channel, features(4, CRASH))
    assert details(got.error)["reason"] == "CODEC_CRASHED"
    found = await when(server, lambda found: found("mpcompress_worker_restarts_total", codec="store") == 1)
    assert found("mpcompress_items_total", operation="compress", result="CODEC_CRASHED") == 1


async def test_calls_that_end_badly(start_server, connect, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("alice:alice-0123456789abcdef:*\n")
    gate = GATES["badly"] = Gate()
    entry = {"id": "store", "family": "test_bytes", "options": {"gate": "badly"}}
    server = await start_server([entry], metrics=LISTEN, auth={"tokens": str(tokens)})
    channel = connect(server)
    stub = pb_grpc.CompressionServiceStub(channel)
    metadata = (("authorization", "Bearer alice-0123456789abcdef"),)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.ListCodecs(pb.ListCodecsRequest())
    with pytest.raises(grpc.aio.AioRpcError):
        await talk(channel, [pb.CompressRequest()], metadata=metadata)
    call = stub.Compress(metadata=metadata)
    await call.write(compress_messages(1, features(4))[0])
    # With an item under way: of a call that is idle, gRPC may show the end of its messages and never its cancellation.
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    call.cancel()
    with pytest.raises(grpc.aio.AioRpcError):
        [p async for p in stub.GetCodecFile(pb.GetCodecFileRequest(codec_id="nope"), metadata=metadata)]
    await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    reflect = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    assert [r async for r in reflect.ServerReflectionInfo([request], metadata=metadata)]

    def ended(found):
        return {
            (dict(labels)["grpc_method"], dict(labels)["grpc_code"]): value
            for (name, labels), value in found.samples.items()
            if name == "grpc_server_handled_total"
        }

    expected = {
        ("ListCodecs", "Unauthenticated"): 1,
        ("Compress", "InvalidArgument"): 1,
        ("Compress", "Canceled"): 1,
        ("GetCodecFile", "NotFound"): 1,
        ("Check", "OK"): 1,
        ("ServerReflectionInfo", "OK"): 1,
    }
    found = await when(server, lambda found: len(ended(found)) == len(expected))
    gate.open.set()
    assert ended(found) == expected
    reflection = {
        "grpc_type": "bidi_stream",
        "grpc_service": "grpc.reflection.v1alpha.ServerReflection",
        "grpc_method": "ServerReflectionInfo",
    }
    assert found("grpc_server_msg_received_total", **reflection) == 1
    assert found("grpc_server_msg_sent_total", **reflection) == 1


async def test_counts_outlive_a_reload(start_server, connect):
    server = await start_server([{"id": "store", "family": "test_bytes"}], metrics=LISTEN)
    channel = connect(server)
    await compress_one(channel, features(4))
    other = server.settings.codecs[0].model_copy(update={"id": "other"})
    await server.reload(server.settings.model_copy(update={"codecs": (other,)}))
    found = await scrape(server)
    assert found("mpcompress_bpfp_count", codec="store") == 1
    assert found("mpcompress_codec_ready", codec="other") == 1
    assert ("mpcompress_codec_ready", frozenset({("codec", "store")})) not in found.samples


async def test_a_port_that_is_taken_names_its_key(start_server):
    first = await start_server(metrics=LISTEN)
    with pytest.raises(SettingsError, match=r"^metrics\.listen: cannot listen on 127\.0\.0\.1:"):
        await start_server(metrics={"listen": f"127.0.0.1:{first.metrics.port}"})


async def test_none_by_default(start_server):
    assert (await start_server()).metrics is None


def test_names_of_codes():
    names = {go_name(code) for code in grpc.StatusCode}
    assert {"OK", "Canceled", "InvalidArgument", "DeadlineExceeded", "Unauthenticated"} < names
