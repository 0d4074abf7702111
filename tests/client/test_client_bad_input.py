"""Bad input of every kind through a real server: the right exception, the culprit's name, and the server serves on."""

from __future__ import annotations

import threading
import zlib

import grpc
import numpy as np
import pytest
from conftest import BLOCK6, FINAL

from mpcompress_client import (
    CodecMismatchError,
    CodedUnit,
    CompressionClient,
    CorruptUnitError,
    DeadlineError,
    InvalidRequestError,
    MPCompressError,
    ResourceExhaustedError,
    UnknownCodecError,
)
from mpcompress_proto.coded_unit import check_header
from mpcompress_proto.tensors import MAX_CHUNK_BYTES, spec_of, wire_view
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1.compression_pb2_grpc import CompressionServiceStub


@pytest.fixture(autouse=True)
def _serves_on(server, final):
    """After whatever a test did, the same server still answers."""
    yield
    with CompressionClient(server) as client:
        assert client.decompress(client.compress(final[0], codec=FINAL)).shape == (257, 384)


def _with(h: np.ndarray, value: float, place: tuple[int, int] = (5, 7)) -> np.ndarray:
    changed = h.astype(np.float32)
    changed[place] = value
    return changed


BAD_TENSORS = {
    "NaN": (lambda h: _with(h, np.nan), "tensors[0]", "nan"),
    "Inf": (lambda h: _with(h, np.inf), "tensors[0]", "inf"),
    "-Inf in the last place": (lambda h: _with(h, -np.inf, (256, 383)), "tensors[0]", "256, 383"),
    "NaN in float16": (lambda h: _with(h, np.nan).astype(np.float16), "tensors[0]", "nan"),
    "rank 1": (lambda h: h[:, 0], "tensors[0].shape", "(257,)"),
    "rank 4": (lambda h: h[None, None], "tensors[0].shape", "(1, 1, 257, 384)"),
    "wrong C": (lambda h: h[:, :383], "tensors[0].shape", "383"),
    "transposed": (lambda h: h.T, "tensors[0].shape", "257 channels"),
    "int32": (lambda h: h.astype(np.int32), "tensors[0].dtype", "int32"),
    "empty": (lambda h: h[:0], "tensors[0].shape", "empty"),
    "0-d": (lambda h: h[0, 0], "tensors[0].shape", "no axes"),
    "big-endian": (lambda h: h.astype(">f4"), "tensors[0].dtype", "big-endian"),
    "complex": (lambda h: h.astype(np.complex64), "tensors[0].dtype", "complex64"),
    "object": (lambda h: h.astype(object), "tensors[0].dtype", "object"),
    "float64": (lambda h: h.astype(np.float64), "tensors[0].dtype", "float64"),
    "another name": (lambda h: {"x": h}, "tensors[0].name", "'x'"),
    "one too many": (lambda h: {"h": h, "ctx": h}, "tensors[1].name", "'ctx'"),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_bad_tensors(client, final, name):
    make, field, words = BAD_TENSORS[name]
    with pytest.raises(InvalidRequestError) as caught:
        client.compress(make(final[0]), codec=FINAL)
    assert caught.value.field == field
    assert words in str(caught.value)


def test_non_contiguous_is_no_mistake(client, final):
    padded = np.zeros((514, 768), np.float16)
    padded[::2, ::2] = final[0]
    assert client.compress(padded[::2, ::2], codec=FINAL) == client.compress(final[0], codec=FINAL)


@pytest.mark.parametrize("huge", [1e30, -3e38])
def test_values_beyond_the_codec_are_refused_by_their_place(client, final, huge):
    with pytest.raises(InvalidRequestError) as caught:
        client.compress(_with(final[0], huge), codec=FINAL)
    assert caught.value.field.startswith("tensors[0]")
    assert caught.value.reason == "VALUE_OUT_OF_RANGE"


@pytest.mark.parametrize("codec", ["nobody", "KLT", "klt-imgfocus-vits14-final ", "../final", "x" * 1000, "ä"])
def test_unknown_codecs(client, final, codec):
    with pytest.raises(UnknownCodecError):
        client.compress(final[0], codec=codec)


BAD_PARAMETERS = {
    "unknown": ({"nonsense": 1}, "params.nonsense"),
    "of another family": ({"speed": "fast"}, "params.picture"),
    "effort beyond the highest": ({"effort": 3}, "params.effort"),
    "qp above": ({"qp": 48.125}, "params.qp_eighths"),
    "qp below": ({"qp": -0.125}, "params.qp_eighths"),
    "qp far above": ({"qp": 900}, "params.qp_eighths"),
    "qp between the eighths": ({"qp": 24.06}, "params.qp_eighths"),
    "grid too small": ({"token_res": (15, 16)}, "params.token_res"),
    "grid too large": ({"token_res": (16, 17)}, "params.token_res"),
    "grid immense": ({"token_res": (65535, 65535)}, "params.token_res"),
    "prefix does not fit": ({"prefix_tokens": 2}, "params.token_res"),
    "prefix too long": ({"prefix_tokens": 257}, "params.prefix_tokens"),
    "prefix far too long": ({"prefix_tokens": 2000}, "params.prefix_tokens"),
    "target": ({"target_nmse": -0.1}, "params.target_nmse"),
    "prefix qp": ({"prefix_qp_offset_eighths": 10_000}, "params.prefix_qp_offset_eighths"),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_bad_parameters(client, final, name):
    params, field = BAD_PARAMETERS[name]
    with pytest.raises(InvalidRequestError) as caught:
        client.compress(final[0], codec=FINAL, **params)
    assert caught.value.field == field


def test_a_length_that_is_not_the_codecs(client, final):
    with pytest.raises(InvalidRequestError, match="token_res"):
        client.compress(final[0][:200], codec=FINAL)


# ------------------------------------------------------------------------------------------------------ units


@pytest.fixture
def unit(client, final) -> CodedUnit:
    """A healthy unit."""
    return client.compress(final[0], codec=FINAL, qp=36)


@pytest.mark.parametrize("form", ["bytes", "path"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "extended", "empty", "another file"])
def test_damaged_files(client, unit, tmp_path, damage, form):
    data = unit.to_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    damaged = {
        "truncated": data[:-1],
        "flipped": bytes(flipped),
        "extended": data + b"\0",
        "empty": b"",
        "another file": b"\x93NUMPY\x01\x00" + bytes(500),
    }[damage]
    path = tmp_path / "damaged.mpc"
    path.write_bytes(damaged)
    with pytest.raises(CorruptUnitError):
        client.decompress(damaged if form == "bytes" else path)


def _changed(unit: CodedUnit, payload: bytes | None = None, **fields) -> CodedUnit:
    """A unit that only the server can tell from a healthy one: its checksums fit."""
    header = pb.CodedUnitHeader()
    header.CopyFrom(unit.header)
    for name, value in fields.items():
        setattr(header, name, value)
    payload = unit.payload if payload is None else payload
    header.payload_bytes, header.payload_crc32 = len(payload), zlib.crc32(payload)
    return CodedUnit(header=header, payload=payload)


def test_payloads_whose_checksum_was_forged(client, unit):
    """An entropy coder notices what changes its end state; the rest decodes to finite numbers of the right shape."""
    chance = np.random.default_rng(3)
    payloads = [unit.payload[:-1], unit.payload[:5], b"", unit.payload + b"\0", unit.payload * 2, b"\xff" * 100]
    payloads += [chance.bytes(len(unit.payload)) for _ in range(20)]
    refused = 0
    for payload in payloads:
        try:
            again = client.decompress(_changed(unit, payload))
        except CorruptUnitError:
            refused += 1
        else:
            assert again.shape == (257, 384)
            assert np.isfinite(again).all()
    assert refused >= 6


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"fingerprint": b"another!"}, CodecMismatchError),
        ({"codec_id": BLOCK6, "fingerprint": b"another!"}, CodecMismatchError),
        ({"codec_id": "nobody", "fingerprint": b"another!"}, UnknownCodecError),
        ({"bitstream_version": 4}, CodecMismatchError),
        ({"ctx_hash": b"context!"}, CorruptUnitError),
    ],
)
def test_units_of_another_codec_or_version(client, unit, fields, kind):
    with pytest.raises(kind):
        client.decompress(_changed(unit, **fields))


