"""The .mpc file: a coded unit in as few bytes as its header allows.

    offset  bytes
    0       2      "MP"
    2       1      0xC0 | layout, 1 to 3
    3       4      CRC-32 (zlib's) of all other bytes of the file, little-endian
    7       ..     the codec. Layouts 1 and 2:
                   8      fingerprint
                   1      bits 0-1 arithmetic, bits 2-7 bitstream version (1 to 63)
                   2n     codec id in base 40: three characters per little-endian uint16, ended by a 0 character;
                          or in layout 2 one little-endian uint16, 64000 + the id's place in `KNOWN_IDS`
                   layout 3:
                   1+     varint: place in `EDITIONS`, which has all of that
    ..      ..     one descriptor per tensor: a byte (bits 0-3 data type, bits 4-6 rank, bit 7 another one follows),
                   then the sides as varints
    ..      1+     varint: size of the state that follows
    ..      ..     state: a CodedUnitHeader with only pstate, stream_bytes (of more than one), ctx_hash and, unless
                   there is one tensor named "h", the tensors' names
    ..      ..     payload, to the end

Words in base 40 are below 64000. A unit is written in the highest layout that has a number for its codec. A whole unit
of a shipped klt codec costs at most 22 bytes beyond its payload. The layout is the file's own matter: the format of the
unit, `CodedUnitHeader.format_version`, is 1 in all.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError

from mpcompress_proto.errors import CorruptUnitError, WireError
from mpcompress_proto.known_ids import EDITION_NUMBERS, EDITIONS, KNOWN_IDS, NUMBERS, Edition
from mpcompress_proto.tensors import FEATURES, MAX_RANK, MAX_SIDE, MAX_TENSORS
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.varint import varint

UNIT_FORMAT_VERSION = 1
FINGERPRINT_BYTES = 8
CODEC_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

T = TypeVar("T")

_MAGIC = b"MP"
_LAYOUT_BASE = 0xC0
_SPELT, _NUMBERED, _EDITION = 1, 2, 3
_CRC = slice(3, 7)
_FIXED = struct.Struct("<2sBI")
_IDENTITY = struct.Struct("<8sB")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789._-"
_DIGIT = {character: index + 1 for index, character in enumerate(_ALPHABET)}
_MAX_ID_WORDS = 22
_FIRST_NUMBER = 40**3
_MAX_STATE_BYTES = 1 << 20
_MAX_NUMBER = (1 << 32) - 1


def write(header: pb.CodedUnitHeader, payload: bytes) -> bytes:
    """Serialises a checked header and its payload. Raises WireError for what the layout cannot hold."""
    body = b"".join((*_fields(header), payload))
    return body[: _CRC.start] + _checksum(body).to_bytes(4, "little") + body[_CRC.stop :]


def size(header: pb.CodedUnitHeader) -> int:
    """Bytes of the file that `write` makes of a header with its payload, which is not looked at. Raises as `write`."""
    return sum(map(len, _fields(header))) + header.payload_bytes


class Sizes:
    """Sizes of files whose units have codec, format and tensors in common: what those take is found once.

    Args:
        common: a checked header with these; what else it has is not looked at.
    """

    def __init__(self, common: pb.CodedUnitHeader) -> None:
        self._around = _FIXED.size + len(_pack_codec(_edition_of(common))[1]) + len(_pack_tensors(common))
        self._names_bytes = len(_state(pb.CodedUnitHeader(tensors=common.tensors)))

    def of(self, own: pb.CodedUnitHeader, payload_bytes: int) -> int:
        """As `size`; `own` has a unit's pstate, ctx_hash and the sizes of its streams, when it has several."""
        state_bytes = _checked_size(self._names_bytes + own.ByteSize())
        return self._around + len(varint(state_bytes)) + state_bytes + payload_bytes


def _fields(header: pb.CodedUnitHeader) -> tuple[bytes, ...]:
    """All of the file but its payload, with a CRC of 0."""
    if not 1 <= header.bitstream_version <= 63:
        raise WireError("the bitstream version is 1 to 63", field="unit.bitstream_version")
    if len(header.fingerprint) != FINGERPRINT_BYTES:
        raise WireError(f"a fingerprint has {FINGERPRINT_BYTES} bytes", field="unit.fingerprint")
    state = _state(header)
    _checked_size(len(state))
    layout, codec = _pack_codec(_edition_of(header))
    return (
        _FIXED.pack(_MAGIC, _LAYOUT_BASE | layout, 0),
        codec,
        _pack_tensors(header),
        varint(len(state)),
        state,
    )


