"""CodedUnit: a compressed item as the client and the server hold it, as a message, and as a .mpc file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
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
        payload = bytes(strings[0]) if len(strings) == 1 else b"".join(strings)
        header = pb.CodedUnitHeader(
            format_version=mpc_file.FORMAT_VERSION,
            codec_id=codec_id,
            bitstream_version=bitstream_version,
            fingerprint=fingerprint,
            arithmetic=arithmetic,
            ctx_hash=ctx_hash,
            tensors=tensors,
            stream_bytes=[len(string) for string in strings] if len(strings) != 1 else [],
            payload_bytes=len(payload),
            payload_crc32=zlib.crc32(payload),
        )
        set_pstate(header, kind, pstate)
        check_header(header)
        # Not by the constructor: it would make the checksum of these very bytes again.
        return cls._checked(header, payload, report)

    @classmethod
    def of_checked_header(
        cls, header: pb.CodedUnitHeader, payload: bytes, report: pb.CodingReport | None = None
    ) -> CodedUnit:
        """A unit whose header `check_header` has seen, when its payload has come. Raises CorruptUnitError."""
        check_payload(header, payload)
        return cls._checked(header, payload, report)

    @classmethod
    def _checked(cls, header: pb.CodedUnitHeader, payload: bytes, report: pb.CodingReport | None) -> CodedUnit:
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

    @property
    def elements(self) -> int:
        """Feature elements it stands for."""
        count = 1
        for side in self.header.tensors[0].shape:
            count *= side
        return count

    @property
    def nbytes(self) -> int:
        """Size of the complete .mpc file, bytes."""
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


def check_header(header: pb.CodedUnitHeader) -> None:
    """Checks a header from anywhere, before its payload is there. Raises WireError naming the field."""
    if header.format_version != mpc_file.FORMAT_VERSION:
        raise WireError(
            f"unit format {header.format_version}; known: {mpc_file.FORMAT_VERSION}", field="unit.format_version"
        )
    if not mpc_file.CODEC_ID.fullmatch(header.codec_id):
        raise WireError("a codec id is 1 to 64 characters of [a-z0-9._-]", field="unit.codec_id")
    if not 1 <= header.bitstream_version <= 63:
        raise WireError("the bitstream version is 1 to 63", field="unit.bitstream_version")
    if len(header.fingerprint) != mpc_file.FINGERPRINT_BYTES:
        raise WireError(f"a fingerprint has {mpc_file.FINGERPRINT_BYTES} bytes", field="unit.fingerprint")
    if header.arithmetic not in (pb.ARITHMETIC_EXACT, pb.ARITHMETIC_FLOAT32):
        raise WireError("the arithmetic is neither exact nor float32", field="unit.arithmetic")
    if len(header.ctx_hash) not in (0, mpc_file.FINGERPRINT_BYTES):
        raise WireError(f"a ctx hash has 0 or {mpc_file.FINGERPRINT_BYTES} bytes", field="unit.ctx_hash")
    if not header.tensors:
        raise WireError("a unit has at least one tensor", field="unit.tensors")
    check_specs(header.tensors, "unit.tensors")
    if header.WhichOneof("pstate") is None:
        raise WireError("the unit has no pstate", field="unit.pstate")
    if header.stream_bytes and sum(header.stream_bytes) != header.payload_bytes:
        raise WireError("the stream sizes do not add up to the payload's", field="unit.stream_bytes")


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