def test_a_unit_under_another_name_is_found_by_its_fingerprint(client, unit):
    np.testing.assert_array_equal(client.decompress(_changed(unit, codec_id="renamed")), client.decompress(unit))


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.klt.CopyFrom(pb.KltState(qp_eighths=10**6)),
        lambda header: header.klt.CopyFrom(pb.KltState(qp_eighths=288, token_width=17)),
        lambda header: header.klt.CopyFrom(pb.KltState(qp_eighths=288, token_width=0)),
        lambda header: header.klt.CopyFrom(pb.KltState(qp_eighths=288, prefix_tokens=257)),
        lambda header: header.klt.CopyFrom(pb.KltState(qp_eighths=288, gain_eighths=10**6)),
        lambda header: header.vit_union.SetInParent(),
        lambda header: header.tensors[0].shape.__setitem__(0, 2**26),
        lambda header: header.tensors[0].shape.__setitem__(1, 383),
        lambda header: header.tensors.add().CopyFrom(pb.TensorSpec(name="x", dtype=1, shape=[3])),
        lambda header: setattr(header.tensors[0], "dtype", pb.DATA_TYPE_INT8),
    ],
)
def test_states_that_no_encoder_writes(client, unit, change):
    header = pb.CodedUnitHeader()
    header.CopyFrom(unit.header)
    change(header)
    check_header(header)
    with pytest.raises((CorruptUnitError, InvalidRequestError, ResourceExhaustedError)):
        client.decompress(CodedUnit(header=header, payload=unit.payload))


