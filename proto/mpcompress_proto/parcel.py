"""Messages apart from their bulk, the one field of bytes that is an item's own, so that these bytes are not copied.

    Parcel(message, bulk) ──► write ──► the bytes of a message ──► read ──► Parcel(message, view of those bytes)

protobuf copies a field of bytes into the message, from there into what is sent, out of what was received, and once more
when it is read: for tensors of megabytes more work than coding them. What travels is what protobuf itself would write,
but for two lengths that may have more bytes than they need, as every protobuf parser reads: so that tensors begin at a
multiple of four bytes, and need no copy to be aligned. Whatever protobuf can read is read, by protobuf where it is not
as we write it. Arrow Flight does the same.

A bundle is one message that has several, each of them a parcel; see `mpcompress_proto.bundles`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from mpcompress_proto.bundles import MAX_BUNDLE
from mpcompress_proto.errors import WireError
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1.compression_pb2_grpc import CompressionServiceStub
from mpcompress_proto.varint import varint

MessageT = TypeVar("MessageT")
KindT = TypeVar("KindT", bound=Message)

Bytes = bytes | memoryview

_BUNDLE = "bundle"
_BULK_FIELDS = frozenset({"data", "inline_data", "inline_payload"})
# Below this protobuf's copies cost less than finding the bulk.
_LEAST_BYTES = 8192
_BYTES = 2  # the wire type of what has a length
_MAX_VARINT_BITS = 63
_ALIGNMENT = 4
_LONGEST_LENGTH = 5  # bytes of a length that parsers read, where it has more than it needs
# Fields before a bulk: a dozen at most in ours. A walk through the millions that a message may have would take seconds.
_MOST_FIELDS = 64


class Parcel(NamedTuple, Generic[MessageT]):
    """A message, and what its bulk is or, when it was received, was.

    Args:
        message: without its bulk when this is to be sent.
        bulk: bytes or a contiguous view of them; empty for messages that have none.
        bundle: the parcels of a bundle, whose message is without them; empty for all others.
    """

    message: MessageT
    bulk: Bytes = b""
    bundle: Sequence[Parcel[MessageT]] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of its bulk, or of those in the bundle."""
        return sum(len(one.bulk) for one in self.bundle) if self.bundle else len(self.bulk)


def bundled(messages: Sequence[Parcel[MessageT] | MessageT]) -> Parcel[MessageT]:
    """Several parcels, or messages without a bulk, as one: 1 to `MAX_BUNDLE`, none of them a bundle."""
    parcels = [one if isinstance(one, Parcel) else Parcel(one) for one in messages]
    kind: Any = type(parcels[0].message)
    return Parcel(kind(bundle={}), b"", parcels)


