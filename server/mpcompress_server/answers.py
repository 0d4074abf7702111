"""Results on their way to the client: their messages, made one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration

from mpcompress_proto.tensors import MAX_INLINE_BYTES, pieces
from mpcompress_proto.v1 import compression_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A result on its way back: how many bytes it holds, its messages, made one by one, and of a unit its bpfp."""

    nbytes: int
    messages: Iterator[Any]
    bpfp: float | None = None


def compressed(item_id: int, unit: pb.CodedUnitHeader, report: pb.CodingReport, payload: memoryview) -> Answer:
    """A unit: its payload inline when small, else in chunks."""
    return Answer(nbytes=len(payload), messages=_compressed(item_id, unit, report, payload), bpfp=report.bpfp)


def decompressed(item_id: int, specs: Sequence[pb.TensorSpec], views: Sequence[memoryview], time: Duration) -> Answer:
    """Tensors: their bytes inline when few, else in chunks."""
    nbytes = sum(len(view) for view in views)
    return Answer(nbytes=nbytes, messages=_decompressed(item_id, specs, views, time, nbytes <= MAX_INLINE_BYTES))


def _compressed(
    item_id: int, unit: pb.CodedUnitHeader, report: pb.CodingReport, payload: memoryview
) -> Iterator[pb.CompressResponse]:
    inline = len(payload) <= MAX_INLINE_BYTES
    item = pb.CompressedItem(unit=unit, inline_payload=bytes(payload) if inline else b"", report=report)
    yield pb.CompressResponse(item_id=item_id, result=item)
    if not inline:
        for _, offset, data in pieces([payload]):
            yield pb.CompressResponse(item_id=item_id, chunk=pb.PayloadChunk(item_id=item_id, offset=offset, data=data))


def _decompressed(
    item_id: int, specs: Sequence[pb.TensorSpec], views: Sequence[memoryview], time: Duration, inline: bool
) -> Iterator[pb.DecompressResponse]:
    item = pb.DecompressedItem(tensors=specs, inline_data=b"".join(views) if inline else b"", coding_time=time)
    yield pb.DecompressResponse(item_id=item_id, result=item)
    if not inline:
        for index, offset, data in pieces(views):
            chunk = pb.TensorChunk(item_id=item_id, tensor_index=index, offset=offset, data=data)
            yield pb.DecompressResponse(item_id=item_id, chunk=chunk)
