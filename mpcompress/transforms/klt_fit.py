"""Fits a `KltModel` to feature tensors: floats and histograms live here, and only here.

transform ──► base scales, coding at the middle step ──► context weights, from observed symbols at several steps
          ──► tables and centroids, coding three times with what the last time gave
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import QpRange
from mpcompress.errors import InvalidInputError
from mpcompress.transforms.klt_context import UNITS, new_memory
from mpcompress.transforms.klt_domain import Domain
from mpcompress.transforms.klt_encoder import DEAD_ZONE, Encoder
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_fit_data import FitData, FitTensor
from mpcompress.transforms.klt_fit_tables import Histogram, fit_centroid, fit_evidence, fit_tables
from mpcompress.transforms.klt_fit_transform import Transform, fit_transform
from mpcompress.transforms.klt_fit_weights import OBSERVED, Weights, fit_weights, observe_rows
from mpcompress.transforms.klt_limits import BANDS
from mpcompress.transforms.klt_model import SCALE_OF_DEVIATION, KltModel
from mpcompress.transforms.klt_pyramid import kind_count
from mpcompress.transforms.klt_sample import Group, Sample, Symbols
from mpcompress.transforms.klt_statistics import StatisticsCache, Steps

__all__ = ["QP", "fit_model"]

QP = QpRange(minimum=0, maximum=384, default=192)

_CUTOFF = -7 * UNITS // 2
_RATE = 0.09
_DEFAULT_STEP = 1.35  # step at the default qp over the features' deviation from their means
_STEPS = (0.2, 0.5, 1.1, 2.4)  # steps that contexts and tables are fitted at, over the same
_MIDDLE = 2
_BASE_TENSORS = 750
_CONTEXT_TENSORS = 250
_CONTEXT_TOKENS = 250 * 257
_OBSERVED_ONE_IN = 17
_MOST_OBSERVED = 8_000_000
_MASSIVE = 100.0  # times the channels' median variance
_LOWEST = -40 * UNITS
_FAR_HEADROOM = 3 * UNITS  # far tokens that calibration never saw: all their channels are worth a look


Progress = Callable[[int, int, str], None]


def fit_model(
    data: FitData, *, codec_id: str, description: str, prefix_qp_offset_eighths: int, progress: Progress | None = None
) -> KltModel:
    """Fits a codec. Raises InvalidInputError for tensors that hold nothing to fit."""
    return _Fit(data, codec_id, description, prefix_qp_offset_eighths, progress).run()


class _Fit:
    def __init__(
        self, data: FitData, codec_id: str, description: str, prefix_offset: int, progress: Progress | None
    ) -> None:
        self._data, self._progress = data, progress
        self._id, self._description, self._prefix_offset = codec_id, description, prefix_offset
        self._deviation = self._spread()
        self._lsteps = [round(UNITS * float(np.log2(ratio * self._deviation))) for ratio in _STEPS]

    def _spread(self) -> float:
        """Root mean square of the features about their mean token, massive channels counted as large ones.

        It sets the step: a channel of +-500 must not make the others' too coarse at every qp.
        """
        data, total, squares, count = self._data, 0.0, 0.0, 0
        for tensor in data.tensors(data.some(64)):
            patches = tensor.x[data.prefix :].astype(np.float64)
            total, squares, count = total + patches.sum(0), squares + np.square(patches).sum(0), count + len(patches)
        channels = squares / count - np.square(total / count)
        median = float(np.median(channels))
        variance = float((np.minimum(channels, _MASSIVE * median) if median > 0 else channels).mean())
        floor = 1e-12 * float(np.square(total / count).max())
        if not variance > max(floor, 1e-24):
            raise InvalidInputError("the features are constant: there is nothing to calibrate", field="sources")
        return float(variance**0.5)

    def run(self) -> KltModel:
        middle = self._lsteps[_MIDDLE]
        transform = fit_transform(self._data, 2.0 ** (middle / UNITS), self._progress)
        model = self._draft(transform)
        base, energy = self._scales(model, transform)
        model = replace(model, base=base, energy=energy)
        numbers = self._data.some(self._context_tensors())
        model = self._with(model, self._weights(model, numbers))
        for effort in (DEAD_ZONE, _RATE, _RATE):
            histogram = self._histogram(model, numbers, effort)
            model = replace(model, tables=fit_tables(histogram, _CUTOFF), centroid=fit_centroid(histogram))
        return model

    def _context_tensors(self) -> int:
        """So many that their tokens are as many as those of 250 tensors of a ViT; at least 16."""
        tokens = np.mean([np.prod(self._data.grid(number)) for number in range(len(self._data))])
        return int(np.clip(_CONTEXT_TOKENS / tokens, 16, 4 * _CONTEXT_TENSORS))

    def _tell(self, done: int, total: int, stage: str) -> None:
        if self._progress is not None:
            self._progress(done, total, stage)

    def _draft(self, transform: Transform) -> KltModel:
        """The transform, with scales so large that everything is coded, and no contexts."""
        data, kinds = self._data, kind_count(self._data.prefix, transform.depth)
        base = np.full((kinds, data.channels), self._lsteps[_MIDDLE] + 3 * UNITS, np.int16)
        base[1 : 1 + data.prefix] += self._prefix_offset
        evidence, worth = fit_evidence(_CUTOFF)
        none, weights = Histogram.empty(), Weights.none(kinds)
        return KltModel(
            id=self._id,
            description=self._description,
            token_res=data.token_res,
            mean_grid=transform.mean_grid,
            base_log2=round(UNITS * float(np.log2(_DEFAULT_STEP * self._deviation))) - QP.default,
            cutoff=_CUTOFF,
            prefix_qp_offset_eighths=self._prefix_offset,
            qp=QP,
            rate=_RATE,
            token_energy=min(data.token_energy, 1e30),
            domain_typical=1.0,
            domain_bound=1e9,
            mean=transform.mean,
            far_mean=transform.far_mean,
            slope=transform.slope,
            feedback=transform.feedback,
            slot=transform.slot,
            basis=transform.basis,
            basis_group=transform.basis_group,
            predictor=transform.predictor,
            predictor_scale=transform.predictor_scale,
            base=base,
            weight_kind=weights.kind,
            weight_level=weights.level,
            weight_component=weights.component,
            evidence=evidence,
            worth=worth,
            centroid=fit_centroid(none),
            energy=np.zeros((kinds, BANDS), np.float32),
            points=np.zeros((0, 3), np.float32),
            tables=fit_tables(none, _CUTOFF),
        )

    def _scales(self, model: KltModel, transform: Transform) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
        """E|x| in the closed loop at the middle step, and energies."""
        totals, rows = np.zeros(model.base.shape), np.zeros(model.kinds)
        domain = Domain(model)
        runner = _Runner(model)

        def observe(group: Group) -> None:
            left = _prediction_left(model, runner, group)
            totals[group.kind] += np.abs(left).sum(0)
            rows[group.kind] += len(left)
            domain(group)

        numbers = self._data.some(_BASE_TENSORS)
        for done, tensor in enumerate(self._data.tensors(numbers)):
            self._tell(done, len(numbers), "scales")
            runner.code(tensor, self._data.prefix, self._lsteps[_MIDDLE], DEAD_ZONE, observe)
        self._tell(len(numbers), len(numbers), "scales")
        # A basis fits its own few vectors too well: what it leaves of others is nearer to the blended covariance.
        expected = SCALE_OF_DEVIATION * transform.expected
        n, weight = rows[:, None], model.channels
        seen = totals / np.maximum(n, 1)
        size = np.sqrt((n * seen**2 + weight * expected**2) / (n + weight))
        base = np.rint(UNITS * np.log2(np.maximum(size, 2.0**-40)))
        if not transform.sizes[-1]:
            base[-1] += _FAR_HEADROOM
        self._fill_unseen(base, rows)
        energy = domain.energy
        return np.clip(base, _LOWEST, 8000).astype(np.int16), energy.astype(np.float32)

    def _fill_unseen(self, base: NDArray[np.float64], rows: NDArray[np.float64]) -> None:
        """Kinds of sequences have one orientation: the others take its scales."""
        first = 1 + self._data.prefix
        for kind in range(first, len(base) - 1):
            origin = kind - (kind - first) % 3
            if not rows[kind] and rows[origin]:
                base[kind] = base[origin]

    def _weights(self, model: KltModel, numbers: list[int]) -> Weights:
        runner = _Runner(model)
        found: list[NDArray[np.int16]] = []
        steps: list[NDArray[np.int64]] = []
        room = _MOST_OBSERVED
        for lstep in self._lsteps:
            for done, tensor in enumerate(self._data.tensors(numbers)):
                self._tell(done, len(numbers), "contexts")
                seen = runner.observe(tensor, self._data.prefix, lstep, seed=done * 7 + len(steps))
                if len(seen) <= room:
                    found.append(seen.astype(np.int16))
                    steps.append(np.full(len(seen), lstep))
                    room -= len(seen)
        self._tell(len(numbers), len(numbers), "contexts")
        return fit_weights(model, np.concatenate(found).astype(np.int32), np.concatenate(steps))

    def _with(self, model: KltModel, weights: Weights) -> KltModel:
        """The model with context weights; kinds without rows take those of their level's first."""
        first = 1 + self._data.prefix
        kind_weights = weights.kind.copy()
        for kind in range(first, model.kinds - 1):
            origin = kind - (kind - first) % 3
            if not kind_weights[kind].any():
                kind_weights[kind] = kind_weights[origin]
        if not kind_weights[-1].any() and model.depth:
            kind_weights[-1] = kind_weights[first]
        return replace(model, weight_kind=kind_weights, weight_level=weights.level, weight_component=weights.component)

    def _histogram(self, model: KltModel, numbers: Iterable[int], rate: float) -> Histogram:
        runner, histogram = _Runner(model), Histogram.empty()
        numbers = list(numbers)
        for lstep in self._lsteps:
            for done, tensor in enumerate(self._data.tensors(numbers)):
                self._tell(done, len(numbers), "tables")
                groups: list[Group] = []
                symbols = runner.code(tensor, self._data.prefix, lstep, rate, groups.append)
                for group in groups:
                    left = _prediction_left(model, runner, group)
                    part = slice(group.begin, group.end)
                    index = symbols.index[part] - group.first * model.components
                    row, k = np.divmod(index, model.components)
                    head = 1 <= group.kind < 1 + model.prefix_tokens
                    step = 2.0 ** ((lstep + (self._prefix_offset if head else 0)) / UNITS)
                    histogram.add(symbols.classes[part], symbols.values[part], left[row, k] / step)
        self._tell(len(numbers), len(numbers), "tables")
        return histogram


