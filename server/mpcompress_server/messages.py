"""Wire messages to the library's dataclasses, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mpcompress.codec import Array, CodingParams, FeatureCodec, Report, TensorPort, TensorSpec, Unit
from mpcompress_proto.errors import WireError
from mpcompress_proto.pstate import get_pstate, to_dict
from mpcompress_proto.tensors import FEATURES, MAX_CHUNK_BYTES, data_type, dtype_name, dtype_named
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.remotes import RemoteServer
from mpcompress_server.settings import Limits

ARITHMETIC: dict[str, pb.Arithmetic.ValueType] = {
    "exact": pb.ARITHMETIC_EXACT,
    "float32": pb.ARITHMETIC_FLOAT32,
}
MAX_STREAMS = 65536
_MAX_PREFIX_TOKENS = 1024
_MAX_GRID_SIDE = 65535


def specs_of(messages: Sequence[pb.TensorSpec]) -> tuple[TensorSpec, ...]:
    """Library specs of checked messages."""
    return tuple(
        TensorSpec(name=spec.name or FEATURES, dtype=dtype_name(spec.dtype), shape=tuple(spec.shape))
        for spec in messages
    )


def spec_message(spec: TensorSpec) -> pb.TensorSpec:
    """Wire spec of a library spec."""
    return pb.TensorSpec(name=spec.name, dtype=data_type(spec.dtype), shape=spec.shape)


def nbytes(spec: TensorSpec) -> int:
    """Size of a tensor, bytes."""
    return spec.elements * dtype_named(spec.dtype).itemsize


def seconds(duration: Duration, field: str) -> float | None:
    """A duration in seconds; None for zero. Raises WireError for negative ones."""
    value = duration.seconds + duration.nanos / 1e9
    if value < 0 or not -999_999_999 <= duration.nanos <= 999_999_999:
        raise WireError("a timeout is above zero", field=field)
    return value or None


def duration(value: float) -> Duration:
    """Seconds as a message."""
    return Duration(seconds=int(value), nanos=int(value % 1 * 1e9))


def params_of(message: pb.CodingParams, codec: FeatureCodec) -> CodingParams:
    """Coding parameters, syntax checked; whether the codec knows them is for `FeatureCodec.resolve`.

    Raises:
        WireError: a value that no codec takes, or a parameter that this one does not have.
    """
    _refuse_unknown(message, "params")
    token_res = None
    if message.HasField("token_res"):
        token_res = (message.token_res.height, message.token_res.width)
        if not all(1 <= side <= _MAX_GRID_SIDE for side in token_res):
            raise WireError(f"a token grid has sides of 1 to {_MAX_GRID_SIDE}", field="params.token_res")
    if message.prefix_tokens > _MAX_PREFIX_TOKENS:
        raise WireError(f"at most {_MAX_PREFIX_TOKENS} prefix tokens", field="params.prefix_tokens")
    target = message.WhichOneof("target")
    if target is not None and not (math.isfinite(getattr(message, target)) and getattr(message, target) > 0):
        raise WireError("a target is a number above 0", field=f"params.{target}")
    if message.target_policy not in pb.TargetPolicy.values():
        raise WireError(f"unknown policy {message.target_policy}", field="params.target_policy")
    return CodingParams(
        qp_eighths=message.qp_eighths if message.HasField("qp_eighths") else None,
        token_res=token_res,
        prefix_tokens=message.prefix_tokens if message.HasField("prefix_tokens") else None,
        target_bpfp=message.target_bpfp if target == "target_bpfp" else None,
        target_nmse=message.target_nmse if target == "target_nmse" else None,
        target_policy="error" if message.target_policy == pb.TARGET_POLICY_ERROR else "nearest",
        family=_family_params(message, codec),
    )


def _family_params(message: pb.CodingParams, codec: FeatureCodec) -> tuple[tuple[str, Any], ...]:
    kind = message.WhichOneof("family")
    if kind is None:
        return ()
    if kind != codec.pstate_kind:
        raise WireError(
            f"codec {codec.id} is of family {codec.family}, it takes no {kind} parameters", field=f"params.{kind}"
        )
    member: Message = getattr(message, kind)
    _refuse_unknown(member, f"params.{kind}")
    presence = {field.name for field in member.DESCRIPTOR.fields if field.has_presence}
    values: dict[str, Any] = {}
    for name, value in to_dict(member).items():
        if name not in presence and not value:
            continue  # a plain proto3 field at its default was not given
        if kind != "plugin" and name not in codec.parameters:
            known = ", ".join(codec.parameters) or "none"
            raise WireError(
                f"codec {codec.id} does not know this parameter; known: {known}", field=f"params.{kind}.{name}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise WireError("not a finite number", field=f"params.{kind}.{name}")
        values[name] = tuple(value) if isinstance(value, list) else value
    return tuple(sorted(values.items()))


def _refuse_unknown(message: Message, field: str) -> None:
    """A parameter from the future must not be ignored: the result would not be what was asked for."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise WireError(f"unknown parameter, field number {unknown[0].field_number}", field=field)


