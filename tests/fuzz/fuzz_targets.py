"""What is fuzzed: functions that take any bytes and must end in a value or in the error of their contract."""

from __future__ import annotations

from functools import cache

import numpy as np
from google.protobuf.message import DecodeError

from mpcompress import registry
from mpcompress.codec import FeatureCodec, TensorSpec, Unit
from mpcompress.entropy import CdfTables, IndexedTables, decode
from mpcompress.entropy.compressai_format import decode_with_indexes
from mpcompress.errors import CorruptBitstreamError, MpcompressError
from mpcompress_proto.coded_unit import CodedUnit, check_header, check_payload, split_payload
from mpcompress_proto.errors import CorruptUnitError, WireError
from mpcompress_proto.pstate import get_pstate
from mpcompress_proto.tensors import dtype_of
from mpcompress_proto.v1 import compression_pb2 as pb

CODEC = "klt-imgfocus-vits14-final"
# Larger units are legal, but say nothing that smaller ones do not.
MAX_ELEMENTS = 1 << 20


@cache
def codec() -> FeatureCodec:
    """The codec under test."""
    return registry.load(registry.preset(CODEC))


@cache
def tables() -> CdfTables:
    """Three tables of different widths."""
    return CdfTables.from_pmfs([np.full(width, 1 / width) for width in (3, 17, 200)], [-1, -8, -100])


@cache
def indexed() -> IndexedTables:
    """Two tables in CompressAI's layout."""
    cdfs = np.array([[0, 20000, 45000, 65536, 0], [0, 1000, 60000, 65000, 65536]], np.int32)
    return IndexedTables(cdfs, np.array([4, 5], np.int32), np.array([-1, -2], np.int32))


def mpc_file(data: bytes) -> None:
    """A .mpc file from anywhere: a unit that writes the same bytes again or one of the same meaning, or an error."""
    try:
        unit = CodedUnit.from_bytes(data)
    except CorruptUnitError:
        return
    assert CodedUnit.from_bytes(unit.to_bytes()).header == unit.header


def klt_unit(data: bytes) -> None:
    """A unit header from the wire and its payload, through the codec's checks and its decoder."""
    size = int.from_bytes(data[:2], "little")
    header = pb.CodedUnitHeader()
    try:
        header.ParseFromString(data[2 : 2 + size])
        payload = data[2 + size :]
        check_header(header)
        check_payload(header, payload)
        kind, pstate = get_pstate(header)
        specs = tuple(
            TensorSpec(name=spec.name or "h", dtype=dtype_of(spec.dtype).name, shape=tuple(spec.shape))
            for spec in header.tensors
        )
    except (DecodeError, WireError):
        return
    if kind == "klt" and specs[0].elements <= MAX_ELEMENTS:
        decode_unit(Unit(strings=split_payload(header, payload), pstate=pstate, specs=specs))


def klt_payload(data: bytes) -> None:
    """A healthy header with any payload: the first byte chooses the qp."""
    spec = TensorSpec(name="h", dtype="float16", shape=(257, 384))
    decode_unit(Unit(strings=[data[1:]], pstate={"qp_eighths": int.from_bytes(data[:1], "little")}, specs=(spec,)))


def decode_unit(unit: Unit) -> None:
    """Checks and decodes; finite values of the promised shape, or an error of the library's tree."""
    try:
        (spec,) = codec().check_unit(unit)
        (decoded,) = codec().decompress([unit])
    except MpcompressError:
        return
    assert decoded["h_hat"].shape == spec.shape
    assert np.isfinite(decoded["h_hat"].astype(np.float32)).all()


def rans(data: bytes) -> None:
    """The decoder of our own format."""
    count = int.from_bytes(data[:2], "little")
    try:
        decode(data[2:], np.arange(count, dtype=np.uint8) % 3, tables())
    except CorruptBitstreamError:
        return


def compressai_stream(data: bytes) -> None:
    """The decoder of CompressAI's format."""
    count = int.from_bytes(data[:2], "little")
    try:
        decode_with_indexes(data[2:], np.arange(count, dtype=np.int32) % 2, indexed())
    except CorruptBitstreamError:
        return


TARGETS = {target.__name__: target for target in (mpc_file, klt_unit, klt_payload, rans, compressai_stream)}
