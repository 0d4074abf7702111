"""Parcels: what is written is what protobuf would read, what protobuf can read is read alike, and nothing is copied."""

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompress_proto import parcel
from mpcompress_proto.bundles import MAX_BUNDLE
from mpcompress_proto.errors import WireError
from mpcompress_proto.parcel import (
    COMPRESS_REQUEST,
    COMPRESS_RESPONSE,
    DECOMPRESS_REQUEST,
    DECOMPRESS_RESPONSE,
    Parcel,
    Wire,
    bundled,
)
from mpcompress_proto.tensors import wire_view
from mpcompress_proto.v1 import compression_pb2 as pb

BULK = bytes(range(256)) * 40
SPECS = [pb.TensorSpec(name="h", dtype=1, shape=[257, 384])]
HEADER = pb.CompressHeader(item_id=1 << 40, codec_id="store", tensors=SPECS, want_progress=True)
UNIT = pb.CodedUnitHeader(codec_id="store", payload_bytes=len(BULK), fingerprint=b"12345678")

# Every message with a bulk: how it travels, the message without it, and where protobuf has it.
CASES: list[tuple[Any, Any, str]] = [
    (COMPRESS_REQUEST, pb.CompressRequest(header=HEADER), "header.inline_data"),
    (COMPRESS_REQUEST, pb.CompressRequest(chunk=pb.TensorChunk(item_id=3, offset=1 << 33)), "chunk.data"),
    (COMPRESS_REQUEST, pb.CompressRequest(chunk=pb.TensorChunk()), "chunk.data"),
    (DECOMPRESS_REQUEST, pb.DecompressRequest(header=pb.DecompressHeader(unit=UNIT)), "header.inline_data"),
    (DECOMPRESS_REQUEST, pb.DecompressRequest(payload=pb.PayloadChunk(item_id=9)), "payload.data"),
    (DECOMPRESS_REQUEST, pb.DecompressRequest(chunk=pb.TensorChunk(tensor_index=2)), "chunk.data"),
    (
        COMPRESS_RESPONSE,
        pb.CompressResponse(item_id=5, result=pb.CompressedItem(unit=UNIT, report=pb.CodingReport(bpfp=0.5))),
        "result.inline_payload",
    ),
    (COMPRESS_RESPONSE, pb.CompressResponse(item_id=5, chunk=pb.PayloadChunk(offset=7)), "chunk.data"),
    (DECOMPRESS_RESPONSE, pb.DecompressResponse(result=pb.DecompressedItem(tensors=SPECS)), "result.inline_data"),
    (DECOMPRESS_RESPONSE, pb.DecompressResponse(item_id=6, chunk=pb.TensorChunk(tensor_index=1)), "chunk.data"),
]


def with_bulk(message: Any, path: str, bulk: bytes) -> Any:
    """The message as protobuf has it."""
    whole = type(message)()
    whole.CopyFrom(message)
    member, field = path.split(".")
    setattr(getattr(whole, member), field, bulk)
    return whole


@pytest.mark.parametrize(("wire", "message", "path"), CASES)
@pytest.mark.parametrize("size", [1, 127, 128, len(BULK)])
def test_what_is_written_is_what_protobuf_reads(wire, message, path, size):
    written = wire.write(Parcel(message, memoryview(BULK)[:size]))
    assert type(message).FromString(written) == with_bulk(message, path, BULK[:size])
    again = wire.read(written)
    assert bytes(again.bulk) == BULK[:size]


@pytest.mark.parametrize(("wire", "message", "path"), CASES)
@pytest.mark.parametrize("size", [0, 3, len(BULK)])
def test_what_protobuf_writes_is_read(wire, message, path, size):
    whole = with_bulk(message, path, BULK[:size])
    got = wire.read(whole.SerializeToString())
    assert bytes(got.bulk) == BULK[:size]
    assert with_bulk(got.message, path, b"") == message


@pytest.mark.parametrize(("wire", "message", "path"), CASES)
def test_a_large_bulk_is_a_view_of_what_came(wire, message, path):
    written = wire.write(Parcel(message, BULK))
    got = wire.read(written)
    assert got.message == message
    assert isinstance(got.bulk, memoryview)
    assert np.shares_memory(np.frombuffer(got.bulk, np.uint8), np.frombuffer(written, np.uint8))


def test_messages_without_a_bulk():
    cancel = pb.CompressRequest(cancel=pb.CancelItem(item_id=4))
    for written in (COMPRESS_REQUEST.write(cancel), COMPRESS_REQUEST.write(Parcel(cancel))):
        assert COMPRESS_REQUEST.read(written) == Parcel(cancel)
    # As long as one with a bulk, and none.
    error = pb.CompressResponse(item_id=1)
    error.error.message = "x" * 20_000
    assert COMPRESS_RESPONSE.read(COMPRESS_RESPONSE.write(error)) == Parcel(error)
    assert COMPRESS_RESPONSE.read(b"") == Parcel(pb.CompressResponse())


