"""Context weights of family `klt`: three additive tables, fitted to the ideal code length of observed symbols.

s = log2(E|x| / step) + sum of weights * features + bias; a symbol costs -log2 of its Laplace probability at scale 2^s.
Minimised with Adam (Kingma and Ba 2015, arXiv 1412.6980) in about a second per 100 000 observations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress._numba import njit, types
from mpcompress.transforms.klt_context import (
    BLOCK,
    FEATURES,
    I32_1R,
    MEMORY_TYPE,
    STATISTICS_TYPE,
    UNITS,
    Array,
    Int,
    evidence_of,
    mean_evidence,
    row_features,
)
from mpcompress.transforms.klt_fit_tables import ZERO_BELOW
from mpcompress.transforms.klt_limits import COMPONENT_OCTAVES, LEVEL_BUCKETS
from mpcompress.transforms.klt_model import KltModel

__all__ = ["OBSERVED", "Weights", "fit_weights", "observe_rows"]

OBSERVED = 3 + FEATURES
"""Columns of an observation: kind, component, q, features."""

_BATCH = 8192
_STEPS = 900
_LEARNING_RATE = 0.02
_WEIGHT_DECAY = 1e-6
_LIMIT = 4000

_I32_2 = types.Array(types.int32, 2, "C")
_I32_2R = types.Array(types.int32, 2, "C", readonly=True)


@dataclass(frozen=True)
class Weights:
    """`weight_kind`, `weight_level` and `weight_component` of `KltModel`."""

    kind: NDArray[np.int16]
    level: NDArray[np.int16]
    component: NDArray[np.int16]

    @classmethod
    def none(cls, kinds: int) -> Weights:
        """No context."""
        return cls(*(np.zeros((n, FEATURES + 1), np.int16) for n in (kinds, LEVEL_BUCKETS, COMPONENT_OCTAVES)))


@njit(
    types.int64(_I32_2R, I32_1R, _I32_2R, STATISTICS_TYPE, MEMORY_TYPE, types.int64, types.int64, _I32_2),
)
def observe_rows(
    symbols: Array,
    kinds: Array,
    neighbours: Array,
    statistics: Any,
    memory: Any,
    seed: Int,
    one_in: Int,
    out: Array,
) -> Int:
    """Observations of about one coefficient in `one_in` of a sample, coded or not: symbols (rows + 1, K)."""
    level, _, own, last, evidence, worth, log2, cutoff = statistics
    said, sums, worths, total = memory
    found = 0
    random = np.uint32(seed * 2654435761 + 12345)
    for row in range(1, kinds.size):
        kind = kinds[row]
        end = last[kind]
        n = neighbours[row]
        near, node, above, before = row_features(row, neighbours, sums, worths, total)
        said[row] = 0
        sums[row], worths[row] = 0, 0
        run_said, run_worth = 0, 0
        for begin in range(0, end, BLOCK):
            run = mean_evidence(run_said, run_worth)
            run_said -= run_said >> 2
            run_worth -= run_worth >> 2
            for k in range(begin, min(begin + BLOCK, end)):
                random = np.uint32(random * np.uint32(1664525) + np.uint32(1013904223))
                if (random >> np.uint32(8)) % np.uint32(one_in) == 0 and found < out.shape[0]:
                    o = out[found]
                    o[0], o[1], o[2], o[3], o[4], o[5], o[6] = kind, k, symbols[row, k], near, node, above, before
                    o[7] = np.int32(said[n[0], k]) + np.int32(said[n[1], k])
                    o[8] = np.int32(said[n[4], k]) + np.int32(said[n[5], k])
                    o[9] = run
                    found += 1
                mine = np.int64(own[kind, k])
                e = evidence_of(np.int64(symbols[row, k]), mine, np.int64(level[kind, k]) + cutoff, evidence, log2)
                said[row, k] = e
                run_said += e
                run_worth += worth[mine]
                sums[row] += e
                worths[row] += worth[mine]
        total[0] += sums[row]
        total[1] += worths[row]
    return found


def fit_weights(model: KltModel, observations: NDArray[np.int32], lsteps: NDArray[np.int64], seed: int = 0) -> Weights:
    """Weights for observations (n, OBSERVED) made at log steps (n,), in 1/48 octave."""
    kind, component = observations[:, 0], observations[:, 1]
    magnitude = np.abs(observations[:, 2]).astype(np.float32)
    features = np.concatenate(
        [observations[:, 3:].astype(np.float32) / UNITS, np.ones((len(observations), 1), np.float32)], axis=1
    )
    above = model.base[kind, component].astype(np.int64) - lsteps
    head = (kind >= 1) & (kind < 1 + model.prefix_tokens)
    above -= np.where(head, model.prefix_qp_offset_eighths, 0)
    bucket = np.clip((above - model.cutoff) // UNITS + 2, 0, LEVEL_BUCKETS - 1)
    octave = np.minimum(np.log2(component + 1).astype(np.int64), COMPONENT_OCTAVES - 1)
    scale = (above / UNITS).astype(np.float32)
    index = (kind, bucket, octave)
    tables = [np.zeros((n, FEATURES + 1), np.float32) for n in (model.kinds, LEVEL_BUCKETS, COMPONENT_OCTAVES)]
    first, second = ([np.zeros_like(table) for table in tables] for _ in range(2))
    rng = np.random.default_rng(seed)
    for step in range(_STEPS):
        chosen = rng.integers(0, len(observations), _BATCH)
        x = features[chosen]
        rows = [part[chosen] for part in index]
        s = scale[chosen] + sum((table[row] * x).sum(1) for table, row in zip(tables, rows, strict=True))
        slope = _slope(s, magnitude[chosen])[:, None] * x / _BATCH
        rate = _LEARNING_RATE * min(1, (step + 1) / 100) * (1 - step / _STEPS) + 1e-4
        for n, (table, row) in enumerate(zip(tables, rows, strict=True)):
            gradient = _WEIGHT_DECAY * table
            for column in range(FEATURES + 1):
                gradient[:, column] += np.bincount(row, weights=slope[:, column], minlength=len(table))
            first[n] = 0.9 * first[n] + 0.1 * gradient
            second[n] = 0.99 * second[n] + 0.01 * gradient**2
            corrected = first[n] / (1 - 0.9 ** (step + 1)), second[n] / (1 - 0.99 ** (step + 1))
            table -= rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-7)
    return Weights(*(_integers(table) for table in tables))


def _slope(s: NDArray[np.float32], magnitude: NDArray[np.float32]) -> NDArray[np.float32]:
    """Derivative of the code length by s, for |q|: 0 below ZERO_BELOW, then geometric."""
    scale = np.exp2(np.clip(s, -6, 9))
    beyond, ratio = np.exp(-ZERO_BELOW / scale), np.exp(-1 / scale)
    zero = ZERO_BELOW / scale * beyond / np.maximum(1 - beyond, 1e-9)
    other = -(ZERO_BELOW + magnitude - 1) / scale + ratio / scale / np.maximum(1 - ratio, 1e-9)
    return np.where(magnitude == 0, zero, other).astype(np.float32)


def _integers(table: NDArray[np.float32]) -> NDArray[np.int16]:
    """Weights in 1/256, the bias in 1/48 octave."""
    scaled = np.concatenate([table[:, :FEATURES] * 256, table[:, FEATURES:] * UNITS], axis=1)
    return np.asarray(np.clip(np.rint(scaled), -_LIMIT, _LIMIT), np.int16)
