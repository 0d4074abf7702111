"""Between the wire's messages and the codec library's dataclasses, for coding on this device. Does no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.infos import CodecInfo, QpRange, TensorPort
from mpcompress_client.params import QP_STEPS
from mpcompress_proto.pstate import to_dict
from mpcompress_proto.tensors import FEATURES, dtype_name
from mpcompress_proto.v1 import compression_pb2 as pb

if TYPE_CHECKING:
    from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec


def library_specs(messages: Sequence[pb.TensorSpec]) -> list[TensorSpec]:
    """The library's specs of tensors on the wire; an unnamed one is the features."""
    from mpcompress.codec import TensorSpec

    return [
        TensorSpec(name=spec.name or FEATURES, dtype=dtype_name(spec.dtype), shape=tuple(spec.shape))
        for spec in messages
    ]


def library_params(message: pb.CodingParams, codec: FeatureCodec) -> CodingParams:
    """The library's parameters for a message. Raises InvalidRequestError for parameters of another family."""
    from mpcompress.codec import CodingParams

    member = message.WhichOneof("family")
    family: dict[str, Any] = {}
    if member is not None:
        if member != codec.pstate_kind:
            raise InvalidRequestError(
                f"codec {codec.id} is of family {codec.family}, it takes no {member} parameters",
                field=f"params.{member}",
            )
        family = {name: value for name, value in to_dict(getattr(message, member)).items() if value not in ("", 0, [])}
        given = getattr(message, member)
        for descriptor in given.DESCRIPTOR.fields:
            if descriptor.has_presence and given.HasField(descriptor.name):
                family[descriptor.name] = getattr(given, descriptor.name)
    target = message.WhichOneof("target")
    return CodingParams(
        qp_eighths=message.qp_eighths if message.HasField("qp_eighths") else None,
        token_res=(message.token_res.height, message.token_res.width) if message.HasField("token_res") else None,
        prefix_tokens=message.prefix_tokens if message.HasField("prefix_tokens") else None,
        target_bpfp=message.target_bpfp if target == "target_bpfp" else None,
        target_nmse=message.target_nmse if target == "target_nmse" else None,
        target_policy="error" if message.target_policy == pb.TARGET_POLICY_ERROR else "nearest",
        family=tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in family.items())),
    )


def codec_info(codec: FeatureCodec) -> CodecInfo:
    """What a server would list about a codec."""

    def port(source: Any) -> TensorPort:
        return TensorPort(
            name=source.name,
            ranks=source.ranks,
            dtypes=source.dtypes,
            channels=source.channels,
            layout=source.layout,
        )

    qp = None
    if codec.qp is not None:
        low, high, default = (x / QP_STEPS for x in (codec.qp.minimum, codec.qp.maximum, codec.qp.default))
        qp = QpRange(minimum=low, maximum=high, default=default)
    return CodecInfo(
        id=codec.id,
        family=codec.family,
        bitstream_version=codec.bitstream_version,
        fingerprint=codec.fingerprint,
        arithmetic=codec.arithmetic,
        description=codec.description,
        inputs=tuple(port(source) for source in codec.inputs),
        outputs=tuple(port(source) for source in codec.outputs),
        qp=qp,
        token_res=codec.token_res,
        prefix_tokens=codec.prefix_tokens,
        available=not codec.unavailable_reason,
        unavailable_reason=codec.unavailable_reason,
        trained=codec.trained,
        codec_file_bytes=len(codec.codec_file() or b""),
        parameters=codec.parameters,
        local=True,
    )
