"""Requests made by hand and answers taken apart, without the client package."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2

from mpcompress_proto.tensors import MAX_CHUNK_BYTES, array_from, pieces, spec_of, wire_view
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

CODE = grpc.StatusCode


def features(size: int = 16, first: float | None = None, dtype: str = "float32") -> np.ndarray:
    """Numbers that compress badly, shape (size, 8)."""
    array = np.random.default_rng(size).standard_normal((size, 8)).astype(dtype)
    if first is not None:
        array[0, 0] = first
    return array


def compress_messages(
    item_id: int, h: np.ndarray | dict[str, np.ndarray], codec: str = "store", chunk: int | None = None, **fields: Any
) -> list[pb.CompressRequest]:
    """An item: inline when small and `chunk` is None, else a header and chunks of at most `chunk` bytes."""
    arrays = h if isinstance(h, dict) else {"h": h}
    views = [wire_view(array) for array in arrays.values()]
    header = pb.CompressHeader(
        item_id=item_id, codec_id=codec, tensors=[spec_of(a, n) for n, a in arrays.items()], **fields
    )
    if chunk is None and sum(map(len, views)) <= MAX_CHUNK_BYTES:
        header.inline_data = b"".join(views)
        return [pb.CompressRequest(header=header)]
    chunks = [
        pb.CompressRequest(chunk=pb.TensorChunk(item_id=item_id, tensor_index=i, offset=o, data=d))
        for i, o, d in pieces(views, chunk or MAX_CHUNK_BYTES)
    ]
    return [pb.CompressRequest(header=header), *chunks]


def decompress_messages(
    item_id: int,
    unit: pb.CodedUnitHeader,
    payload: bytes,
    context: dict[str, np.ndarray] | None = None,
    chunk: int | None = None,
    **fields: Any,
) -> list[pb.DecompressRequest]:
    """A unit: inline when small and `chunk` is None, else a header and chunks."""
    context = context or {}
    views = [wire_view(array) for array in context.values()]
    specs = [spec_of(array, name) for name, array in context.items()]
    header = pb.DecompressHeader(item_id=item_id, unit=unit, tensors=specs, **fields)
    if chunk is None and len(payload) + sum(map(len, views)) <= MAX_CHUNK_BYTES:
        header.inline_data = payload + b"".join(views)
        return [pb.DecompressRequest(header=header)]
    size = chunk or MAX_CHUNK_BYTES
    messages = [pb.DecompressRequest(header=header)]
    for _, offset, data in pieces([memoryview(payload)], size):
        messages.append(pb.DecompressRequest(payload=pb.PayloadChunk(item_id=item_id, offset=offset, data=data)))
    for index, offset, data in pieces(views, size):
        messages.append(
            pb.DecompressRequest(chunk=pb.TensorChunk(item_id=item_id, tensor_index=index, offset=offset, data=data))
        )
    return messages


@dataclass
class Got:
    """What came back for one item."""

    result: Any = None
    error: status_pb2.Status | None = None
    data: bytearray = field(default_factory=bytearray)
    stages: list[int] = field(default_factory=list)

    @property
    def payload(self) -> bytes:
        return self.result.inline_payload or bytes(self.data)

    def arrays(self) -> dict[str, np.ndarray]:
        data = np.frombuffer(self.result.inline_data or bytes(self.data), np.uint8)
        arrays, start = {}, 0
        for spec in self.result.tensors:
            size = int(np.prod(spec.shape)) * {1: 4, 2: 2, 3: 2, 4: 1, 5: 2, 6: 4}[spec.dtype]
            arrays[spec.name] = array_from(data[start : start + size], spec)
            start += size
        return arrays


def sort_out(responses: Iterable[Any]) -> dict[int, Got]:
    """Responses by item; fails when chunks interleave or an item ends twice."""
    items: dict[int, Got] = {}
    missing = 0
    open_item: int | None = None
    for response in responses:
        kind = response.WhichOneof("event")
        if kind == "draining":
            continue
        got = items.setdefault(response.item_id, Got())
        if kind == "progress":
            assert got.result is None
            assert got.error is None
            got.stages.append(response.progress.stage)
        elif kind == "error":
            assert got.error is None
            assert got.result is None
            assert not missing
            got.error = response.error
        elif kind == "result":
            assert got.error is None
            assert got.result is None
            assert not missing
            got.result = response.result
            missing, open_item = _size(response.result), response.item_id
        else:
            assert response.item_id == open_item == response.chunk.item_id
            if not hasattr(response.chunk, "tensor_index"):
                assert response.chunk.offset == len(got.data)
            got.data += response.chunk.data
            missing -= len(response.chunk.data)
    assert missing == 0
    return items


def _size(result: Any) -> int:
    if isinstance(result, pb.CompressedItem):
        return 0 if result.inline_payload else result.unit.payload_bytes
    sizes = [int(np.prod(s.shape)) * {1: 4, 2: 2, 3: 2, 4: 1, 5: 2, 6: 4}[s.dtype] for s in result.tensors]
    return 0 if result.inline_data else sum(sizes)


async def talk(
    channel: grpc.aio.Channel, requests: Iterable[Any] | AsyncIterable[Any], method: str = "Compress", **options: Any
) -> dict[int, Got]:
    """One whole stream: everything is sent, then everything is read."""
    call = getattr(pb_grpc.CompressionServiceStub(channel), method)(requests, **options)
    return sort_out([response async for response in call])


async def compress_one(channel: grpc.aio.Channel, h: Any, **options: Any) -> Got:
    """One item on a stream of its own."""
    return (await talk(channel, compress_messages(1, h, **options)))[1]


def details(status: status_pb2.Status) -> dict[str, Any]:
    """Code, reason, and the fields that BadRequest names."""
    found: dict[str, Any] = {"code": grpc_code(status.code), "fields": [], "kinds": set(), "message": status.message}
    for detail in status.details:
        found["kinds"].add(detail.type_url.rpartition(".")[2])
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            assert info.domain == "mpcompress"
            found["reason"], found["request_id"] = info.reason, info.metadata["request_id"]
        if detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            found["fields"] = [violation.field for violation in bad.field_violations]
    return found


def grpc_code(number: int) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == number)


def call_status(error: grpc.aio.AioRpcError) -> dict[str, Any]:
    """The same of a call that ended with an error."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return details(status_pb2.Status.FromString(value))
    return {"code": error.code(), "reason": None, "message": error.details()}
