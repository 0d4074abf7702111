"""A servicer that does what a test's script says: only for behaviour that the real server does not show."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import status_pb2

from mpcompress_proto.tensors import pieces
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

Script = Callable[[Iterator[Any], grpc.ServicerContext], Iterable[Any]]


class ScriptedServicer(pb_grpc.CompressionServiceServicer):
    """Answers each RPC with its script; without one with UNIMPLEMENTED."""

    def __init__(self, **scripts: Script) -> None:
        self._scripts = scripts

    def _run(self, name: str, requests: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if name not in self._scripts:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "not in the script")
        yield from self._scripts[name](requests, context)

    def Compress(self, requests, context):
        yield from self._run("compress", requests, context)

    def Decompress(self, requests, context):
        yield from self._run("decompress", requests, context)

    def ListCodecs(self, request, context):
        return next(iter(self._run("list_codecs", request, context)))

    def GetCodecFile(self, request, context):
        yield from self._run("codec_file", request, context)


def items(requests: Iterator[pb.CompressRequest]) -> Iterator[tuple[pb.CompressHeader, bytes]]:
    """Whole items, as they become complete."""
    header, data, size = pb.CompressHeader(), bytearray(), 0
    for request in requests:
        if request.WhichOneof("message") == "header":
            header = request.header
            size = sum(int(np.prod(s.shape)) * {1: 4, 2: 2, 3: 2, 4: 1, 5: 2, 6: 4}[s.dtype] for s in header.tensors)
            data = bytearray(header.inline_data)
        else:
            assert request.chunk.item_id == header.item_id
            data += request.chunk.data
        if len(data) == size:
            yield header, bytes(data)


def unit_header(header: pb.CompressHeader, payload: bytes) -> pb.CodedUnitHeader:
    """A unit that holds its tensor as it is."""
    return pb.CodedUnitHeader(
        format_version=1,
        codec_id="stored",
        bitstream_version=1,
        fingerprint=b"stored!!",
        arithmetic=pb.ARITHMETIC_EXACT,
        tensors=header.tensors,
        klt=pb.KltState(qp_eighths=header.params.qp_eighths),
        payload_bytes=len(payload),
        payload_crc32=zlib.crc32(payload),
    )


def answer(header: pb.CompressHeader, payload: bytes, chunk: int | None = None) -> Iterator[pb.CompressResponse]:
    """The result of an item, inline or in chunks."""
    item = pb.CompressedItem(unit=unit_header(header, payload), inline_payload=b"" if chunk else payload)
    yield pb.CompressResponse(item_id=header.item_id, result=item)
    if chunk:
        for _, offset, data in pieces([memoryview(payload)], chunk):
            part = pb.PayloadChunk(item_id=header.item_id, offset=offset, data=data)
            yield pb.CompressResponse(item_id=header.item_id, chunk=part)


def status(code: grpc.StatusCode, message: str, *details: Any) -> status_pb2.Status:
    """A google.rpc.Status with details."""
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


def refuse(item_id: int, error: status_pb2.Status) -> pb.CompressResponse:
    """The final event of an item that failed."""
    return pb.CompressResponse(item_id=item_id, error=error)


def store(requests: Iterator[pb.CompressRequest], context: grpc.ServicerContext) -> Iterator[pb.CompressResponse]:
    """Script: every item comes back as it is."""
    for header, data in items(requests):
        yield from answer(header, data)
