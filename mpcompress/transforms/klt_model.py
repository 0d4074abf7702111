"""What family `klt` stores: numbers fitted at calibration, and the rules they keep. The file is `klt_model_file`'s.

All logarithms are integers in units of 1/48 octave, so that one unit is an eighth of a qp step (step = 2^(qp / 6)).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import QpRange, fingerprint_of
from mpcompress.entropy.tables import CdfTables
from mpcompress.errors import CodecFileError
from mpcompress.transforms.klt_basis import group_starts
from mpcompress.transforms.klt_context import CLASSES, EVIDENCE_LIMIT, FEATURES, MAGNITUDES
from mpcompress.transforms.klt_filter import FilterModel
from mpcompress.transforms.klt_pyramid import kind_count

FAMILY = "klt"
BITSTREAM_VERSION = 2
FILTERED_VERSION = 3
"""Bitstream version of codecs with a filter; their symbols are as in version 2."""

QP_LIMITS = (-768, 1536)
"""Eighths of a qp that the format can hold; what a codec advertises lies inside."""

MAX_CHANNELS = 8192
MAX_PREFIX_TOKENS = 1024
MAX_DEPTH = 16
MAX_PREFIX_OFFSET = 384
MAX_GAIN = 1920
"""40 octaves either way: more than float16 spans."""

LEVEL_BUCKETS = 14
COMPONENT_OCTAVES = 16
BANDS = 8
"""Of components, by octaves, for the distance from the calibration set."""

_LOG_LIMIT = 960
_MAX_MEAN_TOKENS = 1 << 16
_DECODING = (
    *("mean", "far_mean", "slope", "feedback", "slot", "basis", "basis_group", "predictor", "predictor_scale", "base"),
    *("weight_kind", "weight_level", "weight_component", "evidence", "worth", "centroid"),
)

_Shape = tuple[tuple[int, ...], type[np.generic]]


@dataclass(frozen=True, kw_only=True, eq=False)
class KltModel:
    """A calibrated codec's numbers: C channels = K components, P prefix tokens, D levels, N = 2 + P + 3 D kinds of row.

    Args:
        id: codec id.
        description: one sentence.
        token_res: grid it was made for; None for sequences.
        mean_grid: (h, w) positions that have a mean of their own; those of other grids take the nearest's.
        base_log2: log2 of the step at qp 0, 1/48 octave.
        cutoff: log2(E|x| / step) from which on a coefficient is coded; 1/48 octave.
        prefix_qp_offset_eighths: the prefix tokens' qp less the patches'.
        qp: range that it was fitted for.
        rate: squared steps that a bit is worth to the quantiser. Only encoders use it.
        token_energy: squared distance from the means that few tokens exceed. Only encoders use it.
        domain_typical: how far calibration tensors are from their own statistics, in the median. Only encoders use it.
        domain_bound: distance from the calibration set above which a tensor is reported.
        mean: float16 (P + h * w, C).
        far_mean: float32 (C,), of far tokens.
        slope: float32 (D, 2), finest level first: details from the slope of the low-pass, across and down.
        feedback: float32 (N, 2): coefficients from those to the left and above.
        slot: int16 (N,): which basis a kind has.
        basis: int8 (S, K, G), see `klt_basis`.
        basis_group: uint8 (S, K), group of channels of each component.
        predictor: int8 (P, K, G): prefix token from the root's components.
        predictor_scale: float32 (P, K).
        base: int16 (N, K), log2 E|x|.
        weight_kind: int16 (N, 8): seven weights in 1/256, and a bias in 1/48 octave.
        weight_level: int16 (14, 8), by octaves of scale over step.
        weight_component: int16 (16, 8), by octaves of the component.
        evidence: int16 (96, 17), see `klt_context`.
        worth: int16 (96,).
        centroid: float32 (96, 17): mean of |x| / step where |q| is the column; the last goes on with |q|.
        energy: float32 (N, 8), mean square of a coefficient by octaves of components; 0: unknown. Only encoders use it.
        points: float32 (n, 3), expected log2 of qp step in 1/48 octave, bpfp and NMSE. Only encoders use it.
        tables: 96 tables of q.
        filter: of decoded features; None: there is none.
        card: what a person wants to know: JSON-able.
    """

    id: str
    description: str
    token_res: tuple[int, int] | None
    mean_grid: tuple[int, int]
    base_log2: int
    cutoff: int
    prefix_qp_offset_eighths: int
    qp: QpRange
    rate: float
    token_energy: float
    domain_typical: float
    domain_bound: float
    mean: NDArray[np.float16]
    far_mean: NDArray[np.float32]
    slope: NDArray[np.float32]
    feedback: NDArray[np.float32]
    slot: NDArray[np.int16]
    basis: NDArray[np.int8]
    basis_group: NDArray[np.uint8]
    predictor: NDArray[np.int8]
    predictor_scale: NDArray[np.float32]
    base: NDArray[np.int16]
    weight_kind: NDArray[np.int16]
    weight_level: NDArray[np.int16]
    weight_component: NDArray[np.int16]
    evidence: NDArray[np.int16]
    worth: NDArray[np.int16]
    centroid: NDArray[np.float32]
    energy: NDArray[np.float32]
    points: NDArray[np.float32]
    tables: CdfTables
    filter: FilterModel | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_arrays(self)
        if self.filter is not None:
            self.filter.check(self.channels, self.prefix_tokens)

    @property
    def bitstream_version(self) -> int:
        """Of the units it makes and decodes."""
        return BITSTREAM_VERSION if self.filter is None else FILTERED_VERSION

    @property
    def channels(self) -> int:
        """C."""
        return int(self.mean.shape[1])

    @property
    def components(self) -> int:
        """K."""
        return int(self.basis.shape[1])

    @property
    def prefix_tokens(self) -> int:
        """P."""
        return int(self.predictor.shape[0])

    @property
    def depth(self) -> int:
        """D."""
        return int(self.slope.shape[0])

    @property
    def kinds(self) -> int:
        """N."""
        return kind_count(self.prefix_tokens, self.depth)

    @cached_property
    def cost(self) -> NDArray[np.float32]:
        """float32 (96, 17): bits of a symbol by |q|. Only encoders use it."""
        return symbol_cost(self.tables)

    def fingerprint(self) -> bytes:
        """8 bytes over all that decoding depends on, and nothing else: no name, card, qp range or rate."""
        width = self.token_res[1] if self.token_res else 0
        numbers = [self.bitstream_version, width, *self.mean_grid, self.base_log2, self.cutoff]
        numbers += [self.prefix_qp_offset_eighths, self.tables.precision]
        parts: list[tuple[str, bytes | NDArray[Any]]] = [
            ("family", FAMILY.encode()),
            ("numbers", np.array(numbers, np.int64)),
        ]
        parts += [(name, getattr(self, name)) for name in _DECODING]
        parts += [(f"table_{name}", getattr(self.tables, name)) for name in ("freqs", "lengths", "offsets")]
        if self.filter is not None:
            parts += [("filter_start", np.array([self.filter.start], np.int64))]
            parts += [(f"filter_{name}", array) for name, array in self.filter.arrays()]
        return fingerprint_of(parts)


def symbol_cost(tables: CdfTables) -> NDArray[np.float32]:
    """Bits of |q| = 0 ... 16 in each table, the sign's included; the last stands for all larger ones."""
    begins = np.concatenate([[0], np.cumsum(tables.lengths)[:-1]])
    cost = np.empty((tables.count, MAGNITUDES), np.float32)
    total = float(1 << tables.precision)
    for row, (begin, length, offset) in enumerate(zip(begins, tables.lengths, tables.offsets, strict=True)):
        bits = -np.log2(tables.freqs[begin : begin + length] / total)
        for size in range(MAGNITUDES):
            at, escape = size - int(offset), int(length) - 1
            # An escape, one bit for the side, and the distance as an Exp-Golomb code.
            golomb = 2 + 2 * int(np.log2(at - escape + 1)) if at >= escape else 0
            cost[row, size] = bits[min(at, escape)] + golomb
    cost.flags.writeable = False
    return cost


def _check_arrays(model: KltModel) -> None:
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
    # So a stream of n bytes has at most 8 n + 64 symbols that are not 0, and decoders can bound their memory by that.
    if int(freqs.max()) > 1 << (model.tables.precision - 1):
        raise CodecFileError("a symbol other than 0 has a probability above a half", field="table_freqs")


def _check_numbers(model: KltModel) -> None:
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