class Wire(Generic[KindT]):
    """How messages of one type travel.

    Args:
        kind: the type, whose only oneof has the members with a bulk, and no field of a higher number.
    """

    def __init__(self, kind: type[KindT]) -> None:
        self._kind = kind
        (oneof,) = kind.DESCRIPTOR.oneofs
        self._oneof = oneof.name
        bundle: Any = kind.DESCRIPTOR.fields_by_name[_BUNDLE]
        (several,) = bundle.message_type.fields
        self._several = several.name
        self._bundle_tag, self._tag_in_bundle = (varint(one.number << 3 | _BYTES) for one in (bundle, several))
        self._a_bundle = kind(**{_BUNDLE: {}})
        self._bulk: dict[str, tuple[str, bytes, bytes]] = {}
        self._members: dict[int, tuple[str, int]] = {}
        self._tensors: set[str] = set()
        for member in oneof.fields:
            for field in member.message_type.fields if member.message_type else ():
                if field.name in _BULK_FIELDS:
                    outer, inner = member.number << 3 | _BYTES, field.number << 3 | _BYTES
                    self._bulk[member.name] = (field.name, varint(outer), varint(inner))
                    self._members[outer] = (field.name, inner)
                    # Chunks are copied to their places.
                    if field.name == "inline_data":
                        self._tensors.add(member.name)

    def write(self, parcel: Parcel[KindT] | KindT) -> bytes:
        """The bytes of a parcel, or of a message without a bulk."""
        if not isinstance(parcel, Parcel):
            return parcel.SerializeToString()
        if not parcel.bundle:
            return b"".join(self._pieces(parcel))
        whole: list[Bytes] = []
        for one in parcel.bundle:
            pieces = self._pieces(one)
            whole += (self._tag_in_bundle, varint(sum(map(len, pieces))), *pieces)
        return b"".join((self._bundle_tag, varint(sum(map(len, whole))), *whole))

    def _pieces(self, parcel: Parcel[KindT]) -> tuple[Bytes, ...]:
        """The bytes of a parcel that is no bundle, one after the other."""
        message: Any = parcel.message
        head: bytes = message.SerializeToString()
        if not parcel.bulk:
            return (head,)
        name = message.WhichOneof(self._oneof)
        _, outer, inner = self._bulk[name]
        size = getattr(message, name).ByteSize()
        # The member is the last on the wire, and its bulk may be its last: the order of fields means nothing.
        before = len(head) - size - len(varint(size)) - len(outer)
        if head[before : before + len(outer)] != outer:
            raise RuntimeError(f"{self._oneof} is not the last field of {self._kind.DESCRIPTOR.name}")
        field = inner + varint(len(parcel.bulk))
        size_now = varint(size + len(field) + len(parcel.bulk))
        if name in self._tensors and len(parcel.bulk) >= _LEAST_BYTES:
            begin = before + len(outer) + len(size_now) + size + len(field)
            missing = -begin % _ALIGNMENT
            longer = min(missing, _LONGEST_LENGTH - len(field) + len(inner))
            field = inner + varint(len(parcel.bulk), longer)
            size_now = varint(size + len(field) + len(parcel.bulk), missing - longer)
        return head[:before], outer, size_now, head[len(head) - size :], field, parcel.bulk

    def read(self, wire: bytes) -> Parcel[KindT]:
        """The parcel in some bytes. Raises protobuf's DecodeError, and WireError for a bundle that is none."""
        if wire.startswith(self._bundle_tag):
            cut = self._cut_bundle(wire)
            if cut is not None:
                _check_count(len(cut))
                return Parcel(self._a_bundle, b"", [self._one(view) for view in cut])
        parcel = self._one(wire)
        if parcel.message.WhichOneof(self._oneof) != _BUNDLE:
            return parcel
        inner = getattr(getattr(parcel.message, _BUNDLE), self._several)
        _check_count(len(inner))
        return Parcel(self._a_bundle, b"", [self._of_message(message) for message in inner])

    def _one(self, wire: Bytes) -> Parcel[KindT]:
        found = self._cut(wire) if len(wire) >= _LEAST_BYTES else None
        return self._of_message(self._kind.FromString(bytes(wire))) if found is None else found

    def _of_message(self, message: KindT) -> Parcel[KindT]:
        """What protobuf has read."""
        name = message.WhichOneof(self._oneof)
        if name not in self._bulk:
            return Parcel(message)
        return Parcel(message, getattr(getattr(message, name), self._bulk[name][0]))

    def _cut_bundle(self, wire: bytes) -> list[memoryview] | None:
        """The messages of a bundle; None when it is not as we would have written it, or the bytes are no message."""
        whole = memoryview(wire)
        views: list[memoryview] = []
        try:
            size, at = _read_varint(wire, len(self._bundle_tag))
            if at + size != len(wire):
                return None
            while at < len(wire) and len(views) <= MAX_BUNDLE:
                if not wire.startswith(self._tag_in_bundle, at):
                    return None
                size, at = _read_varint(wire, at + len(self._tag_in_bundle))
                views.append(whole[at : at + size])
                at += size
        except (IndexError, ValueError):
            return None
        return views if at == len(wire) or len(views) > MAX_BUNDLE else None

    def _cut(self, wire: Bytes) -> Parcel[KindT] | None:
        """By cutting the bulk out; None when it is not where we would have written it, or the bytes are no message."""
        try:
            at, tag, start = _find(wire, 0, len(wire), self._members.__contains__)
            name, bulk_tag = self._members[tag]
            size, start = _read_varint(wire, start)
            if start + size != len(wire):
                return None
            inner, _, begin = _find(wire, start, len(wire), bulk_tag.__eq__)
            size, begin = _read_varint(wire, begin)
        except (IndexError, ValueError):
            return None
        end = begin + size
        if end > len(wire):
            return None
        left = inner - start + len(wire) - end
        head = b"".join((wire[:at], varint(tag), varint(left), wire[start:inner], wire[end:]))
        message = self._kind.FromString(head)
        member = getattr(message, message.WhichOneof(self._oneof))
        # The field once more behind its first time: the last one counts, which protobuf knows best.
        return None if getattr(member, name) else Parcel(message, memoryview(wire)[begin:end])


def _check_count(messages: int) -> None:
    if messages > MAX_BUNDLE:
        raise WireError(f"a bundle has at most {MAX_BUNDLE} messages", field=_BUNDLE)


def _read_varint(wire: Bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place behind it. Raises IndexError and ValueError."""
    byte = wire[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for shift in range(7, _MAX_VARINT_BITS, 7):
        at += 1
        byte = wire[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
    raise ValueError("an endless number")


def _find(wire: Bytes, at: int, end: int, wanted: Callable[[int], bool]) -> tuple[int, int, int]:
    """Where the first field of a wanted tag is, its tag, and where it goes on. Raises IndexError and ValueError."""
    for _ in range(_MOST_FIELDS):
        if at >= end:
            break
        # Most numbers have one byte, and a call for each would take longer than all else here.
        tag, after = (wire[at], at + 1) if wire[at] < 0x80 else _read_varint(wire, at)
        if wanted(tag):
            return at, tag, after
        kind = tag & 7
        if kind == 0:
            _, at = _read_varint(wire, after)
        elif kind == _BYTES:
            size, at = (wire[after], after + 1) if wire[after] < 0x80 else _read_varint(wire, after)
            at += size
        elif kind == 1:
            at = after + 8
        elif kind == 5:
            at = after + 4
        else:
            raise ValueError("a field of no known kind")
    raise ValueError("no such field, or not soon")


COMPRESS_REQUEST = Wire(pb.CompressRequest)
COMPRESS_RESPONSE = Wire(pb.CompressResponse)
DECOMPRESS_REQUEST = Wire(pb.DecompressRequest)
DECOMPRESS_RESPONSE = Wire(pb.DecompressResponse)


class ParcelStub(CompressionServiceStub):
    """The service's stub, with parcels in both directions of its streams of items.

    `CompressOne` and `DecompressOne` are the same methods for a client that has one message to send: for gRPC in Python
    a kind of call that takes fewer threads, for the server no other.
    """

    def __init__(self, channel: Any) -> None:
        super().__init__(channel)  # type: ignore[call-arg]  # its stub file has it in __new__
        service = pb.DESCRIPTOR.services_by_name["CompressionService"].full_name
        for method, requests, responses in (
            ("Compress", COMPRESS_REQUEST, COMPRESS_RESPONSE),
            ("Decompress", DECOMPRESS_REQUEST, DECOMPRESS_RESPONSE),
        ):
            for name, kind in ((method, channel.stream_stream), (f"{method}One", channel.unary_stream)):
                call = kind(
                    f"/{service}/{method}", request_serializer=requests.write, response_deserializer=responses.read
                )
                setattr(self, name, call)
