"""Spans, with OpenTelemetry's own exporter for tests."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from raw_wire import compress_messages, features, talk

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server import tracing

sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter(monkeypatch):
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "configured_provider", lambda: provider)
    return exporter


async def _spans(exporter, count):
    async with asyncio.timeout(30):
        while len(exporter.get_finished_spans()) < count:
            await asyncio.sleep(0)
    return exporter.get_finished_spans()


async def test_a_call_and_the_stages_of_its_items(start_server, connect, exporter):
    channel = connect(await start_server())
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "r1"))
    messages = [message for item in (5, 6) for message in compress_messages(item, features(item))]
    await talk(channel, messages, metadata=metadata)
    spans = await _spans(exporter, 9)
    (call,) = [span for span in spans if span.name == "mpcompress.v1.CompressionService/Compress"]
    assert f"{call.context.trace_id:032x}" == TRACE
    assert f"{call.parent.span_id:016x}" == PARENT
    assert call.kind.name == "SERVER"
    assert call.attributes["rpc.grpc.status_code"] == 0
    assert call.attributes["mpcompress.request_id"] == "r1"
    stages = [span for span in spans if span is not call]
    assert {span.parent.span_id for span in stages} == {call.context.span_id}
    for item in (5, 6):
        mine = {span.name for span in stages if span.attributes["mpcompress.item"] == item}
        assert mine == {f"compress {stage}" for stage in ("receive", "queue", "codec", "send")}
    assert {span.attributes["mpcompress.codec"] for span in stages} == {"store"}
    assert all(call.start_time - 10_000_000 <= span.start_time <= span.end_time for span in stages)


async def test_how_calls_end(start_server, connect, exporter):
    stub = pb_grpc.CompressionServiceStub(connect(await start_server()))
    with pytest.raises(grpc.aio.AioRpcError):
        [p async for p in stub.GetCodecFile(pb.GetCodecFileRequest(codec_id="nope"))]
    (span,) = await _spans(exporter, 1)
    assert span.attributes["rpc.grpc.status_code"] == grpc.StatusCode.NOT_FOUND.value[0]
    assert span.status.is_unset
    assert not span.events


def test_nothing_without_a_provider():
    assert tracing.configured_provider() is None