def test_the_bytes_of_an_array_need_no_copy_first():
    array = np.arange(4096, dtype=np.float32).reshape(64, 64)
    written = COMPRESS_REQUEST.write(Parcel(pb.CompressRequest(header=HEADER), wire_view(array)))
    assert pb.CompressRequest.FromString(written).header.inline_data == array.tobytes()


@pytest.mark.parametrize("item_id", [1, 1 << 7, 1 << 14, 1 << 21])
@pytest.mark.parametrize("count", [5000, 98688, 400_000])
def test_tensors_begin_at_a_multiple_of_four_bytes(item_id, count):
    array = np.arange(count, dtype=np.float16)
    for spare in range(4):
        header = pb.CompressHeader(item_id=item_id, codec_id="c" * (spare + 1), tensors=SPECS)
        written = COMPRESS_REQUEST.write(Parcel(pb.CompressRequest(header=header), wire_view(array)))
        assert written.find(array.tobytes()) % 4 == 0
        assert pb.CompressRequest.FromString(written) == with_bulk(
            pb.CompressRequest(header=header), "header.inline_data", array.tobytes()
        )
        got = COMPRESS_REQUEST.read(written)
        assert got.message.header == header
        assert np.frombuffer(got.bulk, np.uint8).view(np.float16).flags.aligned


@pytest.mark.parametrize("twice", ["field", "member", "members", "unknown", "unknown inside"])
def test_what_protobuf_allows_and_nobody_writes_means_the_same(twice):
    first = pb.CompressRequest(chunk=pb.TensorChunk(item_id=1, data=b"a" * 9000)).SerializeToString()
    chunk = pb.TensorChunk(item_id=2, offset=5, data=b"b" * 9000).SerializeToString()
    # Field 900, a varint; field 901, bytes.
    unknown = b"\xa0\x38\x07" + b"\xaa\x38\x03abc"
    inner = {
        "field": chunk + pb.TensorChunk(data=b"c").SerializeToString(),
        "unknown inside": unknown + chunk + unknown,
    }.get(twice, chunk)
    size = len(inner)
    wire = b"\x12" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + inner
    if twice == "member":
        wire = first + wire
    elif twice == "members":
        wire = pb.CompressRequest(cancel=pb.CancelItem(item_id=8)).SerializeToString() + wire
    elif twice == "unknown":
        wire = unknown + wire
    _same(COMPRESS_REQUEST, wire)


def test_a_message_of_many_fields_is_left_to_protobuf(monkeypatch):
    """A walk through all of them in Python would hold a server for seconds."""
    walked = []
    read = parcel._read_varint
    monkeypatch.setattr(parcel, "_read_varint", lambda wire, at: walked.append(at) or read(wire, at))
    unknown = b"\xa0\x38\x07" * 100_000
    chunk = pb.TensorChunk(item_id=2, data=BULK).SerializeToString()
    before = unknown + pb.CompressRequest(chunk=pb.TensorChunk(item_id=2, data=BULK)).SerializeToString()
    size = len(unknown) + len(chunk)
    inside = b"\x12" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14]) + unknown + chunk
    for wire in (before, inside):
        _same(COMPRESS_REQUEST, wire)
    assert len(walked) < 1000


# Of each type: messages with a bulk, in turn with one that has none.
BUNDLES: list[tuple[Wire[Any], str, list[Parcel[Any]]]] = [
    (
        wire,
        several,
        [
            one
            for each, message, _ in CASES
            if each is wire
            for one in (Parcel(message, BULK), Parcel(message, b"12"), Parcel(small))
        ],
    )
    for wire, several, small in (
        (COMPRESS_REQUEST, "requests", pb.CompressRequest(cancel=pb.CancelItem(item_id=4))),
        (DECOMPRESS_REQUEST, "requests", pb.DecompressRequest(cancel=pb.CancelItem(item_id=4))),
        (COMPRESS_RESPONSE, "responses", pb.CompressResponse(item_id=7, progress=pb.ItemProgress(stage=1))),
        (DECOMPRESS_RESPONSE, "responses", pb.DecompressResponse(item_id=7, progress=pb.ItemProgress(stage=1))),
    )
]


@pytest.mark.parametrize(("wire", "several", "parcels"), BUNDLES)
def test_a_bundle_is_what_protobuf_makes_of_its_messages(wire, several, parcels):
    kind = type(parcels[0].message)
    single = [kind.FromString(wire.write(one)) for one in parcels]
    written = wire.write(bundled(parcels))
    assert kind.FromString(written) == kind(bundle={several: single})
    # As protobuf writes it, and with a field between that this release does not know.
    inner = kind(bundle={several: single}).bundle.SerializeToString() + b"\xa0\x38\x07"
    known = kind(bundle={}).SerializeToString()[:1] + bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7 & 0x7F | 0x80])
    for bytes_ in (
        written,
        kind(bundle={several: single}).SerializeToString(),
        known + bytes([len(inner) >> 14]) + inner,
    ):
        got = wire.read(bytes_)
        assert got.message == kind(bundle={})
        assert [bytes(one.bulk) for one in got.bundle] == [bytes(one.bulk) for one in parcels]
        assert got.nbytes == sum(len(one.bulk) for one in parcels)
        for one, sent in zip(got.bundle, single, strict=True):
            assert kind.FromString(wire.write(Parcel(_without_bulk(one.message), one.bulk))) == sent
    large = next(one for one in wire.read(written).bundle if len(one.bulk) == len(BULK))
    assert np.shares_memory(np.frombuffer(large.bulk, np.uint8), np.frombuffer(written, np.uint8))