def _checked_size(state_bytes: int) -> int:
    if state_bytes > _MAX_STATE_BYTES:
        raise WireError(f"a state of {state_bytes} bytes; the limit is {_MAX_STATE_BYTES}", field="unit.pstate")
    return state_bytes


def read(data: bytes) -> tuple[pb.CodedUnitHeader, bytes]:
    """Parses a .mpc file from anywhere into its header, all fields set, and its payload.

    Raises:
        CorruptUnitError: not a .mpc file, of a newer layout, of a codec with a newer number, damaged, truncated or
            extended.
    """
    if len(data) < _FIXED.size or data[:2] != _MAGIC or data[2] & 0xF0 != _LAYOUT_BASE:
        raise CorruptUnitError("not a .mpc file", field="unit")
    layout = data[2] & 0x0F
    if not _SPELT <= layout <= _EDITION:
        said = f".mpc layout {layout}; this reader knows {_SPELT} to {_EDITION}, a newer version may know it"
        raise CorruptUnitError(said, field="unit")
    if _checksum(data) != int.from_bytes(data[_CRC], "little"):
        raise CorruptUnitError("the .mpc file is damaged or incomplete: its checksum does not match", field="unit")
    cursor = _Cursor(data, _FIXED.size)
    codec = _unpack_codec(cursor, layout)
    tensors = _unpack_tensors(cursor)
    header = pb.CodedUnitHeader()
    try:
        header.ParseFromString(cursor.take(cursor.varint(_MAX_STATE_BYTES)))
    except DecodeError as error:
        raise CorruptUnitError("the .mpc file's state is no CodedUnitHeader", field="unit.pstate") from error
    payload = cursor.rest()
    _merge_names(header, tensors)
    header.format_version = UNIT_FORMAT_VERSION
    header.codec_id = codec.codec_id
    header.fingerprint = codec.fingerprint
    header.arithmetic = codec.arithmetic
    header.bitstream_version = codec.bitstream_version
    header.payload_bytes = len(payload)
    header.payload_crc32 = zlib.crc32(payload)
    if list(header.stream_bytes) == [len(payload)]:
        # One stream is written without its size; a file that has it all the same means the same.
        header.ClearField("stream_bytes")
    return header, payload


def _checksum(data: bytes) -> int:
    return zlib.crc32(memoryview(data)[_CRC.stop :], zlib.crc32(data[: _CRC.start]))


def _state(header: pb.CodedUnitHeader) -> bytes:
    """The fields that have no place of their own in the layout."""
    rest = pb.CodedUnitHeader()
    rest.CopyFrom(header)
    for name in ("format_version", "codec_id", "bitstream_version", "fingerprint", "arithmetic", "payload_bytes"):
        rest.ClearField(name)
    rest.ClearField("payload_crc32")
    if len(rest.stream_bytes) == 1:
        rest.ClearField("stream_bytes")
    names = [tensor.name or FEATURES for tensor in header.tensors]
    rest.ClearField("tensors")
    if names != [FEATURES]:
        rest.tensors.extend(pb.TensorSpec(name=name) for name in names)
    # Deterministic: the same unit gives the same file.
    return rest.SerializeToString(deterministic=True)


def _merge_names(header: pb.CodedUnitHeader, tensors: list[pb.TensorSpec]) -> None:
    """Puts the names from the state into the tensors from the descriptors, and those into the header."""
    names = [spec.name or FEATURES for spec in header.tensors] or [FEATURES]
    if len(names) != len(tensors):
        raise CorruptUnitError(f"{len(tensors)} tensors but {len(names)} names", field="unit.tensors")
    header.ClearField("tensors")
    for name, tensor in zip(names, tensors, strict=True):
        tensor.name = name
        header.tensors.append(tensor)


def _edition_of(header: pb.CodedUnitHeader) -> Edition:
    return Edition(header.codec_id, header.fingerprint, header.bitstream_version, header.arithmetic)


