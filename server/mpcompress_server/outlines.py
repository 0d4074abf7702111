"""What headers that say the same ask of a codec, found once: a stream's items usually differ in their bytes only.

Whatever may change while a server runs, the route to a codec and whether it can code, is asked for each item.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass

from mpcompress.codec import CodingParams, TensorSpec
from mpcompress_proto.coded_unit import UnitMaker
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.codecs import LoadedCodec

# A client may vary its headers without end, and a header may be as large as a message.
_MOST = 256
_LARGEST_BYTES = 1024


class BatchKey:
    """A key of a batch whose hash is made once. Equal to those of equal values."""

    __slots__ = ("_hash", "_value")

    def __init__(self, value: Hashable) -> None:
        self._value = value
        self._hash = hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, BatchKey) and self._value == other._value)


@dataclass(frozen=True, kw_only=True)
class Outline:
    """Everything about an item to compress but its bytes and its own time limit.

    Args:
        loaded: the codec that resolved it; not kept, for whoever holds it keeps it from being closed.
        sizes: bytes of each part that the client sends.
        specs: of its tensors.
        params: resolved.
        result_bytes: most bytes that the result takes.
        key: items of equal keys may share a batch.
        units: makes its unit.
    """

    loaded: weakref.ref[LoadedCodec]
    sizes: list[int]
    specs: tuple[TensorSpec, ...]
    params: CodingParams
    result_bytes: int
    key: BatchKey
    units: UnitMaker


class Outlines:
    """The outlines of the headers that came last."""

    def __init__(self) -> None:
        self._known: OrderedDict[bytes, Outline] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def find(self, said: bytes) -> Outline | None:
        """The outline of a header that says this."""
        return self._known.get(said)

    def keep(self, said: bytes, outline: Outline) -> None:
        """Remembers an outline in the place of the one that was made first, beyond the bound."""
        if len(said) > _LARGEST_BYTES:
            return
        self._known[said] = outline
        if len(self._known) > _MOST:
            self._known.popitem(last=False)


def said_by(header: pb.CompressHeader) -> bytes:
    """What a header says of its item but for what is the item's own: id, time limit, wishes and bytes."""
    said = pb.CompressHeader()
    said.CopyFrom(header)
    for name in ("item_id", "timeout", "want_progress", "inline_data"):
        said.ClearField(name)
    return said.SerializeToString()
