"""What a unit of family `klt` says besides its payload, and how requests and units are checked, bytes unseen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.transforms.klt_model import MAX_GAIN, MAX_PREFIX_OFFSET, MAX_PREFIX_TOKENS, QP_LIMITS, KltModel

DTYPES = ("float32", "float16", "bfloat16")
MAX_ELEMENTS = 1 << 27
"""Of one tensor: half a gigabyte of float32."""

_MAX_SIDE = 65535
_OFFSET = "prefix_qp_offset_eighths"


@dataclass(frozen=True, kw_only=True)
class KltState:
    """Everything about one item but its samples: qp, grid (H, W), prefix tokens P; L = P + H * W."""

    qp_eighths: int
    height: int
    width: int
    prefix: int
    prefix_offset_eighths: int
    gain_eighths: int = 0

    @classmethod
    def of(cls, params: CodingParams) -> KltState:
        """The state that resolved params ask for."""
        if params.qp_eighths is None or params.token_res is None or params.prefix_tokens is None:
            raise InvalidInputError("params are not resolved", field="params")
        height, width = params.token_res
        return cls(
            qp_eighths=params.qp_eighths,
            height=height,
            width=width,
            prefix=params.prefix_tokens,
            prefix_offset_eighths=int(dict(params.family)[_OFFSET]),
        )


def resolve_params(model: KltModel, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
    """See `FeatureCodec.resolve`."""
    tokens = _tokens(model, specs)
    for name in ("target_bpfp", "target_nmse"):
        if getattr(params, name) is not None:
            raise InvalidInputError(f"codec {model.id} takes a qp, not {name}", field=f"params.{name}")
    qp = model.qp.default if params.qp_eighths is None else params.qp_eighths
    if not model.qp.minimum <= qp <= model.qp.maximum:
        low, high = model.qp.minimum / 8, model.qp.maximum / 8
        raise InvalidInputError(f"qp {qp / 8:g} is not in {low:g} to {high:g}", field="params.qp_eighths")
    prefix = model.prefix_tokens if params.prefix_tokens is None else params.prefix_tokens
    if not 0 <= prefix <= min(MAX_PREFIX_TOKENS, tokens - 1):
        raise InvalidInputError(f"{prefix} prefix tokens of {tokens} tokens", field="params.prefix_tokens")
    unknown = sorted({name for name, _ in params.family} - {_OFFSET})
    if unknown:
        raise InvalidInputError(f"codec {model.id} has no parameter {unknown[0]!r}", field=f"params.{unknown[0]}")
    offset = dict(params.family).get(_OFFSET, model.prefix_qp_offset_eighths)
    if type(offset) is not int or abs(offset) > MAX_PREFIX_OFFSET:
        limit = MAX_PREFIX_OFFSET
        raise InvalidInputError(f"{_OFFSET} {offset!r} is not in -{limit} to {limit}", field=f"params.{_OFFSET}")
    grid = _grid(model, params.token_res, tokens, prefix)
    return replace(
        params,
        qp_eighths=qp,
        token_res=grid,
        prefix_tokens=prefix,
        family=((_OFFSET, offset),),
        target_policy="nearest",
    )


def _tokens(model: KltModel, specs: Sequence[TensorSpec]) -> int:
    """L of the one tensor, its spec checked."""
    if len(specs) != 1 or specs[0].name != "h":
        names = ", ".join(repr(spec.name) for spec in specs) or "none"
        raise InvalidInputError(f"codec {model.id} takes one tensor, 'h'; got {names}", field="tensors")
    (spec,) = specs
    if spec.dtype not in DTYPES:
        raise InvalidInputError(f"h is {spec.dtype}, not {', '.join(DTYPES)}", field="tensors[0].dtype")
    problem = _shape_problem(model, spec)
    if problem:
        raise InvalidInputError(problem, field="tensors[0].shape")
    return spec.shape[-2]


def _shape_problem(model: KltModel, spec: TensorSpec) -> str:
    shape = spec.shape
    if len(shape) not in (2, 3):
        return f"h has shape {shape}, not (L, C) or (B, L, C)"
    if min(shape) < 1:
        return f"h has an empty side: {shape}"
    if shape[-1] != model.channels:
        return f"h has {shape[-1]} channels; codec {model.id} takes {model.channels}"
    if spec.elements > MAX_ELEMENTS:
        return f"h has {spec.elements} elements, above {MAX_ELEMENTS}"
    return ""


def _grid(model: KltModel, asked: tuple[int, int] | None, tokens: int, prefix: int) -> tuple[int, int]:
    patches = tokens - prefix
    grid = asked or model.token_res or (1, patches)
    if not all(1 <= side <= _MAX_SIDE for side in grid):
        raise InvalidInputError(f"a grid of {grid} tokens", field="params.token_res")
    if grid[0] * grid[1] != patches:
        hint = "" if asked else f"; give token_res, (1, {patches}) for a sequence"
        said = f"{tokens} tokens less {prefix} prefix tokens are not a grid of {grid[0]} x {grid[1]}"
        raise InvalidInputError(said + hint, field="params.token_res")
    return grid


def write_state(model: KltModel, state: KltState) -> dict[str, Any]:
    """pstate: what differs from the codec's own."""
    own_width = model.token_res[1] if model.token_res else None
    pstate = {"qp_eighths": state.qp_eighths}
    if state.width != own_width and not (own_width is None and state.height == 1):
        pstate["token_width"] = state.width
    if state.prefix != model.prefix_tokens:
        pstate["prefix_tokens"] = state.prefix
    if state.prefix_offset_eighths != model.prefix_qp_offset_eighths:
        pstate[_OFFSET] = state.prefix_offset_eighths
    if state.gain_eighths:
        pstate["gain_eighths"] = state.gain_eighths
    return pstate


