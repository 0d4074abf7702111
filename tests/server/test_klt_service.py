"""The shipped calibrated codecs behind a real server, on real features."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from raw_wire import CODE, compress_messages, compress_one, decompress_messages, details, talk

from mpcompress import registry
from mpcompress.codec import CodingParams, TensorSpec
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

DATA = Path(__file__).parents[1] / "data"
CODECS = {"klt-imgfocus-vits14-block6": "features_block6.npy", "klt-imgfocus-vits14-final": "features_final.npy"}
FINAL = "klt-imgfocus-vits14-final"
ENTRIES = [{"id": codec_id} for codec_id in CODECS]


@pytest.fixture
async def channel(start_server, connect):
    return connect(await start_server(ENTRIES))


def _features(codec_id: str = FINAL) -> np.ndarray:
    return np.load(DATA / CODECS[codec_id])[0].astype(np.float32)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("codec_id", CODECS)
async def test_the_service_gives_what_the_library_gives(start_server, connect, codec_id, isolation):
    channel = connect(await start_server([{"id": codec_id, "isolation": isolation}]))
    h = _features(codec_id)
    codec = registry.load(registry.preset(codec_id))
    params = codec.resolve([TensorSpec(name="h", dtype="float32", shape=h.shape)], CodingParams(qp_eighths=192))
    (coded,) = codec.compress([{"h": h}], params)
    got = await compress_one(channel, h, codec=codec_id, params=pb.CodingParams(qp_eighths=192))
    assert got.error is None
    assert got.payload == b"".join(coded.strings)
    assert got.result.unit.fingerprint == codec.fingerprint
    assert 0 < got.result.report.bpfp < 16
    back = await talk(channel, decompress_messages(1, got.result.unit, got.payload), "Decompress")
    h_hat = back[1].arrays()["h_hat"]
    assert h_hat.shape == h.shape
    assert np.square(h_hat - h).mean() / h.var() < 0.5
    file = b""
    async for part in pb_grpc.CompressionServiceStub(channel).GetCodecFile(pb.GetCodecFileRequest(codec_id=codec_id)):
        file += part.data
    assert file == codec.codec_file()


async def test_what_a_codec_refuses_is_named(channel):
    h = _features()
    nan, huge = h.copy(), h.copy()
    nan[5, 7], huge[5, 7] = np.inf, 3e38
    grid = pb.CodingParams(token_res=pb.TokenGrid(height=3, width=5))
    bad = {
        2: ({"h": nan}, "NON_FINITE", "tensors[0]"),
        3: ({"h": huge, "params": pb.CodingParams(qp_eighths=-(10**9))}, "INVALID_INPUT", "params"),
        4: ({"h": h[:, :100]}, "INVALID_INPUT", "tensors[0]"),
        5: ({"h": h[0]}, "INVALID_INPUT", "tensors[0]"),
        6: ({"h": h.astype(np.int8)}, "INVALID_INPUT", "tensors[0]"),
        7: ({"h": h, "params": grid}, "INVALID_INPUT", "params.token_res"),
        8: ({"h": h, "params": pb.CodingParams(klt=pb.KltParams(prefix_qp_offset_eighths=10**6))}, None, "params"),
    }
    requests = compress_messages(1, h, codec=FINAL)
    for item, (fields, _, _) in bad.items():
        requests += compress_messages(item, codec=FINAL, **fields)
    answers = await talk(channel, requests + compress_messages(99, h, codec=FINAL))
    assert answers[1].payload == answers[99].payload
    for item, (_, reason, field) in bad.items():
        error = details(answers[item].error)
        assert error["code"] == CODE.INVALID_ARGUMENT, item
        assert reason in (None, error["reason"])
        assert error["fields"][0].startswith(field)


async def test_damaged_units_never_hurt(channel):
    """Payloads altered before their checksum was made: an error or other features, and the server lives."""
    got = await compress_one(channel, _features(), codec=FINAL)
    rng = np.random.default_rng(1)
    requests, count = [], 60
    for item in range(count):
        payload = bytearray(got.payload)
        if item % 3 == 0:
            del payload[rng.integers(len(payload)) :]
        elif item % 3 == 1:
            payload[rng.integers(len(payload))] ^= 1 << rng.integers(8)
        else:
            payload += rng.bytes(50)
        unit = pb.CodedUnitHeader()
        unit.CopyFrom(got.result.unit)
        unit.payload_bytes, unit.payload_crc32 = len(payload), zlib.crc32(payload)
        requests += decompress_messages(item, unit, bytes(payload))
    requests += decompress_messages(count, got.result.unit, got.payload)
    answers = await talk(channel, requests, "Decompress")
    errors = [details(answer.error) for answer in answers.values() if answer.error]
    assert len(errors) >= count / 3
    assert {error["reason"] for error in errors} == {"CORRUPT_BITSTREAM"}
    assert answers[count].error is None


async def test_a_unit_of_another_codec(channel):
    got = await compress_one(channel, _features(), codec=FINAL)
    unit = pb.CodedUnitHeader()
    unit.CopyFrom(got.result.unit)
    unit.fingerprint = bytes(8)
    other = await talk(channel, decompress_messages(1, unit, got.payload), "Decompress")
    assert details(other[1].error)["reason"] == "CODEC_MISMATCH"
    unit.CopyFrom(got.result.unit)
    unit.tensors[0].shape[1] = 100
    unit.klt.gain_eighths = 2**30
    other = await talk(channel, decompress_messages(1, unit, got.payload), "Decompress")
    assert details(other[1].error)["code"] == CODE.INVALID_ARGUMENT


@pytest.mark.parametrize("strength", [-(2**31), -9, 8, 2**31 - 1])
async def test_a_filter_stronger_than_any_is_refused_alone(channel, strength):
    got = await compress_one(channel, _features(), codec=FINAL, params=pb.CodingParams(qp_eighths=288))
    unit = pb.CodedUnitHeader()
    unit.CopyFrom(got.result.unit)
    unit.klt.filter_strength_eighths = strength
    requests = decompress_messages(1, unit, got.payload) + decompress_messages(2, got.result.unit, got.payload)
    answers = await talk(channel, requests, "Decompress")
    assert "filter_strength_eighths" in answers[1].error.message
    assert answers[2].error is None