class _Runner:
    """Codes calibration tensors with a draft."""

    def __init__(self, model: KltModel) -> None:
        self.model = model
        self.engine = Engine(model)
        self._encoder = Encoder(self.engine)
        self._statistics = StatisticsCache(model)
        self._none = np.zeros(0, np.int64)
        self.plan = self.engine.plan(0, 1, 1, 0)

    def code(
        self, tensor: FitTensor, prefix: int, lstep: int, rate: float, observe: Callable[[Group], None] | None = None
    ) -> Symbols:
        """Symbols of a tensor at a log step."""
        steps = Steps(lstep, self.model.prefix_qp_offset_eighths, 0)
        self.plan = self.engine.plan(prefix, tensor.height, tensor.width, 0)
        sample = Sample(tensor.x, prefix, tensor.height, tensor.width, self._none)
        symbols = self._encoder.quantise(sample, steps, self._statistics.at(steps), rate, observe)
        if symbols is None:
            raise InvalidInputError("a value is too large beside the others", field="sources")
        return symbols

    def observe(self, tensor: FitTensor, prefix: int, lstep: int, seed: int) -> NDArray[np.int32]:
        """Observations (n, OBSERVED) of a tensor coded at a log step without search."""
        symbols = self.code(tensor, prefix, lstep, DEAD_ZONE)
        components = self.model.components
        dense = np.zeros((self.plan.rows + 1) * components, np.int32)
        dense[symbols.index] = symbols.values
        out = np.empty((dense.size // _OBSERVED_ONE_IN * 2 + 64, OBSERVED), np.int32)
        steps = Steps(lstep, self.model.prefix_qp_offset_eighths, 0)
        count = observe_rows(
            *(dense.reshape(-1, components), self.plan.kind, self.plan.neighbours),
            *(self._statistics.at(steps).kernel, new_memory(self.plan.rows, components), seed, _OBSERVED_ONE_IN, out),
        )
        return np.asarray(out[:count])


def _prediction_left(model: KltModel, runner: _Runner, group: Group) -> NDArray[np.float32]:
    """(n, depth) coefficients less what their left and upper neighbours predict: what the quantiser saw."""
    left, up = runner.engine.feedback[group.kind]
    if not left and not up:
        return group.x
    rows = runner.plan.neighbours[group.first : group.first + len(group.x)]
    near = [np.maximum(rows[:, slot] - group.first + 1, 0) for slot in range(2)]
    return np.asarray(group.x - left * group.field[near[0]] - up * group.field[near[1]])
