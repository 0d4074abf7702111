"""CodedUnit: a compressed item as the client and the server hold it, as a message, and as a .mpc file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from mpcompress_proto import mpc_file
from mpcompress_proto.errors import CorruptUnitError, WireError
from mpcompress_proto.pstate import get_pstate, set_pstate
from mpcompress_proto.tensors import FEATURES, check_specs
from mpcompress_proto.v1 import compression_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class CodedUnit:
    """One compressed item. Made by a codec, or by `load` and `from_bytes`; checked when made.

    Args:
        header: everything but the payload; do not change it.
        payload: the entropy-coded bytes.
        report: what coding gave; None for units that were loaded.
    """

    header: pb.CodedUnitHeader
    payload: bytes
    report: pb.CodingReport | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        check_header(self.header)
        check_payload(self.header, self.payload)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{spec.name or FEATURES} {tuple(spec.shape)}" for spec in self.header.tensors)
        return f"CodedUnit({self.codec_id}: {shapes}, {self.nbytes} bytes, {self.bpfp:.3f} bpfp)"

    @classmethod
    def build(
        cls,
        *,
        codec_id: str,
        bitstream_version: int,
        fingerprint: bytes,
        arithmetic: pb.Arithmetic.ValueType,
        tensors: Sequence[pb.TensorSpec],
        kind: str,
        pstate: dict[str, Any],
        strings: Sequence[bytes],
        ctx_hash: bytes = b"",
        report: pb.CodingReport | None = None,
    ) -> CodedUnit:
        """Makes a unit from what a codec gives; `kind` names the pstate's member of the oneof."""
        maker = UnitMaker(
            codec_id=codec_id,
            bitstream_version=bitstream_version,
            fingerprint=fingerprint,
            arithmetic=arithmetic,
            tensors=tensors,
            kind=kind,
        )
        return maker.make(pstate=pstate, strings=strings, ctx_hash=ctx_hash, report=report)

    @classmethod
    def of_checked_header(
        cls, header: pb.CodedUnitHeader, payload: bytes, report: pb.CodingReport | None = None
    ) -> CodedUnit:
        """A unit whose header `check_header` has seen, when its payload has come. Raises CorruptUnitError."""
        check_payload(header, payload)
        return cls._checked(header, payload, report)

    @classmethod
    def _checked(cls, header: pb.CodedUnitHeader, payload: bytes, report: pb.CodingReport | None) -> CodedUnit:
        # Not by the constructor: it would make the checksum of these very bytes again.
        unit = object.__new__(cls)
        for name, value in (("header", header), ("payload", payload), ("report", report)):
            object.__setattr__(unit, name, value)
        return unit

    @property
    def codec_id(self) -> str:
        """Which codec made it."""
        return self.header.codec_id

    @property
    def fingerprint(self) -> bytes:
        """8 bytes: which weights it needs."""
        return self.header.fingerprint

    @property
    def pstate(self) -> dict[str, Any]:
        """What decoding needs besides the payload, as a dictionary."""
        return get_pstate(self.header)[1]

    @property
    def strings(self) -> list[bytes]:
        """The sub-streams of the payload."""
        return split_payload(self.header, self.payload)

    @cached_property
    def elements(self) -> int:
        """Feature elements it stands for."""
        count = 1
        for side in self.header.tensors[0].shape:
            count *= side
        return count

    @cached_property
    def nbytes(self) -> int:
        """Size of the complete .mpc file that `to_bytes` gives, bytes."""
        return mpc_file.size(self.header)

    @property
    def bpfp(self) -> float:
        """Bits per feature point: bits of the complete .mpc file per feature element."""
        return 8 * self.nbytes / self.elements

    def to_bytes(self) -> bytes:
        """The complete .mpc file."""
        return mpc_file.write(self.header, self.payload)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the .mpc file."""
        Path(path).write_bytes(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> CodedUnit:
        """Parses a .mpc file. Raises CorruptUnitError when it is damaged, truncated, extended or none at all."""
        header, payload = mpc_file.read(bytes(data))
        try:
            return cls(header=header, payload=payload)
        except CorruptUnitError:
            raise
        except WireError as error:
            raise CorruptUnitError(error.message, field=error.field) from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> CodedUnit:
        """Reads a .mpc file. Raises OSError, and CorruptUnitError as `from_bytes`."""
        return cls.from_bytes(Path(path).read_bytes())


class UnitMaker:
    """Makes units that differ in what a codec gives only; what they have in common is made and checked once.

    Args:
        codec_id: as in `CodedUnit.build`, as the others.
        bitstream_version: 1 to 63.
        fingerprint: 8 bytes.
        arithmetic: exact or float32.
        tensors: the specs of what was compressed.
        kind: the pstate's member of the oneof.

    Raises:
        WireError: naming the field that no unit can have.
    """

    def __init__(
        self,
        *,
        codec_id: str,
        bitstream_version: int,
        fingerprint: bytes,
        arithmetic: pb.Arithmetic.ValueType,
        tensors: Sequence[pb.TensorSpec],
        kind: str,
    ) -> None:
        self._kind = kind
        self._common = pb.CodedUnitHeader(
            format_version=mpc_file.UNIT_FORMAT_VERSION,
            codec_id=codec_id,
            bitstream_version=bitstream_version,
            fingerprint=fingerprint,
            arithmetic=arithmetic,
            tensors=tensors,
        )
        complete = pb.CodedUnitHeader()
        complete.CopyFrom(self._common)
        set_pstate(complete, kind, {})
        check_header(complete)
        self._sizes = mpc_file.Sizes(self._common)

    def make(
        self,
        *,
        pstate: dict[str, Any],
        strings: Sequence[bytes],
        ctx_hash: bytes = b"",
        report: pb.CodingReport | None = None,
    ) -> CodedUnit:
        """The unit of what a codec gives. Raises WireError for a pstate or hash that no unit has."""
        payload = bytes(strings[0]) if len(strings) == 1 else b"".join(strings)
        own = pb.CodedUnitHeader(ctx_hash=ctx_hash)
        if len(strings) != 1:
            own.stream_bytes.extend(map(len, strings))
        set_pstate(own, self._kind, pstate)
        _check_ctx_hash(own)
        header = pb.CodedUnitHeader(payload_bytes=len(payload), payload_crc32=zlib.crc32(payload))
        header.MergeFrom(self._common)
        header.MergeFrom(own)
        unit = CodedUnit._checked(header, payload, report)
        vars(unit)["nbytes"] = self._sizes.of(own, len(payload))
        return unit


def check_header(header: pb.CodedUnitHeader) -> None:
    """Checks a header from anywhere, before its payload is there. Raises WireError naming the field."""
    if header.format_version != mpc_file.UNIT_FORMAT_VERSION:
        raise WireError(
            f"unit format {header.format_version}; known: {mpc_file.UNIT_FORMAT_VERSION}", field="unit.format_version"
        )
    if not mpc_file.CODEC_ID.fullmatch(header.codec_id):
        raise WireError("a codec id is 1 to 64 characters of [a-z0-9._-]", field="unit.codec_id")
    if not 1 <= header.bitstream_version <= 63:
        raise WireError("the bitstream version is 1 to 63", field="unit.bitstream_version")
    if len(header.fingerprint) != mpc_file.FINGERPRINT_BYTES:
        raise WireError(f"a fingerprint has {mpc_file.FINGERPRINT_BYTES} bytes", field="unit.fingerprint")
    if header.arithmetic not in (pb.ARITHMETIC_EXACT, pb.ARITHMETIC_FLOAT32):
        raise WireError("the arithmetic is neither exact nor float32", field="unit.arithmetic")
    _check_ctx_hash(header)
    if not header.tensors:
        raise WireError("a unit has at least one tensor", field="unit.tensors")
    check_specs(header.tensors, "unit.tensors")
    if header.WhichOneof("pstate") is None:
        raise WireError("the unit has no pstate", field="unit.pstate")
    if header.stream_bytes and sum(header.stream_bytes) != header.payload_bytes:
        raise WireError("the stream sizes do not add up to the payload's", field="unit.stream_bytes")


def _check_ctx_hash(header: pb.CodedUnitHeader) -> None:
    if len(header.ctx_hash) not in (0, mpc_file.FINGERPRINT_BYTES):
        raise WireError(f"a ctx hash has 0 or {mpc_file.FINGERPRINT_BYTES} bytes", field="unit.ctx_hash")


def check_payload(header: pb.CodedUnitHeader, payload: bytes) -> None:
    """Checks size and CRC-32 of a payload. Raises CorruptUnitError."""
    if len(payload) != header.payload_bytes:
        raise CorruptUnitError(
            f"the payload has {len(payload)} bytes, its header says {header.payload_bytes}", field="unit.payload_bytes"
        )
    if zlib.crc32(payload) != header.payload_crc32:
        raise CorruptUnitError("the payload is damaged: its CRC-32 does not match", field="unit.payload_crc32")


def split_payload(header: pb.CodedUnitHeader, payload: bytes) -> list[bytes]:
    """Cuts a payload of the right size into its sub-streams."""
    if not header.stream_bytes:
        return [payload]
    strings, start = [], 0
    for size in header.stream_bytes:
        strings.append(payload[start : start + size])
        start += size
    return strings
