"""Plans of items that another server codes: their headers are checked for what this server must know, no more.

The worker checks what its codec takes; here nothing is decoded, and the bytes go on as they came.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from mpcompress.codec import Array
from mpcompress_proto.tensors import MAX_CHUNK_BYTES, dtype_of
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import answers
from mpcompress_server.answers import Answer
from mpcompress_server.plan import Plan
from mpcompress_server.routing import RemoteRoute
from mpcompress_server.scheduler import Finished, Forwarded, ForwardWork

# A unit of few features may be larger than they were.
_LEAST_RESULT_BYTES = 1 << 16
# Messages under way in both directions: as bytes here, in the message, and in gRPC.
_COPIES = 3


def compress_plan(header: pb.CompressHeader, route: RemoteRoute, sizes: list[int]) -> Plan:
    """The plan for tensors whose specs were checked."""
    result_bytes = max(_LEAST_RESULT_BYTES, sum(sizes))
    kept = pb.CompressHeader(codec_id=header.codec_id, tensors=header.tensors, params=header.params)
    item_id = header.item_id

    def answer(finished: Finished) -> Answer:
        assert isinstance(finished.outcome, Forwarded)
        result, (payload,) = finished.outcome.result, finished.outcome.parts
        return answers.compressed(item_id, result.unit, result.report, payload.data)

    return _plan(route, kept, sizes, result_bytes, compress=True, answer=answer)


def decompress_plan(header: pb.DecompressHeader, route: RemoteRoute, sizes: list[int]) -> Plan:
    """The plan for a unit whose header and context specs were checked. Raises WireError for a bad output dtype."""
    wanted = None
    if header.output_dtype != pb.DATA_TYPE_UNSPECIFIED:
        wanted = dtype_of(header.output_dtype, "output_dtype")
    result_bytes = 0
    for spec in header.unit.tensors:
        dtype = dtype_of(spec.dtype, "unit.tensors") if wanted is None else wanted
        result_bytes += math.prod(spec.shape) * dtype.itemsize
    # A codec with a context may give back more than one tensor of that size.
    result_bytes *= max(1, len(route.info.outputs))
    kept = pb.DecompressHeader(unit=header.unit, tensors=header.tensors, output_dtype=header.output_dtype)
    item_id = header.item_id

    def answer(finished: Finished) -> Answer:
        assert isinstance(finished.outcome, Forwarded)
        result, views = finished.outcome.result, [part.data for part in finished.outcome.parts]
        return answers.decompressed(item_id, result.tensors, views, result.coding_time)

    return _plan(route, kept, sizes, result_bytes, compress=False, answer=answer)


def _plan(
    route: RemoteRoute,
    header: Any,
    sizes: list[int],
    result_bytes: int,
    *,
    compress: bool,
    answer: Callable[[Finished], Answer],
) -> Plan:
    def work(buffers: list[Array]) -> ForwardWork:
        return ForwardWork(compress=compress, header=header, parts=list(buffers), result_bytes=result_bytes)

    under_way = min(sum(sizes), MAX_CHUNK_BYTES) + min(result_bytes, MAX_CHUNK_BYTES)
    return Plan(
        loaded=route.loaded,
        sizes=sizes,
        result_bytes=result_bytes,
        extra_bytes=_COPIES * under_way,
        compress=compress,
        key=None,
        work=work,
        answer=answer,
    )
