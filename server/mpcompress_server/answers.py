"""Results on their way to the client: their messages, made one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration

from mpcompress_proto.parcel import Parcel
from mpcompress_proto.tensors import cuts, inline_bytes, joined
from mpcompress_proto.v1 import compression_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A result on its way back: how many bytes it holds, its messages, made one by one, and of a unit its bpfp."""

    nbytes: int
    messages: Iterator[Any]
    bpfp: float | None = None

    @property
    def inline_bytes(self) -> int | None:
        """Its bytes when they travel in its one message; None when chunks follow."""
        return inline_bytes(self.nbytes)


def compressed(item_id: int, unit: pb.CodedUnitHeader, report: pb.CodingReport, payload: memoryview) -> Answer:
    """A unit: its payload inline when small, else in chunks."""
    return Answer(nbytes=len(payload), messages=_compressed(item_id, unit, report, payload), bpfp=report.bpfp)


def decompressed(item_id: int, specs: Sequence[pb.TensorSpec], views: Sequence[memoryview], time: Duration) -> Answer:
    """Tensors: their bytes inline when few, else in chunks."""
    return Answer(nbytes=sum(len(view) for view in views), messages=_decompressed(item_id, specs, views, time))


def _compressed(
    item_id: int, unit: pb.CodedUnitHeader, report: pb.CodingReport, payload: memoryview
) -> Iterator[Parcel[pb.CompressResponse]]:
    inline = inline_bytes(len(payload)) is not None
    message = pb.CompressResponse(item_id=item_id)
    # Not as arguments: those are copied once more for each message around them.
    message.result.unit.CopyFrom(unit)
    message.result.report.CopyFrom(report)
    yield Parcel(message, payload if inline else b"")
    if not inline:
        for _, offset, view in cuts([payload]):
            chunk = pb.PayloadChunk(item_id=item_id, offset=offset)
            yield Parcel(pb.CompressResponse(item_id=item_id, chunk=chunk), view)


def _decompressed(
    item_id: int, specs: Sequence[pb.TensorSpec], views: Sequence[memoryview], time: Duration
) -> Iterator[Parcel[pb.DecompressResponse]]:
    inline = inline_bytes(sum(len(view) for view in views)) is not None
    message = pb.DecompressResponse(item_id=item_id, result=pb.DecompressedItem(tensors=specs, coding_time=time))
    yield Parcel(message, joined(views) if inline else b"")
    if not inline:
        for index, offset, view in cuts(views):
            chunk = pb.TensorChunk(item_id=item_id, tensor_index=index, offset=offset)
            yield Parcel(pb.DecompressResponse(item_id=item_id, chunk=chunk), view)
