"""What metrics there are and can ever be: labels are bounded, and every name is in the document."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from raw_wire import compress_messages, decompress_messages, features, talk
from scraping import LISTEN, TYPES, scrape, when

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.servicer import SERVICE


async def test_what_clients_make_up_becomes_no_series(start_server, connect, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("alice:alice-0123456789abcdef:store\n")
    codecs = [{"id": "store", "family": "test_bytes"}, {"id": "other", "family": "test_bytes"}]
    server = await start_server(codecs, metrics=LISTEN, auth={"tokens": str(tokens)})
    channel = connect(server)
    stub = pb_grpc.CompressionServiceStub(channel)
    item = (await talk(channel, compress_messages(1, features(3)), metadata=_bearer("alice-0123456789abcdef")))[1]

    async def mischief(number):
        """Everything that a client may fill in, filled with something new."""
        word = f"madeup{number}"
        bearer = _bearer("alice-0123456789abcdef")
        requests = [
            *compress_messages(1, features(3), word),
            *compress_messages(2, features(3), "other"),
            *compress_messages(3, features(3 + number)),
            pb.CompressRequest(header={"item_id": 4, "codec_id": "store", "params": {"prefix_tokens": number}}),
        ]
        await talk(channel, requests, metadata=(*bearer, ("x-request-id", word), (word, word)))
        unit = pb.CodedUnitHeader()
        unit.CopyFrom(item.result.unit)
        unit.codec_id, unit.fingerprint = word, number.to_bytes(8, "little")
        await talk(channel, decompress_messages(1, unit, item.payload), "Decompress", metadata=bearer)
        for method in (f"/{SERVICE}/{word}", f"/{word}/Compress"):
            with pytest.raises(grpc.aio.AioRpcError):
                await channel.unary_unary(method)(b"", metadata=bearer)
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ListCodecs(pb.ListCodecsRequest(), metadata=_bearer(f"{word}-0123456789abcdef"))
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.GetCodecFile(pb.GetCodecFileRequest(codec_id=word), metadata=bearer).read()
        with pytest.raises(grpc.aio.AioRpcError):
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=f"codec/{word}"))

    async def series():
        # Ended calls are counted after their clients have seen the end.
        found = await when(server, _all_ended)
        return {key for key in found.samples if not key[0].endswith("_created")}

    for number in range(3):
        await mischief(number)
    before = await series()
    for number in range(3, 30):
        await mischief(number)
    after = await series()
    assert after == before
    assert not [key for key in after if "madeup" in str(key)]


def _bearer(token):
    return (("authorization", f"Bearer {token}"),)


def _all_ended(found):
    ended = {"grpc_server_started_total": 0.0, "grpc_server_handled_total": 0.0}
    for (name, _), value in found.samples.items():
        if name in ended:
            ended[name] += value
    return len(set(ended.values())) == 1


DOCUMENT = Path(__file__).parents[2] / "docs/metrics.md"


async def test_every_metric_is_in_the_document(start_server):
    found = await scrape(await start_server(metrics=LISTEN))
    documented = set(re.findall(r"`((?:mpcompress|grpc_server)_[a-z_]+)`", DOCUMENT.read_text(encoding="utf-8")))
    documented = {name.removesuffix("_total") for name in documented}
    assert set(found.types) - {"python_info"} <= documented
    # The first is there once a codec has used a GPU, the others in a server that is a worker.
    sometimes = {"mpcompress_gpu_memory_bytes", "mpcompress_slots", "mpcompress_slots_busy"}
    assert documented - sometimes <= set(found.types) | set(TYPES)


async def test_gpu_memory(start_server):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    held = torch.zeros(1 << 20, dtype=torch.uint8, device="cuda:0")
    found = await scrape(await start_server(metrics=LISTEN))
    assert found.types["mpcompress_gpu_memory_bytes"] == "gauge"
    allocated = found("mpcompress_gpu_memory_bytes", device="cuda:0", kind="allocated")
    assert held.numel() <= allocated <= found("mpcompress_gpu_memory_bytes", device="cuda:0", kind="reserved")


async def test_gpu_memory_with_a_stand_in_for_torch(start_server, monkeypatch):
    """What the metric says without a GPU here: nothing before a device is in use, then two values for each."""

    class Cuda:
        initialized = False
        is_initialized = classmethod(lambda cls: cls.initialized)
        device_count = staticmethod(lambda: 2)
        memory_allocated = staticmethod(lambda device: 100 + device)
        memory_reserved = staticmethod(lambda device: 200 + device)

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=Cuda))
    server = await start_server(metrics=LISTEN)
    assert "mpcompress_gpu_memory_bytes" not in (await scrape(server)).types
    Cuda.initialized = True
    found = await scrape(server)
    for device in range(2):
        for kind, base in (("allocated", 100), ("reserved", 200)):
            assert found("mpcompress_gpu_memory_bytes", device=f"cuda:{device}", kind=kind) == base + device
