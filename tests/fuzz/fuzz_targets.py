"""What is fuzzed: functions that take any bytes and must end in a value or in the error of their contract."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from mpcompress import registry
from mpcompress.codec import FeatureCodec, TensorSpec, Unit
from mpcompress.entropy import CdfTables, IndexedTables, decode
from mpcompress.entropy.compressai_format import decode_with_indexes
from mpcompress.entropy.ending import Ending
from mpcompress.errors import CodecUnavailableError, CorruptBitstreamError, MpcompressError
from mpcompress_proto.coded_unit import CodedUnit, check_header, check_payload, split_payload
from mpcompress_proto.errors import CorruptUnitError, WireError
from mpcompress_proto.pstate import get_pstate
from mpcompress_proto.tensors import dtype_of
from mpcompress_proto.v1 import compression_pb2 as pb

CODEC = "klt-imgfocus-vits14-final"
# Larger units are legal, but say nothing that smaller ones do not.
MAX_ELEMENTS = 1 << 20
SMALL_ELEMENTS = 1 << 12
_VIT = {"h_dim": 64, "y_dim": 16, "z_dim": 8, "groups": 8, "num_prefix_tokens": 1}
_CLIP = {"model_type": "dinov2", "trun_low": -5.0, "trun_high": 5.0}
FAMILIES: dict[str, dict[str, Any]] = {
    "x265": {**_CLIP, "task": "dinov2 cls", "bit_depth": 10},
    "vit_union": _VIT,
    "vit_union_exact": _VIT,
    "feature_hyperprior": {**_CLIP, "N": 8, "M": 12},
}
# FFmpeg's decoder is not ours; tests/mpcompress/picture tries hostile streams on it.
CHECKED_ONLY = ("x265",)


@cache
def codec() -> FeatureCodec:
    """The codec under test."""
    return registry.load(registry.preset(CODEC))


@cache
def others() -> list[FeatureCodec]:
    """A codec for each further kind of pstate; those whose packages are not installed are left out."""
    found = []
    for family, options in FAMILIES.items():
        try:
            found.append(registry.load(registry.CodecSpec(id=family, family=family, options=options)))
        except (CodecUnavailableError, ImportError):
            continue
    return found


@cache
def tables() -> CdfTables:
    """Three tables of different widths."""
    return CdfTables.from_pmfs([np.full(width, 1 / width) for width in (3, 17, 200)], [-1, -8, -100], precision=16)


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
    kind, unit = parse_unit(data)
    if unit is not None and kind == "klt" and unit.specs[0].elements <= MAX_ELEMENTS:
        decode_unit(unit)


def pstate(data: bytes) -> None:
    """The same for the other kinds of pstate: checks of every codec that has the kind; small units are decoded too."""
    kind, unit = parse_unit(data)
    for other in others() if unit is not None else ():
        if other.pstate_kind != kind:
            continue
        try:
            specs = other.check_unit(unit)
            if other.family not in CHECKED_ONLY and max(spec.elements for spec in specs) <= SMALL_ELEMENTS:
                (decoded,) = other.decompress([unit])
                assert {spec.name: spec.shape for spec in specs} == {name: a.shape for name, a in decoded.items()}
        except MpcompressError:
            continue


def parse_unit(data: bytes) -> tuple[str, Unit | None]:
    """Kind of pstate and unit, when a server would hand it to a codec: two bytes of length, header, payload."""
    size = int.from_bytes(data[:2], "little")
    header = pb.CodedUnitHeader()
    try:
        header.ParseFromString(data[2 : 2 + size])
        payload = data[2 + size :]
        check_header(header)
        check_payload(header, payload)
        kind, state = get_pstate(header)
        specs = tuple(
            TensorSpec(name=spec.name or "h", dtype=dtype_of(spec.dtype).name, shape=tuple(spec.shape))
            for spec in header.tensors
        )
    except (DecodeError, WireError):
        return "", None
    return kind, Unit(strings=split_payload(header, payload), pstate=state, specs=specs)


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
    """The decoder of our own format, with either ending: the top bit of the count says which."""
    count = int.from_bytes(data[:2], "little")
    ending: Ending = "short" if count >> 15 else "long"
    try:
        decode(data[2:], np.arange(count & 0x7FFF, dtype=np.uint16) % 3, tables(), ending)
    except CorruptBitstreamError:
        return


def compressai_stream(data: bytes) -> None:
    """The decoder of CompressAI's format."""
    count = int.from_bytes(data[:2], "little")
    try:
        decode_with_indexes(data[2:], np.arange(count, dtype=np.int32) % 2, indexed())
    except CorruptBitstreamError:
        return


TARGETS = {target.__name__: target for target in (mpc_file, klt_unit, klt_payload, pstate, rans, compressai_stream)}