def _without_bulk(message: Any) -> Any:
    """What protobuf read has its bulk in both places."""
    for member in message.DESCRIPTOR.oneofs[0].fields:
        for field in member.message_type.fields if message.HasField(member.name) else ():
            if field.name in ("data", "inline_data", "inline_payload"):
                getattr(message, member.name).ClearField(field.name)
    return message


def test_a_bundle_has_a_bound():
    cancels = [pb.CompressRequest(cancel=pb.CancelItem(item_id=n)) for n in range(MAX_BUNDLE + 1)]
    assert len(COMPRESS_REQUEST.read(COMPRESS_REQUEST.write(bundled(cancels[1:]))).bundle) == MAX_BUNDLE
    whole = pb.CompressRequest(bundle=pb.CompressRequestBundle(requests=cancels)).SerializeToString()
    for written in (COMPRESS_REQUEST.write(bundled(cancels)), whole + b"\xa0\x38\x07"):
        with pytest.raises(WireError, match="at most 64"):
            COMPRESS_REQUEST.read(written)
    assert COMPRESS_REQUEST.read(pb.CompressRequest(bundle={}).SerializeToString()).bundle == []


def test_who_makes_a_bundle_far_too_long_makes_no_work(monkeypatch):
    walked = []
    read = parcel._read_varint
    monkeypatch.setattr(parcel, "_read_varint", lambda wire, at: walked.append(at) or read(wire, at))
    whole = pb.CompressRequest(bundle=pb.CompressRequestBundle(requests=[pb.CompressRequest()] * 100_000))
    with pytest.raises(WireError):
        COMPRESS_REQUEST.read(whole.SerializeToString())
    assert len(walked) < 100


@settings(max_examples=300, deadline=None)
@given(case=st.integers(0, len(BUNDLES) - 1), data=st.data())
def test_a_damaged_bundle_is_read_as_protobuf_reads_it(case, data):
    wire, _, parcels = BUNDLES[case]
    written = bytearray(wire.write(bundled(parcels)))
    heads = [0]
    for one in parcels:
        heads.append(heads[-1] + len(wire.write(one)))
    places = st.one_of(
        *(st.integers(head, min(head + 30, len(written) - 1)) for head in heads if head < len(written)),
    )
    for place in data.draw(st.lists(places, min_size=1, max_size=3)):
        written[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del written[data.draw(st.integers(1, len(written))) :]
    _same(wire, bytes(written))


@settings(max_examples=300, deadline=None)
@given(case=st.sampled_from(CASES), data=st.data())
def test_damaged_bytes_are_read_as_protobuf_reads_them(case, data):
    wire, message, _ = case
    written = bytearray(wire.write(Parcel(message, BULK)))
    # The structure is in the first bytes and, behind the bulk, in the last.
    places = st.one_of(st.integers(0, min(90, len(written) - 1)), st.integers(len(written) - 4, len(written) - 1))
    for place in data.draw(st.lists(places, min_size=1, max_size=3)):
        written[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del written[data.draw(st.integers(1, len(written))) :]
    _same(wire, bytes(written))


def _same(wire: Any, written: bytes) -> None:
    """Both readers refuse it, or find the same message and bulk."""
    kind = type(wire.read(b"").message)
    try:
        expected = kind.FromString(written)
    except DecodeError:
        with pytest.raises(DecodeError):
            wire.read(written)
        return
    _same_parcel(wire.read(written), expected)


def _same_parcel(got: Parcel[Any], expected: Any) -> None:
    kind = type(expected)
    message, bulk, bundle = got
    if expected.WhichOneof(kind.DESCRIPTOR.oneofs[0].name) == "bundle" and message.bundle == type(message.bundle)():
        (several,) = message.bundle.DESCRIPTOR.fields
        for one, inner in zip(bundle, getattr(expected.bundle, several.name), strict=True):
            _same_parcel(one, inner)
        return
    name = message.WhichOneof(kind.DESCRIPTOR.oneofs[0].name)
    assert name == expected.WhichOneof(kind.DESCRIPTOR.oneofs[0].name)
    if name is not None:
        for field in getattr(message, name).DESCRIPTOR.fields:
            if field.name in ("data", "inline_data", "inline_payload"):
                assert bytes(bulk) == getattr(getattr(expected, name), field.name)
                setattr(getattr(message, name), field.name, b"")
                setattr(getattr(expected, name), field.name, b"")
    assert message == expected
