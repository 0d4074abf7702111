"""What a server says about itself, as plain dataclasses. Does no input or output."""

from __future__ import annotations

from dataclasses import dataclass

from mpcompress_proto.tensors import dtype_name
from mpcompress_proto.v1 import compression_pb2 as pb

_ARITHMETIC = {pb.ARITHMETIC_EXACT: "exact", pb.ARITHMETIC_FLOAT32: "float32"}


@dataclass(frozen=True, kw_only=True)
class TensorPort:
    """A tensor that a codec takes or gives. `channels` is the size of the channel axis; 0 means any."""

    name: str
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    channels: int
    layout: str


@dataclass(frozen=True, kw_only=True)
class QpRange:
    """Range and default of a codec's qp, in steps of 0.125; smaller is finer."""

    minimum: float
    maximum: float
    default: float


@dataclass(frozen=True, kw_only=True)
class CodecInfo:
    """A codec of a server; the fields mean what they mean in the proto's CodecInfo."""

    id: str
    family: str
    bitstream_version: int
    fingerprint: bytes
    arithmetic: str
    description: str
    inputs: tuple[TensorPort, ...]
    outputs: tuple[TensorPort, ...]
    qp: QpRange | None
    token_res: tuple[int, int] | None
    prefix_tokens: int
    available: bool
    unavailable_reason: str
    trained: bool
    codec_file_bytes: int
    parameters: tuple[str, ...]
    local: bool


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """What a server takes; bytes and seconds, as in the proto's ServerLimits."""

    max_item_bytes: int
    max_inflight_bytes: int
    max_items_per_stream: int
    max_chunk_bytes: int
    reservation_timeout_s: float
    max_timeout_s: float
    server_version: str


def codec_info(message: pb.CodecInfo) -> CodecInfo:
    """The dataclass for a CodecInfo."""
    qp = None
    if message.HasField("qp"):
        qp = QpRange(
            minimum=message.qp.min_eighths / 8,
            maximum=message.qp.max_eighths / 8,
            default=message.qp.default_eighths / 8,
        )
    grid = (message.token_res.height, message.token_res.width) if message.HasField("token_res") else None
    return CodecInfo(
        id=message.codec_id,
        family=message.family,
        bitstream_version=message.bitstream_version,
        fingerprint=message.fingerprint,
        arithmetic=_ARITHMETIC.get(message.arithmetic, "unknown"),
        description=message.description,
        inputs=tuple(_port(port) for port in message.inputs),
        outputs=tuple(_port(port) for port in message.outputs),
        qp=qp,
        token_res=grid,
        prefix_tokens=message.prefix_tokens,
        available=message.available,
        unavailable_reason=message.unavailable_reason,
        trained=message.trained,
        codec_file_bytes=message.codec_file_bytes,
        parameters=tuple(message.parameters),
        local=message.local,
    )


def families(response: pb.ListCodecsResponse) -> dict[str, str]:
    """Families by codec id."""
    return {codec.codec_id: codec.family for codec in response.codecs}


def server_limits(response: pb.ListCodecsResponse) -> ServerLimits:
    """The limits in a ListCodecsResponse."""
    limits = response.limits
    return ServerLimits(
        max_item_bytes=limits.max_item_bytes,
        max_inflight_bytes=limits.max_inflight_bytes,
        max_items_per_stream=limits.max_items_per_stream,
        max_chunk_bytes=limits.max_chunk_bytes,
        reservation_timeout_s=limits.reservation_timeout.ToTimedelta().total_seconds(),
        max_timeout_s=limits.max_timeout.ToTimedelta().total_seconds(),
        server_version=response.server_version,
    )


def _port(port: pb.TensorPort) -> TensorPort:
    return TensorPort(
        name=port.name,
        ranks=tuple(port.ranks),
        # A newer server may know types that this client does not: those cannot be sent anyway.
        dtypes=tuple(dtype_name(value) for value in port.dtypes if value in _KNOWN_TYPES),
        channels=port.channels,
        layout=port.layout,
    )


_KNOWN_TYPES = frozenset(pb.DataType.values()) - {pb.DATA_TYPE_UNSPECIFIED}