def read_state(model: KltModel, unit: Unit) -> tuple[KltState, TensorSpec]:
    """State and spec of a unit. Raises CorruptBitstreamError for what no encoder of this codec writes."""
    if len(unit.specs) != 1 or len(unit.strings) != 1 or unit.ctx_hash:
        said = f"{len(unit.strings)} streams, {len(unit.specs)} tensors"
        raise CorruptBitstreamError(f"a unit of {said}; this codec has one of each and no context", field="unit")
    (spec,) = unit.specs
    problem = _shape_problem(model, spec)
    if problem or spec.dtype not in DTYPES:
        raise CorruptBitstreamError(problem or f"h is {spec.dtype}", field="unit.tensors[0]")
    pstate = dict(unit.pstate)
    tokens = spec.shape[-2]
    prefix = _take(pstate, "prefix_tokens", 0, min(MAX_PREFIX_TOKENS, tokens - 1), model.prefix_tokens)
    own_width = model.token_res[1] if model.token_res else tokens - prefix
    width = _take(pstate, "token_width", 1, _MAX_SIDE, own_width)
    height, rest = divmod(tokens - prefix, width)
    if rest or not 1 <= height <= _MAX_SIDE:
        raise CorruptBitstreamError(
            f"{tokens - prefix} tokens are not rows of {width}", field="unit.pstate.token_width"
        )
    state = KltState(
        qp_eighths=_take(pstate, "qp_eighths", *QP_LIMITS, None),
        height=height,
        width=width,
        prefix=prefix,
        prefix_offset_eighths=_take(
            pstate, _OFFSET, -MAX_PREFIX_OFFSET, MAX_PREFIX_OFFSET, model.prefix_qp_offset_eighths
        ),
        gain_eighths=_take(pstate, "gain_eighths", 0, MAX_GAIN, 0),
    )
    if pstate:
        raise CorruptBitstreamError(f"unknown state {sorted(map(str, pstate))}", field="unit.pstate")
    return state, spec


def _take(pstate: dict[str, Any], name: str, low: int, high: int, default: int | None) -> int:
    value = pstate.pop(name, default)
    if type(value) is not int or not low <= value <= high:
        raise CorruptBitstreamError(f"{name} is {value!r}, not in {low} to {high}", field=f"unit.pstate.{name}")
    return value
