"""What a unit of family `klt` says besides its payload, and how requests and units are checked, bytes unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import Array, CodingParams, TensorSpec, Unit
from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.transforms.klt_far import most_far
from mpcompress.transforms.klt_filter import FULL_STRENGTH
from mpcompress.transforms.klt_limits import MAX_GAIN, MAX_PREFIX_OFFSET, MAX_PREFIX_TOKENS, QP_LIMITS
from mpcompress.transforms.klt_model import KltModel

DTYPES = ("float32", "float16", "bfloat16")
MAX_ELEMENTS = 1 << 27
"""Of one tensor: half a gigabyte of float32."""

EFFORTS = (0, 1, 2)
DEFAULT_EFFORT = 1

_MAX_SIDE = 65535
STRENGTHS = (-FULL_STRENGTH, FULL_STRENGTH - 1)
"""Least and most of `filter_strength_eighths`: none, and nearly twice the filter's correction."""

_STRENGTH = "filter_strength_eighths"
_OFFSET = "prefix_qp_offset_eighths"
_EFFORT = "effort"


@dataclass(frozen=True)
class Shape:
    """How a tensor holds samples of tokens: (L, C), (B, L, C), or maps (C, H, W), (B, C, H, W)."""

    samples: int
    tokens: int
    channels: int
    map: tuple[int, int] | None

    @classmethod
    def of(cls, spec: TensorSpec, channels: int) -> Shape | str:
        """The shape of a tensor for a codec of so many channels, or what is wrong with it."""
        shape = spec.shape
        if not 2 <= len(shape) <= 4:
            return f"h has shape {shape}, not (L, C), (B, L, C), (C, H, W) or (B, C, H, W)"
        if min(shape) < 1:
            return f"h has an empty side: {shape}"
        if spec.elements > MAX_ELEMENTS:
            return f"h has {spec.elements} elements, above {MAX_ELEMENTS}"
        if len(shape) < 4 and shape[-1] == channels:
            return cls(shape[0] if len(shape) == 3 else 1, shape[-2], channels, None)
        if len(shape) > 2 and shape[-3] == channels:
            samples = shape[0] if len(shape) == 4 else 1
            return cls(samples, shape[-2] * shape[-1], channels, (shape[-2], shape[-1]))
        at = 1 if len(shape) == 4 else -1
        return f"h of shape {shape} has {shape[at]} channels; this codec takes {channels}"

    def to_tokens(self, x: Array) -> Array:
        """The tensor as (samples, tokens, channels); a view where it can be."""
        if self.map is None:
            return x.reshape(self.samples, self.tokens, self.channels)
        return x.reshape(self.samples, self.channels, self.tokens).swapaxes(1, 2)

    def from_tokens(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Inverse of `to_tokens`."""
        return np.ascontiguousarray(x if self.map is None else x.swapaxes(1, 2)).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class KltState:
    """Everything about one item but its symbols: qp, grid (H, W), prefix tokens P; L = P + H * W.

    `far` are the far tokens: sample * H * W + patch, rising. `filter_strength` is in eighths, and means nothing to a
    codec without a filter.
    """

    qp_eighths: int
    height: int
    width: int
    prefix: int
    prefix_offset_eighths: int
    gain_eighths: int = 0
    far: tuple[int, ...] = ()
    filter_strength: int = FULL_STRENGTH

    @classmethod
    def of(cls, params: CodingParams, qp_eighths: int) -> KltState:
        """The state that resolved params ask for, at a qp."""
        if params.token_res is None or params.prefix_tokens is None:
            raise InvalidInputError("params are not resolved", field="params")
        height, width = params.token_res
        return cls(
            qp_eighths=qp_eighths,
            height=height,
            width=width,
            prefix=params.prefix_tokens,
            prefix_offset_eighths=int(dict(params.family)[_OFFSET]),
        )

    def far_of(self, sample: int) -> NDArray[np.int64]:
        """Far tokens of one sample, counted from its first patch."""
        patches = self.height * self.width
        far = np.array(self.far, np.int64) - sample * patches
        return far[(far >= 0) & (far < patches)]


def effort_of(params: CodingParams) -> int:
    """Of resolved params."""
    return int(dict(params.family)[_EFFORT])


def resolve_params(model: KltModel, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
    """See `FeatureCodec.resolve`."""
    shape = _shape(model, specs)
    qp = _qp(model, params)
    default_prefix = 0 if shape.map else model.prefix_tokens
    prefix = default_prefix if params.prefix_tokens is None else params.prefix_tokens
    most = 0 if shape.map else min(MAX_PREFIX_TOKENS, shape.tokens - 1)
    if not 0 <= prefix <= most:
        raise InvalidInputError(f"{prefix} prefix tokens of {shape.tokens} tokens", field="params.prefix_tokens")
    family = dict(params.family)
    unknown = sorted(family.keys() - {_OFFSET, _EFFORT})
    if unknown:
        raise InvalidInputError(f"codec {model.id} has no parameter {unknown[0]!r}", field=f"params.{unknown[0]}")
    offset = family.get(_OFFSET, model.prefix_qp_offset_eighths)
    if type(offset) is not int or abs(offset) > MAX_PREFIX_OFFSET:
        limit = MAX_PREFIX_OFFSET
        raise InvalidInputError(f"{_OFFSET} {offset!r} is not in -{limit} to {limit}", field=f"params.{_OFFSET}")
    effort = family.get(_EFFORT, DEFAULT_EFFORT)
    if type(effort) is not int or effort not in EFFORTS:
        raise InvalidInputError(f"effort {effort!r} is not in 0 to 2", field=f"params.{_EFFORT}")
    targeted = params.target_bpfp is not None or params.target_nmse is not None
    return replace(
        params,
        qp_eighths=qp,
        token_res=_grid(model, params.token_res, shape, prefix),
        prefix_tokens=prefix,
        family=((_EFFORT, effort), (_OFFSET, offset)),
        target_policy=params.target_policy if targeted else "nearest",
    )


def _shape(model: KltModel, specs: Sequence[TensorSpec]) -> Shape:
    """Of the one tensor, its spec checked."""
    if len(specs) != 1 or specs[0].name != "h":
        names = ", ".join(repr(spec.name) for spec in specs) or "none"
        raise InvalidInputError(f"codec {model.id} takes one tensor, 'h'; got {names}", field="tensors")
    (spec,) = specs
    if spec.dtype not in DTYPES:
        raise InvalidInputError(f"h is {spec.dtype}, not {', '.join(DTYPES)}", field="tensors[0].dtype")
    shape = Shape.of(spec, model.channels)
    if isinstance(shape, str):
        raise InvalidInputError(f"codec {model.id}: {shape}", field="tensors[0].shape")
    return shape


def _qp(model: KltModel, params: CodingParams) -> int | None:
    """The qp in eighths; None when there is a target instead."""
    targets = [name for name in ("target_bpfp", "target_nmse") if getattr(params, name) is not None]
    for name in targets:
        value = getattr(params, name)
        if not 0 < value < float("inf"):
            raise InvalidInputError(f"{name} is {value}, not a positive number", field=f"params.{name}")
    if len(targets) + (params.qp_eighths is not None) > 1:
        raise InvalidInputError("give one of qp, target_bpfp and target_nmse", field="params.target_bpfp")
    if targets:
        return None
    qp = model.qp.default if params.qp_eighths is None else params.qp_eighths
    if not model.qp.minimum <= qp <= model.qp.maximum:
        low, high = model.qp.minimum / 8, model.qp.maximum / 8
        raise InvalidInputError(f"qp {qp / 8:g} is not in {low:g} to {high:g}", field="params.qp_eighths")
    return qp


def _grid(model: KltModel, asked: tuple[int, int] | None, shape: Shape, prefix: int) -> tuple[int, int]:
    patches = shape.tokens - prefix
    grid = asked or shape.map or model.token_res or (1, patches)
    if not all(1 <= side <= _MAX_SIDE for side in grid):
        raise InvalidInputError(f"a grid of {grid} tokens", field="params.token_res")
    if grid[0] * grid[1] != patches or (shape.map and grid != shape.map):
        hint = "" if asked else f"; give token_res, (1, {patches}) for a sequence"
        said = f"{shape.tokens} tokens less {prefix} prefix tokens are not a grid of {grid[0]} x {grid[1]}"
        raise InvalidInputError(said + hint, field="params.token_res")
    return grid


def write_state(model: KltModel, state: KltState, shape: Shape) -> dict[str, Any]:
    """pstate: what differs from the codec's own."""
    own_width = shape.map[1] if shape.map else model.token_res[1] if model.token_res else None
    pstate: dict[str, Any] = {"qp_eighths": state.qp_eighths}
    if state.width != own_width and not (own_width is None and state.height == 1):
        pstate["token_width"] = state.width
    if not shape.map and state.prefix != model.prefix_tokens:
        pstate["prefix_tokens"] = state.prefix
    if state.prefix_offset_eighths != model.prefix_qp_offset_eighths:
        pstate[_OFFSET] = state.prefix_offset_eighths
    if state.gain_eighths:
        pstate["gain_eighths"] = state.gain_eighths
    if model.filter is not None and state.filter_strength != FULL_STRENGTH:
        pstate[_STRENGTH] = state.filter_strength - FULL_STRENGTH
    if state.far:
        pstate["far_tokens"] = np.diff(np.array(state.far, np.int64) - np.arange(len(state.far)), prepend=0).tolist()
    return pstate


def read_state(model: KltModel, unit: Unit) -> tuple[KltState, TensorSpec, Shape]:
    """State, spec and shape of a unit. Raises CorruptBitstreamError for what no encoder of this codec writes."""
    if len(unit.specs) != 1 or len(unit.strings) != 1 or unit.ctx_hash:
        said = f"{len(unit.strings)} streams, {len(unit.specs)} tensors"
        raise CorruptBitstreamError(f"a unit of {said}; this codec has one of each and no context", field="unit")
    (spec,) = unit.specs
    shape = Shape.of(spec, model.channels)
    if isinstance(shape, str) or spec.dtype not in DTYPES:
        raise CorruptBitstreamError(shape if isinstance(shape, str) else f"h is {spec.dtype}", field="unit.tensors[0]")
    pstate = dict(unit.pstate)
    own_prefix = 0 if shape.map else model.prefix_tokens
    most_prefix = 0 if shape.map else min(MAX_PREFIX_TOKENS, shape.tokens - 1)
    prefix = _take(pstate, "prefix_tokens", 0, most_prefix, own_prefix)
    patches = shape.tokens - prefix
    own_width = shape.map[1] if shape.map else model.token_res[1] if model.token_res else patches
    width = _take(pstate, "token_width", 1, _MAX_SIDE, own_width)
    height, rest = divmod(patches, width)
    if rest or not 1 <= height <= _MAX_SIDE or (shape.map and (height, width) != shape.map):
        raise CorruptBitstreamError(f"{patches} tokens are not rows of {width}", field="unit.pstate.token_width")
    state = KltState(
        qp_eighths=_take(pstate, "qp_eighths", *QP_LIMITS, None),
        height=height,
        width=width,
        prefix=prefix,
        prefix_offset_eighths=_take(
            pstate, _OFFSET, -MAX_PREFIX_OFFSET, MAX_PREFIX_OFFSET, model.prefix_qp_offset_eighths
        ),
        gain_eighths=_take(pstate, "gain_eighths", -MAX_GAIN, MAX_GAIN, 0),
        filter_strength=FULL_STRENGTH + (_take(pstate, _STRENGTH, *STRENGTHS, 0) if model.filter is not None else 0),
        far=_far(pstate.pop("far_tokens", []), shape.samples, patches),
    )
    if pstate:
        raise CorruptBitstreamError(f"unknown state {sorted(map(str, pstate))}", field="unit.pstate")
    return state, spec, shape


def _far(gaps: Any, samples: int, patches: int) -> tuple[int, ...]:
    """Positions from the gaps between them."""
    field = "unit.pstate.far_tokens"
    if not isinstance(gaps, list | tuple) or len(gaps) > samples * most_far(patches):
        raise CorruptBitstreamError("too many far tokens", field=field)
    if not all(type(gap) is int and 0 <= gap < samples * patches for gap in gaps):
        raise CorruptBitstreamError("a far token outside the tensor", field=field)
    far = np.cumsum(np.array(gaps, np.int64) + 1) - 1
    if far.size and (far[-1] >= samples * patches or np.bincount(far // patches).max() > most_far(patches)):
        raise CorruptBitstreamError("a far token outside the tensor, or too many in a sample", field=field)
    return tuple(far.tolist())


def _take(pstate: dict[str, Any], name: str, low: int, high: int, default: int | None) -> int:
    value = pstate.pop(name, default)
    if type(value) is not int or not low <= value <= high:
        raise CorruptBitstreamError(f"{name} is {value!r}, not in {low} to {high}", field=f"unit.pstate.{name}")
    return value
