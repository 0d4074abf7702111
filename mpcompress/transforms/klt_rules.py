"""The rules that what family `klt` stores keeps: a file from anywhere is checked before anything is made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mpcompress.entropy.ending import SHORT
from mpcompress.errors import CodecFileError
from mpcompress.transforms.klt_basis import group_starts
from mpcompress.transforms.klt_context import CLASSES, EVIDENCE_LIMIT, FEATURES, MAGNITUDES
from mpcompress.transforms.klt_limits import (
    BANDS,
    COMPONENT_OCTAVES,
    LEVEL_BUCKETS,
    MAX_CHANNELS,
    MAX_DEPTH,
    MAX_PREFIX_OFFSET,
    MAX_PREFIX_TOKENS,
    QP_LIMITS,
)
from mpcompress.transforms.klt_pyramid import kind_count

if TYPE_CHECKING:
    from mpcompress.transforms.klt_model import KltModel

__all__ = ["check_arrays", "check_numbers"]

_LOG_LIMIT = 960
_MAX_MEAN_TOKENS = 1 << 16

_Shape = tuple[tuple[int, ...], type[np.generic]]


def check_numbers(model: KltModel) -> None:
    """In range. Raises CodecFileError."""
    for name, grid in (("token_res", model.token_res), ("mean_grid", model.mean_grid)):
        if grid is not None and not all(1 <= side <= 65535 for side in grid):
            raise CodecFileError(f"a grid of {grid} tokens", field=name)
    if model.mean_grid[0] * model.mean_grid[1] > _MAX_MEAN_TOKENS:
        raise CodecFileError(f"means of a grid of {model.mean_grid}", field="mean_grid")
    limits = {
        "base_log2": (model.base_log2, -_LOG_LIMIT, _LOG_LIMIT),
        "cutoff": (model.cutoff, -_LOG_LIMIT, _LOG_LIMIT),
        "prefix_qp_offset_eighths": (model.prefix_qp_offset_eighths, -MAX_PREFIX_OFFSET, MAX_PREFIX_OFFSET),
        "qp.minimum": (model.qp.minimum, QP_LIMITS[0], model.qp.default),
        "qp.maximum": (model.qp.maximum, model.qp.default, QP_LIMITS[1]),
        "rate": (model.rate, 0.0, 1.0),
        "token_energy": (model.token_energy, 0.0, 1e30),
        "domain_typical": (model.domain_typical, 1e-6, 1e9),
        "domain_bound": (model.domain_bound, 1.0, 1e9),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise CodecFileError(f"{name} is {value}, not in {low} to {high}", field=name)


def check_arrays(model: KltModel) -> None:
    """Of the right shapes and dtypes, finite and in range; they are made read-only. Raises CodecFileError."""
    if model.basis.ndim != 3 or model.slope.ndim != 2 or model.predictor.ndim != 3 or model.points.ndim != 2:
        raise CodecFileError("a basis, slope, predictor or points array of a wrong rank", field="basis")
    (S, K, G), P, D = model.basis.shape, model.predictor.shape[0], model.slope.shape[0]
    if not (1 <= K <= MAX_CHANNELS and 0 <= P <= MAX_PREFIX_TOKENS and 0 <= D <= MAX_DEPTH):
        raise CodecFileError(f"{K} components, {P} prefix tokens, {D} levels", field="basis")
    N, C, (h, w) = kind_count(P, D), K, model.mean_grid
    starts = group_starts(C)
    if not 1 <= S <= N or starts[1] != G:
        raise CodecFileError(f"{S} bases of {G} channels for {N} kinds, {C} channels", field="basis")
    shapes: dict[str, _Shape] = {
        "mean": ((P + h * w, C), np.float16),
        "far_mean": ((C,), np.float32),
        "slope": ((D, 2), np.float32),
        "feedback": ((N, 2), np.float32),
        "slot": ((N,), np.int16),
        "basis_group": ((S, K), np.uint8),
        "basis": ((S, K, G), np.int8),
        "predictor": ((P, K, G), np.int8),
        "predictor_scale": ((P, K), np.float32),
        "base": ((N, K), np.int16),
        "weight_kind": ((N, FEATURES + 1), np.int16),
        "weight_level": ((LEVEL_BUCKETS, FEATURES + 1), np.int16),
        "weight_component": ((COMPONENT_OCTAVES, FEATURES + 1), np.int16),
        "evidence": ((CLASSES, MAGNITUDES), np.int16),
        "worth": ((CLASSES,), np.int16),
        "centroid": ((CLASSES, MAGNITUDES), np.float32),
        "energy": ((N, BANDS), np.float32),
        "points": ((len(model.points), 3), np.float32),
    }
    for name, (shape, dtype) in shapes.items():
        array = getattr(model, name)
        if array.shape != shape or array.dtype != dtype:
            said = f"{array.dtype} {array.shape}"
            raise CodecFileError(f"{name} is {said}, not {np.dtype(dtype)} {shape}", field=name)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CodecFileError(f"{name} holds NaN or infinity", field=name)
        array.flags.writeable = False
    sizes = np.diff(starts)
    for group in model.basis_group:
        if not np.array_equal(np.bincount(group, minlength=len(sizes)), sizes):
            raise CodecFileError("a group has not as many components as channels", field="basis_group")
    _check_ranges(model, S)


def _check_ranges(model: KltModel, bases: int) -> None:
    """Bounds that keep integers in int32 and decoded values finite, whatever a stream says."""
    # A prediction that amplifies would let values grow along a row of tokens, or from level to level.
    ok = {
        "slot": model.slot.min() >= 0 and model.slot.max() < bases,
        "slope": float(np.abs(model.slope).max(initial=0)) <= 0.5,
        "feedback": float(np.abs(model.feedback).sum(axis=1).max()) <= 0.95,
        "predictor_scale": float(np.abs(model.predictor_scale).max(initial=0)) <= 1,
        "far_mean": float(np.abs(model.far_mean).max()) <= 1e9,
        "evidence": int(np.abs(model.evidence).max()) <= EVIDENCE_LIMIT,
        "worth": model.worth.min() >= 0 and model.worth.max() <= 1024,
        "centroid": float(np.abs(model.centroid - np.arange(MAGNITUDES)).max()) <= 1,
        "energy": float(model.energy.min()) >= 0,
    }
    for name, fine in ok.items():
        if not fine:
            raise CodecFileError(f"{name} is out of range", field=name)
    if model.tables.count != CLASSES:
        raise CodecFileError(f"{model.tables.count} tables, not {CLASSES}", field="table_lengths")
    if not np.all((model.tables.offsets < 0) & (model.tables.offsets + model.tables.lengths > 2)):
        raise CodecFileError("a table lacks -1, 0 or 1", field="table_offsets")
    begins = np.cumsum(model.tables.lengths) - model.tables.lengths
    freqs = model.tables.freqs.copy()
    freqs[begins - model.tables.offsets] = 0
    if model.ending == SHORT and model.tables.precision != 16:
        raise CodecFileError(f"a precision of {model.tables.precision} bits, not 16", field="table_freqs")
    # So a stream of n bytes has few more than 8 n symbols that are not 0, and decoders can bound their memory by that.
    if int(freqs.max()) > 1 << (model.tables.precision - 1):
        raise CodecFileError("a symbol other than 0 has a probability above a half", field="table_freqs")
