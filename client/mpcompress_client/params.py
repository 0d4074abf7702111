"""Coding parameters: what the user writes, as the message. Does no input or output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.message import Message

from mpcompress_client.errors import InvalidRequestError
from mpcompress_proto.v1 import compression_pb2 as pb

QP_STEPS = 8
# Every codec refuses what is outside its own range; this only keeps the number inside its field.
_MAX_QP = 1000.0
_MAX_SIDE = 65535

_POLICIES = {"nearest": pb.TARGET_POLICY_NEAREST, "error": pb.TARGET_POLICY_ERROR}

# Member of CodingParams.family -> the families that read it.
FAMILY_MESSAGES: dict[str, tuple[str, ...]] = {
    "klt": ("klt",),
    "vit_union": ("vit_union", "vit_union_ctx"),
    "hyperprior": ("feature_hyperprior",),
    "picture": ("vtm", "vvenc", "x265"),
}


def qp_eighths(qp: float) -> int:
    """Qp in steps of 1/8. Raises InvalidRequestError for what is no multiple of 1/8."""
    try:
        steps = float(qp) * QP_STEPS
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"qp is a number, not {qp!r}", field="params.qp_eighths") from error
    if not math.isfinite(steps) or abs(steps) > _MAX_QP * QP_STEPS:
        raise InvalidRequestError(f"qp {qp} is out of range", field="params.qp_eighths")
    if steps != round(steps):
        raise InvalidRequestError(
            f"qp {qp} is no multiple of 1/8; {math.floor(steps) / QP_STEPS} and {math.ceil(steps) / QP_STEPS} are",
            field="params.qp_eighths",
        )
    return round(steps)


def candidates(family: Mapping[str, Any]) -> list[str]:
    """Members of CodingParams.family that know all these names. Raises InvalidRequestError when none does."""
    found = []
    for member in FAMILY_MESSAGES:
        fields = {field.name for field in getattr(pb.CodingParams(), member).DESCRIPTOR.fields}
        if fields.issuperset(family):
            found.append(member)
    if not found:
        names = ", ".join(sorted(family))
        raise InvalidRequestError(
            f"no codec takes {names}; the list of codecs says what each one takes",
            field=f"params.{next(iter(family))}",
        )
    return found


def coding_params(
    *,
    qp: float | None = None,
    token_res: Sequence[int] | None = None,
    prefix_tokens: int | None = None,
    target_bpfp: float | None = None,
    target_nmse: float | None = None,
    target_policy: str | None = None,
    member: str | None = None,
    family: Mapping[str, Any] | None = None,
) -> pb.CodingParams:
    """The message for these parameters; None means the codec's default.

    Args:
        qp: quantisation parameter, a multiple of 1/8.
        token_res: (H, W) of the patch-token grid.
        prefix_tokens: tokens in front of the patch tokens.
        target_bpfp: bits per feature point to reach instead of a qp.
        target_nmse: squared error over variance to reach instead of a qp.
        target_policy: "nearest" or "error".
        member: which member of the oneof takes `family`; None without family parameters.
        family: parameters that one family knows, by field name.

    Raises:
        InvalidRequestError: naming the parameter.
    """
    params = pb.CodingParams()
    if qp is not None:
        params.qp_eighths = qp_eighths(qp)
    if token_res is not None:
        params.token_res.height, params.token_res.width = _grid(token_res)
    if prefix_tokens is not None:
        _set(params, "prefix_tokens", prefix_tokens)
    targets = {"target_bpfp": target_bpfp, "target_nmse": target_nmse}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) + (qp is not None) > 1:
        raise InvalidRequestError("give one of qp, target_bpfp and target_nmse", field="params.target_bpfp")
    for name, value in given.items():
        _set(params, name, value)
        if not (math.isfinite(value) and value > 0):
            raise InvalidRequestError(f"{name} is above 0, not {value}", field=f"params.{name}")
    if target_policy is not None:
        if target_policy not in _POLICIES:
            known = ", ".join(_POLICIES)
            raise InvalidRequestError(
                f"target_policy is one of {known}, not {target_policy!r}", field="params.target_policy"
            )
        params.target_policy = _POLICIES[target_policy]
    if member is not None:
        message = getattr(params, member)
        message.SetInParent()
        for name, value in (family or {}).items():
            _set(message, name, value, f"{member}.{name}")
    return params


def _grid(token_res: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = (int(side) for side in token_res if int(side) == side)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(
            f"token_res is two whole numbers (height, width), not {token_res!r}", field="params.token_res"
        ) from error
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE):
        raise InvalidRequestError(f"token_res {token_res!r} is outside 1 to {_MAX_SIDE}", field="params.token_res")
    return height, width


def _set(message: Message, name: str, value: Any, path: str = "") -> None:
    """Sets one field; protobuf's own complaint becomes an InvalidRequestError."""
    try:
        if message.DESCRIPTOR.fields_by_name[name].is_repeated:
            values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
            getattr(message, name).extend(values)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"{name}={value!r}: {error}", field=f"params.{path or name}") from error
