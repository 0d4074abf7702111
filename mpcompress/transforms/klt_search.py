"""Choosing how to code an item: its far tokens, its gain, and the qp that reaches a target.

qp given        one trial; features unlike the calibration set get a second with the gain that fits them
target given    the codec's expected points say where to begin; a trial corrects the guess, the next confirms it
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import CodingParams, QpRange
from mpcompress.entropy.rans import encode
from mpcompress.errors import OutOfRangeError
from mpcompress.transforms.klt_context import UNITS
from mpcompress.transforms.klt_domain import Domain
from mpcompress.transforms.klt_encoder import DEAD_ZONE, NO_PASSES, Encoder, Passes
from mpcompress.transforms.klt_far import find_far
from mpcompress.transforms.klt_filter import FULL_STRENGTH
from mpcompress.transforms.klt_limits import MAX_GAIN
from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_report import unit_overhead_bytes
from mpcompress.transforms.klt_sample import Coding, Sample, Symbols
from mpcompress.transforms.klt_state import STRENGTHS, KltState, effort_of
from mpcompress.transforms.klt_statistics import StatisticsCache, Steps

__all__ = ["PASSES", "Item", "Trial", "search"]

_MAX_TRIALS = 10
_CLOSE = 0.025  # of the target, relative: stop there
_REACHED = 0.03
PASSES = (NO_PASSES, Passes(1, priced=False), Passes(2, priced=True))
"""By effort. In view of a filter the first pass more saves 8 % of the bits, the second 1 %, and prices 1 %."""

_WORTH_SAYING = 0.005  # of the error
_TOO_LOUD = 0.16  # mean squared error in squared steps: more than quantising costs, so too much was not coded

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is to be coded, x float32 (samples, tokens, C), and with what.

    `centred` are the patches of the only sample less their means, where the encoder has just computed them.
    """

    model: KltModel
    x: FloatArray
    params: CodingParams
    encoder: Encoder
    statistics: StatisticsCache
    centred: FloatArray | None = None

    @cached_property
    def energy(self) -> float:
        """Sum of squares."""
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.vdot(self.x, self.x))

    @cached_property
    def variance(self) -> float:
        """Of all elements; in float32 sums where that is exact enough."""
        with np.errstate(over="ignore", invalid="ignore"):
            rows = self.x.reshape(-1, self.x.shape[-1])
            # As a product: several times as fast as numpy adds elements.
            mean = float((np.ones(len(rows), np.float32) @ rows).sum()) / rows.size
            square = self.energy / rows.size
        variance = square - mean**2
        if not math.isfinite(variance) or variance < 0.01 * square:
            return float(np.var(self.x, dtype=np.float64))
        return variance


@dataclass(frozen=True, kw_only=True)
class Trial:
    """An item coded at one state.

    `error` is the sum of squared errors, `nmse` None for a constant item; `stream` is there when a target needed its
    size.
    """

    state: KltState
    symbols: tuple[Symbols, ...]
    error: float
    nmse: float | None
    distance: float | None
    domain_gain: int
    stream: bytes = b""
    target_reached: bool | None = None

    def encode(self, model: KltModel) -> bytes:
        """The stream."""
        if len(self.symbols) == 1:
            return encode(self.symbols[0].values, self.symbols[0].classes, model.tables, model.ending)
        values = np.concatenate([part.values for part in self.symbols])
        classes = np.concatenate([part.classes for part in self.symbols])
        return encode(values, classes, model.tables, model.ending)


def search(item: Item) -> Coding[Trial]:
    """The trial to send.

    Raises:
        OutOfRangeError: a value too large for the step, or, when the params ask for it, a target out of reach.
    """
    params = item.params
    first = KltState.of(params, item.model.qp.default if params.qp_eighths is None else params.qp_eighths)
    far, centred = _far_tokens(item, first)
    if far:
        first = replace(first, far=far)
    elif len(item.x) == 1:
        item = replace(item, centred=centred)
    if params.target_bpfp is not None or params.target_nmse is not None:
        return (yield from _reach(item, first))
    return (yield from _with_gain(item, (yield from _trial(item, first))))


def _far_tokens(item: Item, state: KltState) -> tuple[tuple[int, ...], FloatArray | None]:
    """Of all samples; and the last sample's patches less their means."""
    patches = state.height * state.width
    found: list[int] = []
    centred = None
    for number, sample in enumerate(item.x):
        centred, energy = item.encoder.centred(sample[state.prefix :], state.height, state.width)
        found += (find_far(energy, item.model.token_energy) + number * patches).tolist()
    return tuple(found), centred


def _trial(item: Item, state: KltState) -> Coding[Trial]:
    steps = Steps.of(item.model, state.qp_eighths, state.prefix_offset_eighths, state.gain_eighths)
    statistics = item.statistics.at(steps)
    effort = effort_of(item.params)
    rate = item.model.rate if effort else DEAD_ZONE
    domain = Domain(item.model)
    found = []
    for number, x in enumerate(item.x):
        sample = Sample(x, state.prefix, state.height, state.width, state.far_of(number), item.centred)
        symbols = yield from item.encoder.quantising(sample, steps, statistics, rate, domain, PASSES[effort])
        if symbols is None:
            raise _too_large(item.x)
        found.append(symbols)
    strength, error = _strength(found)
    nmse = error / item.x.size / item.variance if item.variance > 0 else None
    distance, domain_gain = domain.summary()
    return Trial(
        state=replace(state, filter_strength=strength),
        symbols=tuple(found),
        error=error,
        nmse=nmse,
        distance=distance,
        domain_gain=domain_gain,
    )