def unit_of(header: pb.CodedUnitHeader, strings: list[bytes], context: dict[str, Array]) -> Unit:
    """The library's view of a unit whose header was checked."""
    return Unit(
        strings=strings,
        pstate=get_pstate(header)[1],
        specs=specs_of(header.tensors),
        ctx_hash=header.ctx_hash,
        context=context,
    )


def unit_outline(header: pb.CodedUnitHeader, context: Sequence[TensorSpec]) -> Unit:
    """A unit whose bytes have not come yet, for `check_unit`: right sizes, and no memory behind them.

    Zeroed bytes are pages that the system only provides when somebody reads them, and a broadcast zero is one element.
    """
    sizes = list(header.stream_bytes) or [header.payload_bytes]
    if len(sizes) > MAX_STREAMS:
        raise WireError(f"a payload has at most {MAX_STREAMS} streams", field="unit.stream_bytes")
    stand_ins = {spec.name: np.broadcast_to(np.zeros((), dtype_named(spec.dtype)), spec.shape) for spec in context}
    return unit_of(header, [bytes(size) for size in sizes], stand_ins)


def report_message(report: Report, bpfp: float, coding_s: float) -> pb.CodingReport:
    """What coding an item gave."""
    return pb.CodingReport(
        bpfp=bpfp,
        nmse=report.nmse,
        qp_eighths=report.qp_eighths,
        target_reached=report.target_reached,
        domain_distance=report.domain_distance,
        warnings=report.warnings,
        coding_time=duration(coding_s),
    )


def codec_info(loaded: LoadedCodec) -> pb.CodecInfo:
    """What ListCodecs says about a codec."""
    if loaded.remote is not None:
        return _remote_info(loaded, loaded.remote)
    reason = loaded.unavailable or (loaded.codec.unavailable_reason if loaded.codec else "")
    info = pb.CodecInfo(
        codec_id=loaded.id,
        family=loaded.spec.family if loaded.spec else "",
        available=not reason,
        unavailable_reason=reason,
        codec_file_bytes=loaded.file_bytes,
        local=True,
    )
    codec = loaded.codec
    if codec is None:
        return info
    info.MergeFrom(
        pb.CodecInfo(
            family=codec.family,
            bitstream_version=codec.bitstream_version,
            fingerprint=codec.fingerprint,
            arithmetic=ARITHMETIC[codec.arithmetic],
            description=codec.description,
            inputs=[_port(port) for port in codec.inputs],
            outputs=[_port(port) for port in codec.outputs],
            prefix_tokens=codec.prefix_tokens,
            trained=codec.trained,
            parameters=codec.parameters,
        )
    )
    if codec.qp is not None:
        info.qp.CopyFrom(
            pb.QpRange(min_eighths=codec.qp.minimum, max_eighths=codec.qp.maximum, default_eighths=codec.qp.default)
        )
    if codec.token_res is not None:
        info.token_res.CopyFrom(pb.TokenGrid(height=codec.token_res[0], width=codec.token_res[1]))
    return info


def _remote_info(loaded: LoadedCodec, server: RemoteServer) -> pb.CodecInfo:
    """What its server said, as long as that can be reached."""
    info = pb.CodecInfo(family="remote")
    if loaded.info is not None:
        info.CopyFrom(loaded.info)
    info.codec_id, info.local = loaded.id, False
    why = ""
    if not server.reachable:
        why = "no worker for it can be reached; the server's log says more"
    elif loaded.info is None:
        why = "the workers that should have it do not"
    if why:
        info.available, info.unavailable_reason = False, why
    return info


def _port(port: TensorPort) -> pb.TensorPort:
    dtypes = [data_type(dtype) for dtype in port.dtypes]
    return pb.TensorPort(name=port.name, ranks=port.ranks, dtypes=dtypes, channels=port.channels, layout=port.layout)


def limits_message(limits: Limits) -> pb.ServerLimits:
    """What ListCodecs says about the server."""
    return pb.ServerLimits(
        max_item_bytes=limits.max_item_bytes,
        max_inflight_bytes=limits.max_inflight_bytes,
        max_items_per_stream=limits.max_items_per_stream,
        max_chunk_bytes=MAX_CHUNK_BYTES,
        reservation_timeout=duration(limits.reservation_timeout_s),
        max_timeout=duration(limits.max_timeout_s),
    )