@lru_cache(maxsize=256)
def _pack_codec(codec: Edition) -> tuple[int, bytes]:
    """The layout of a codec's files, and what they say of it."""
    if codec in EDITION_NUMBERS:
        return _EDITION, varint(EDITION_NUMBERS[codec])
    identity = _IDENTITY.pack(codec.fingerprint, codec.arithmetic | codec.bitstream_version << 2)
    if codec.codec_id in NUMBERS:
        return _NUMBERED, identity + struct.pack("<H", _FIRST_NUMBER + NUMBERS[codec.codec_id])
    if not CODEC_ID.fullmatch(codec.codec_id):
        raise WireError(f"codec id {codec.codec_id!r} is not 1 to 64 characters of [a-z0-9._-]", field="unit.codec_id")
    digits = [_DIGIT[character] for character in codec.codec_id] + [0]
    digits += [0] * (-len(digits) % 3)
    words = [digits[i] * 1600 + digits[i + 1] * 40 + digits[i + 2] for i in range(0, len(digits), 3)]
    return _SPELT, identity + struct.pack(f"<{len(words)}H", *words)


def _unpack_codec(cursor: _Cursor, layout: int) -> Edition:
    if layout == _EDITION:
        return _numbered(EDITIONS, cursor.varint(_MAX_NUMBER))
    fingerprint, flags = _IDENTITY.unpack(cursor.take(_IDENTITY.size))
    return Edition(_unpack_id(cursor, layout), fingerprint, flags >> 2, pb.Arithmetic.ValueType(flags & 3))


def _unpack_id(cursor: _Cursor, layout: int) -> str:
    digits: list[int] = []
    for _ in range(_MAX_ID_WORDS):
        word = int.from_bytes(cursor.take(2), "little")
        if word >= _FIRST_NUMBER:
            if layout == _NUMBERED and not digits:
                return _numbered(KNOWN_IDS, word - _FIRST_NUMBER)
            break
        digits += [word // 1600, word // 40 % 40, word % 40]
        if digits[-1] == 0:
            end = digits.index(0)
            codec_id = "".join(_ALPHABET[digit - 1] for digit in digits[:end])
            if any(digits[end:]) or not CODEC_ID.fullmatch(codec_id):
                break
            return codec_id
    raise CorruptUnitError("the .mpc file names no codec", field="unit.codec_id")


def _numbered(known: Sequence[T], number: int) -> T:
    if number < len(known):
        return known[number]
    said = f"the .mpc file's codec is number {number}, of which this version knows nothing; a newer one may"
    raise CorruptUnitError(said, field="unit.codec_id")


def _pack_tensors(header: pb.CodedUnitHeader) -> bytes:
    if not 1 <= len(header.tensors) <= MAX_TENSORS:
        raise WireError(f"a unit has 1 to {MAX_TENSORS} tensors", field="unit.tensors")
    packed = b""
    for index, tensor in enumerate(header.tensors):
        more = 0x80 if index + 1 < len(header.tensors) else 0
        packed += bytes([tensor.dtype | len(tensor.shape) << 4 | more])
        packed += b"".join(varint(side) for side in tensor.shape)
    return packed


def _unpack_tensors(cursor: _Cursor) -> list[pb.TensorSpec]:
    tensors: list[pb.TensorSpec] = []
    more = True
    while more:
        if len(tensors) == MAX_TENSORS:
            raise CorruptUnitError(f"the unit has more than {MAX_TENSORS} tensors", field="unit.tensors")
        descriptor = cursor.take(1)[0]
        rank = descriptor >> 4 & 7
        if not 1 <= rank <= MAX_RANK:
            raise CorruptUnitError(f"a tensor of {rank} axes", field=f"unit.tensors[{len(tensors)}].shape")
        shape = [cursor.varint(MAX_SIDE) for _ in range(rank)]
        tensors.append(pb.TensorSpec(dtype=pb.DataType.ValueType(descriptor & 0x0F), shape=shape))
        more = bool(descriptor & 0x80)
    return tensors


class _Cursor:
    """Reads forward through bytes; past the end is a CorruptUnitError."""

    def __init__(self, data: bytes, start: int) -> None:
        self._data = data
        self._at = start

    def take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise CorruptUnitError("the .mpc file ends inside its header", field="unit")
        self._at += count
        return self._data[self._at - count : self._at]

    def varint(self, limit: int) -> int:
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if value > limit:
                    raise CorruptUnitError(f"a size of {value} in the .mpc header; the limit is {limit}", field="unit")
                return value
        raise CorruptUnitError("an endless number in the .mpc header", field="unit")

    def rest(self) -> bytes:
        return self._data[self._at :]