def test_context_for_a_codec_that_takes_none(client, unit, final):
    with pytest.raises(InvalidRequestError):
        client.decompress(unit, ctx=final[0])


def test_integers_are_no_output_type_of_floats(client, unit):
    with pytest.raises(InvalidRequestError) as caught:
        client.decompress(unit, dtype="int8")
    assert caught.value.field == "output_dtype"


# -------------------------------------------------------------------------------------------- size, time, streams


def test_an_item_larger_than_the_server_takes(client):
    large = np.zeros((90, 257, 384), np.float32)  # 34 MiB of 32
    with pytest.raises(ResourceExhaustedError) as caught:
        client.compress(large, codec=FINAL)
    assert caught.value.retry_after_s is None


def test_no_time_at_all(client, final):
    """Late, or refused at the door because it would be; then no attempt is left in time either."""
    with pytest.raises((DeadlineError, ResourceExhaustedError)):
        client.compress(np.concatenate([final] * 10), codec=FINAL, timeout_s=1e-6)


def test_one_bad_item_among_many_good_ones(client, final):
    bad = {3: _with(final[0], np.nan), 7: final[0][:, :5], 11: final[0][0, 0], 19: np.zeros((3, 257, 384), object)}
    items = [bad.get(index, final[index % 4]) for index in range(24)]
    results = list(client.compress_many(items, codec=FINAL, qp=30, errors="return"))
    assert len(results) == 24
    for index, result in enumerate(results):
        if index in bad:
            assert isinstance(result, InvalidRequestError)
        else:
            assert result == results[index % 4 if index % 4 != 3 else 15]
    units = [result for result in results if isinstance(result, CodedUnit)]
    units[5] = _changed(units[5], fingerprint=b"another!")
    tensors = list(client.decompress_many(units, errors="return"))
    assert [index for index, x in enumerate(tensors) if isinstance(x, MPCompressError)] == [5]
    assert isinstance(tensors[5], CodecMismatchError)


def test_a_bad_item_ends_compress_many_by_default(client, final):
    results = client.compress_many([final[0], _with(final[0], np.nan), final[1]], codec=FINAL)
    assert isinstance(next(results), CodedUnit)
    with pytest.raises(InvalidRequestError, match="nan"):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("chunks", [0, 1])
def test_a_client_that_vanishes_mid_stream(server, final, chunks):
    """A header that reserves 18 MiB, perhaps a chunk, and the connection is gone: ten times, which exceeds the room."""
    h = np.concatenate([final] * 12).astype(np.float32)
    data = wire_view(h)
    gone = threading.Event()

    def requests():
        header = pb.CompressHeader(item_id=1, codec_id=FINAL, tensors=[spec_of(h)], want_progress=True)
        yield pb.CompressRequest(header=header)
        for index in range(chunks):
            part = bytes(data[index * MAX_CHUNK_BYTES : (index + 1) * MAX_CHUNK_BYTES])
            chunk = pb.TensorChunk(item_id=1, offset=index * MAX_CHUNK_BYTES, data=part)
            yield pb.CompressRequest(chunk=chunk)
        # The item stays open until its connection goes.
        gone.wait()

    for _ in range(10):
        channel = grpc.insecure_channel(server, options=[("grpc.use_local_subchannel_pool", 1)])
        call = CompressionServiceStub(channel).Compress(requests())
        assert next(call).progress.stage == pb.ItemProgress.STAGE_ACCEPTED
        channel.close()
    gone.set()
    with CompressionClient(server) as client:
        whole = client.compress(np.concatenate([final] * 6), codec=FINAL)
        assert list(whole.header.tensors[0].shape) == [24, 257, 384]