def _strength(found: list[Symbols]) -> tuple[int, float]:
    """Of the filter, in eighths, and the error that is left: full, unless another is worth the byte that says so."""
    error, cross, power = (sum(getattr(part, name) for part in found) for name in ("error", "cross", "power"))

    def left(strength: int) -> float:
        share = strength / FULL_STRENGTH
        return max(float(error - share * (2 * cross - share * power)), 0.0)

    low, high = STRENGTHS
    best = round(FULL_STRENGTH * cross / power) if power > 0 else FULL_STRENGTH
    best = min(max(best, FULL_STRENGTH + low), FULL_STRENGTH + high)
    strength = best if left(FULL_STRENGTH) - left(best) > _WORTH_SAYING * error else FULL_STRENGTH
    return strength, left(strength)


def _with_gain(item: Item, trial: Trial) -> Coding[Trial]:
    """Raises the gain, one trial each, while what is not coded costs more than quantising."""
    step = float(Steps.of(item.model, trial.state.qp_eighths, 0, 0).size(prefix=False))
    loud = _TOO_LOUD * step**2 * item.x.size
    while trial.error > loud + 1e-5 * item.energy and trial.state.gain_eighths < MAX_GAIN:
        gain = max(trial.state.gain_eighths + UNITS, min(trial.domain_gain, MAX_GAIN))
        trial = yield from _trial(item, replace(trial.state, gain_eighths=min(gain, MAX_GAIN)))
    return trial


def _reach(item: Item, first: KltState) -> Coding[Trial]:
    """A search in the logarithms: by the codec's expected points, and between tried ones as soon as it is there."""
    params, model = item.params, item.model
    by_rate = params.target_bpfp is not None
    target = params.target_bpfp if params.target_bpfp is not None else params.target_nmse
    assert target is not None
    column = 1 if by_rate else 2
    goal = math.log(target)
    qps, values = model.points[:, 0].astype(np.float64), np.log(np.maximum(model.points[:, column], 1e-9))
    shift = 0.0
    best: tuple[float, Trial] | None = None
    tried: dict[int, float] = {}
    for _ in range(_MAX_TRIALS):
        if tried and min(tried.values()) <= goal < max(tried.values()):
            qp = _between(tried, goal, model.qp)
        else:
            # Bits fall and errors rise with qp: what was tried bounds the rest.
            low, high = model.qp.minimum, model.qp.maximum
            if tried and (min(tried.values()) > goal) == by_rate:
                low = max(tried) + 1
            elif tried:
                high = min(tried) - 1
            qp = _guess(qps, values + shift, goal, low, high) if low <= high else None
        if qp is None:
            break
        trial = yield from _with_gain(item, (yield from _trial(item, replace(first, qp_eighths=qp))))
        if by_rate:
            stream = trial.encode(model)
            trial = replace(trial, stream=stream)
            value = math.log(8 * (len(stream) + unit_overhead_bytes(model.id)) / item.x.size)
        else:
            value = math.log(max(trial.nmse or 0.0, 1e-30))
        tried[qp] = value
        miss = abs(value - goal)
        if best is None or miss < best[0]:
            best = miss, trial
        if miss < _CLOSE:
            break
        shift += value - float(np.interp(qp, qps, values + shift))
    assert best is not None
    reached = best[0] <= math.log1p(_REACHED)
    if not reached and params.target_policy == "error":
        name = "target_bpfp" if by_rate else "target_nmse"
        said = f"{name} {target:g} is out of reach: the nearest is {math.exp(tried[best[1].state.qp_eighths]):.4g}"
        raise OutOfRangeError(f"{said} at qp {best[1].state.qp_eighths / 8:g}", field=f"params.{name}")
    return replace(best[1], target_reached=reached)


def _guess(qps: NDArray[np.float64], values: NDArray[np.float64], goal: float, low: float, high: float) -> int:
    """Where the curve meets the goal, between low and high; its ends go on straight."""
    order = np.argsort(values)
    x, y = values[order], qps[order]
    if goal < x[0] or goal > x[-1]:
        i, j = (0, 1) if goal < x[0] else (-1, -2)
        slope = (y[j] - y[i]) / min(x[j] - x[i], -1e-6) if x[j] < x[i] else (y[j] - y[i]) / max(x[j] - x[i], 1e-6)
        found = y[i] + slope * (goal - x[i])
    else:
        found = float(np.interp(goal, x, y))
    return round(float(min(max(found, low), high)))


def _between(tried: dict[int, float], goal: float, limits: QpRange) -> int | None:
    """The qp where the line between the nearest values below and above meets the goal.

    When it was tried, the nearest to the best that was not: of a few symbols, bits and errors rise and fall from qp to
    qp. None when all were.
    """
    a = max((qp for qp, value in tried.items() if value <= goal), key=tried.__getitem__)
    b = min((qp for qp, value in tried.items() if value > goal), key=tried.__getitem__)
    qp = round(a + (b - a) * (goal - tried[a]) / (tried[b] - tried[a]))
    if qp not in tried:
        return qp
    best = min(tried, key=lambda qp: abs(tried[qp] - goal))
    untried = set(range(limits.minimum, limits.maximum + 1)) - tried.keys()
    return min(untried, key=lambda qp: abs(qp - best), default=None)


def _too_large(x: FloatArray) -> OutOfRangeError:
    """Names the largest element."""
    magnitude = np.abs(x)
    where = tuple(int(i) for i in np.unravel_index(int(np.argmax(magnitude)), x.shape))
    shown = list(where if x.shape[0] > 1 else where[1:])
    return OutOfRangeError(f"h{shown} is {float(x[where]):g}: too large for this qp", field="tensors[0]")
