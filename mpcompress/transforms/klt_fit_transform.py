"""The transform of family `klt` from calibration tensors: means, slopes, feedback, bases, predictors of prefix tokens.

1 means per position      2 slopes and feedback, least squares where components weigh by the bits they cost
3 covariances per kind of row ──► shrunk towards their level's, and that towards the pool ──► bases
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.transforms.klt_basis import LARGEST_GROUP, group_starts, orthonormal
from mpcompress.transforms.klt_engine import split_all
from mpcompress.transforms.klt_fit_basis import Covariances, Eigenbasis, blend, with_diagonal
from mpcompress.transforms.klt_fit_data import FitData, FitTensor
from mpcompress.transforms.klt_haar import predict
from mpcompress.transforms.klt_limits import MAX_DEPTH
from mpcompress.transforms.klt_pyramid import Level, Plan, kind_count, kind_of, make_plan
from mpcompress.transforms.scratch import Scratch

__all__ = ["Transform", "fit_transform"]

# A closed loop predicts from noisy neighbours: less than the open loop's optimum is right. .5 to .8 cost the same.
_CLOSED_LOOP = 0.7
_POOL_ROWS = 300  # the pool's covariance counts as so many rows of a level,
_LEVEL_ROWS = 2000  # and a level's as so many of each orientation
_ROOT_RIDGE = 0.06
_LEAST_FAR = 32
_WHITENED = 200
_PREDICTED = 600
_GROUPED_DEPTH = 6

FloatArray = NDArray[np.float32]
Double = NDArray[np.float64]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Transform:
    """Float and integer arrays of `KltModel`, and `expected`, the root of each component's variance (N, K).

    `sizes` (N,) is how many rows each kind had.
    """

    depth: int
    mean_grid: tuple[int, int]
    mean: NDArray[np.float16]
    far_mean: FloatArray
    slope: FloatArray
    feedback: FloatArray
    slot: NDArray[np.int16]
    basis: NDArray[np.int8]
    basis_group: NDArray[np.uint8]
    predictor: NDArray[np.int8]
    predictor_scale: FloatArray
    expected: Double
    sizes: Double


def fit_transform(data: FitData, step: float, progress: Progress | None = None) -> Transform:
    """Fits the transform for quantisation at about `step`."""
    return _Fit(data, step, progress).run()


class _Fit:
    def __init__(self, data: FitData, step: float, progress: Progress | None) -> None:
        self._data, self._step, self._progress = data, step, progress
        longest = max(max(data.grid(number)) for number in range(len(data)))
        most = MAX_DEPTH if data.channels <= LARGEST_GROUP else _GROUPED_DEPTH
        self.depth = min(math.ceil(math.log2(longest)) if longest > 1 else 0, most)
        self.kinds = kind_count(data.prefix, self.depth)
        self._scratch = Scratch()
        self._slope = np.zeros((self.depth, 2), np.float32)
        self._feedback = np.zeros((self.kinds, 2), np.float32)

    def run(self) -> Transform:
        self._means()
        if self.depth:
            white = self._whitening()
            self._fit_slope(white)
            self._fit_feedback(white)
        return self._bases()

    def _tell(self, done: int, total: int, stage: str) -> None:
        if self._progress is not None:
            self._progress(done, total, stage)

    def _means(self) -> None:
        """Mean of every position of a grid; of all positions of sequences."""
        data = self._data
        total: Double | None = None
        count = 0
        for number in range(len(data)):
            self._tell(number, len(data), "means")
            x = data[number].x.astype(np.float64)
            if data.token_res is None:
                x, count = (
                    np.concatenate([x[: data.prefix], x[data.prefix :].sum(0)[None]]),
                    count + len(x) - data.prefix,
                )
            total = x if total is None else total + x
        self._tell(len(data), len(data), "means")
        if total is None:
            raise InvalidInputError("no tensors to calibrate on", field="sources")
        weights = np.full(len(total), len(data), np.float64)
        if data.token_res is None:
            weights[-1] = count
        mean = total / weights[:, None]
        limit = float(np.finfo(np.float16).max)
        if np.abs(mean).max() > limit:
            raise InvalidInputError(f"mean features beyond +-{limit:g}: divide them by something", field="sources")
        self._mean = mean.astype(np.float16)
        self._mean_grid = data.token_res or (1, 1)
        self._heads = self._mean[: data.prefix].astype(np.float32)
        self._patches = self._mean[data.prefix :].astype(np.float32)

    def _pyramid(self, tensor: FitTensor) -> tuple[FloatArray, list[tuple[Level, FloatArray, list[FloatArray]]]]:
        """Root (C,), and of each level, coarse to fine, the low-pass that its details are predicted from."""
        patches = tensor.x[self._data.prefix :]
        grid = np.ascontiguousarray(patches - self._patches).reshape(tensor.height, tensor.width, -1)
        plan = self._plan(tensor)
        root, details = split_all(grid, plan, self._scratch)
        lows = [
            root,
            *(
                self._scratch.take(f"level {level.depth} low", level.ph, level.pw, grid.shape[2])
                for level in plan.levels[1:]
            ),
        ]
        return root.reshape(-1), list(zip(plan.levels, lows, details, strict=True))

    def _plan(self, tensor: FitTensor) -> Plan:
        return make_plan(self._data.prefix, tensor.height, tensor.width, self._data.prefix, self.depth)

    def _at(self, level: Level) -> int:
        return min(level.depth, self.depth - 1)

    def _whitening(self) -> list[list[FloatArray]]:
        """Per level and group of channels, what makes components weigh by the inverse of variance plus noise."""
        data = self._data
        covariances = Covariances(self.depth, data.channels)
        for tensor in data.tensors(data.some(_WHITENED)):
            for level, _, details in self._pyramid(tensor)[1]:
                for part in details:
                    if part.size:
                        covariances.add(self._at(level), part.reshape(-1, data.channels))
        covariances.finish()
        noise = self._step**2 / 4
        found = []
        for sums, rows in zip(covariances.sums, covariances.rows, strict=True):
            parts = []
            for part in sums:
                values, vectors = np.linalg.eigh(part / max(rows, 1))
                parts.append(np.ascontiguousarray(vectors / np.sqrt(np.maximum(values, 0) + noise), np.float32))
            found.append(parts)
        return found

    def _whiten(self, values: FloatArray, white: list[FloatArray]) -> FloatArray:
        starts = group_starts(self._data.channels)
        flat = values.reshape(-1, values.shape[-1])
        parts = [flat[:, a:b] @ part for a, b, part in zip(starts, starts[1:], white, strict=False)]
        return (parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)).reshape(values.shape)

    def _fit_slope(self, white: list[list[FloatArray]]) -> None:
        data = self._data
        products, squares = np.zeros((2, self.depth, 2))
        for tensor in data.tensors(data.some(_PREDICTED)):
            for level, low, details in self._pyramid(tensor)[1]:
                at = self._at(level)
                guess = [np.zeros_like(part) for part in details[:2]]
                one = np.float32(1)
                predict(low, level.norm, one, one, guess[0], guess[1], one)
                for orientation in range(2):
                    if details[orientation].size:
                        a, b = (
                            self._whiten(guess[orientation], white[at]),
                            self._whiten(details[orientation], white[at]),
                        )
                        products[at, orientation] += float(np.vdot(a, b))
                        squares[at, orientation] += float(np.vdot(a, a))
        best = _CLOSED_LOOP * products / np.maximum(squares, 1e-30)
        self._slope = np.clip(best, 0, 0.5).astype(np.float32)

    def _details(self, tensor: FitTensor) -> tuple[FloatArray, Iterator[tuple[Level, int, FloatArray]]]:
        """Root, and details less what the slope predicts."""
        root, levels = self._pyramid(tensor)
        return root, self._sloped(levels)

    def _sloped(
        self, levels: list[tuple[Level, FloatArray, list[FloatArray]]]
    ) -> Iterator[tuple[Level, int, FloatArray]]:
        for level, low, details in levels:
            across, down = self._slope[self._at(level)]
            predict(low, level.norm, across, down, details[0], details[1], np.float32(-1))
            for orientation, part in enumerate(details):
                if part.size:
                    yield level, orientation, part

    def _fit_feedback(self, white: list[list[FloatArray]]) -> None:
        data = self._data
        left_sides, right_sides = np.zeros((self.kinds, 2, 2)), np.zeros((self.kinds, 2))
        for tensor in data.tensors(data.some(_PREDICTED)):
            for level, orientation, part in self._details(tensor)[1]:
                if max(part.shape[:2]) < 2:
                    continue
                kind = kind_of(data.prefix, self._at(level), orientation)
                value = self._whiten(part, white[self._at(level)])
                left, up = _shifted(value)
                both = float(np.vdot(left, up))
                left_sides[kind] += [[float(np.vdot(left, left)), both], [both, float(np.vdot(up, up))]]
                right_sides[kind] += [float(np.vdot(left, value)), float(np.vdot(up, value))]
        for kind, (matrix, vector) in enumerate(zip(left_sides, right_sides, strict=True)):
            trace = float(np.trace(matrix))
            if trace > 0:
                found = _CLOSED_LOOP * np.linalg.solve(matrix + 0.02 * trace * np.eye(2), vector)
                self._feedback[kind] = found * min(1.0, 0.9 / max(float(np.abs(found).sum()), 1e-9))

    def _bases(self) -> Transform:
        data, prefix = self._data, self._data.prefix
        kinds, channels = self.kinds, data.channels
        far = kinds - 1
        covariances = Covariances(kinds, channels)
        tokens = Covariances(1, channels)
        heads = _HeadSums(prefix, channels)
        for number in range(len(data)):
            self._tell(number, len(data), "covariances")
            tensor = data[number]
            root, details = self._details(tensor)
            root = root.copy()
            covariances.add(0, root[None])
            heads.add(root, tensor.x[:prefix] - self._heads)
            tokens.add(0, tensor.x[prefix :: max(1, tensor.height * tensor.width // 16)] - self._patches.mean(0))
            for level, orientation, part in details:
                kind = kind_of(prefix, self._at(level), orientation)
                left, up = _shifted(part)
                a, b = self._feedback[kind]
                covariances.add(kind, (part - a * left - b * up).reshape(-1, channels))
        self._tell(len(data), len(data), "covariances")
        covariances.finish()
        tokens.finish()
        sums, rows = covariances.sums, covariances.rows
        levels = range(1 + prefix, far)
        counted = [0, *levels]
        pool_sums = [sum(parts[1:], parts[0].copy()) for parts in zip(*(sums[kind] for kind in counted), strict=True)]
        pool = with_diagonal(pool_sums, float(rows[counted].sum()))
        if not sum(float(np.trace(part)) for part in pool) > 0:
            raise InvalidInputError("the features are constant: there is nothing to calibrate", field="sources")
        found: dict[int, Eigenbasis] = {0: Eigenbasis.of(blend(sums[0], rows[0], pool, _POOL_ROWS))}
        predictors = heads.predictors()
        for p in range(prefix):
            found[1 + p] = Eigenbasis.of(blend(heads.left(p, predictors[p]), len(data), pool, _POOL_ROWS))
        slot = np.arange(kinds, dtype=np.int16)
        shared = channels > LARGEST_GROUP
        for d in range(self.depth):
            own = [kind_of(prefix, d, orientation) for orientation in range(3)]
            both = [sum(parts[1:], parts[0].copy()) for parts in zip(*(sums[kind] for kind in own), strict=True)]
            shape = blend(both, float(rows[own].sum()), pool, _POOL_ROWS)
            for kind in own:
                # Kinds without rows (sequences have one orientation) share the first's basis; all do when it is large.
                if kind > own[0] and (shared or not rows[kind]):
                    found[kind], slot[kind] = found[own[0]], slot[own[0]]
                else:
                    found[kind] = Eigenbasis.of(shape if shared else blend(sums[kind], rows[kind], shape, _LEVEL_ROWS))
        far_mean, found[far] = self._far(tokens, pool)
        used = np.unique(slot)
        sizes = rows.copy()
        sizes[far] = len(data.far) if len(data.far) >= _LEAST_FAR else 0
        predictor, scale = _quantised(predictors, found[0], group_starts(channels))
        return Transform(
            depth=self.depth,
            mean_grid=self._mean_grid,
            mean=self._mean,
            far_mean=far_mean,
            slope=self._slope,
            feedback=self._feedback,
            slot=np.searchsorted(used, slot).astype(np.int16),
            basis=np.stack([found[int(kind)].rows for kind in used]),
            basis_group=np.stack([found[int(kind)].group for kind in used]),
            predictor=predictor,
            predictor_scale=scale,
            expected=np.sqrt(np.stack([np.maximum(found[kind].variance, 1e-12) for kind in range(kinds)])),
            sizes=sizes,
        )

    def _far(self, tokens: Covariances, pool: list[NDArray[np.floating[Any]]]) -> tuple[FloatArray, Eigenbasis]:
        """Mean and basis of far tokens; when too few were seen, the patches' mean and the channels themselves.

        What is far in a new tensor is then far in few channels: a basis over all would smear it.
        """
        if len(self._data.far) < _LEAST_FAR:
            mean = self._patches.mean(0)
            variance = np.concatenate([np.diag(part) for part in tokens.sums[0]]) / max(float(tokens.rows[0]), 1)
            return mean, Eigenbasis.identity(np.maximum(variance.astype(np.float64), 1e-12))
        tokens_far = np.array(self._data.far)
        mean = tokens_far.mean(0)
        own = Covariances(1, self._data.channels)
        own.add(0, tokens_far - mean)
        own.finish()
        return mean, Eigenbasis.of(blend(own.sums[0], len(tokens_far), pool, _POOL_ROWS))


class _HeadSums:
    """Products of roots and prefix tokens, by groups of channels."""

    def __init__(self, prefix: int, channels: int) -> None:
        self._starts = group_starts(channels)
        sizes = [int(size) for size in np.diff(self._starts)]
        self._root = [np.zeros((size, size)) for size in sizes]
        self._cross = [[np.zeros((size, size)) for size in sizes] for _ in range(prefix)]
        self._own = [[np.zeros((size, size)) for size in sizes] for _ in range(prefix)]

    def add(self, root: FloatArray, heads: FloatArray) -> None:
        if not len(heads):
            return
        for group, (a, b) in enumerate(pairwise(self._starts)):
            part = root[a:b].astype(np.float64)
            self._root[group] += np.outer(part, part)
            for p, head in enumerate(heads):
                self._cross[p][group] += np.outer(part, head[a:b])
                self._own[p][group] += np.outer(head[a:b], head[a:b])

    def predictors(self) -> list[list[Double]]:
        """Per prefix token and group: (g, g) that takes a root to a token."""
        found = []
        for cross in self._cross:
            parts = []
            for root, product in zip(self._root, cross, strict=True):
                ridge = _ROOT_RIDGE * float(np.trace(root)) / len(root) + 1e-12
                parts.append(np.linalg.solve(root + ridge * np.eye(len(root)), product))
            found.append(parts)
        return found

    def left(self, p: int, predictor: list[Double]) -> list[NDArray[np.floating[Any]]]:
        """Sums of products of what the predictor leaves of token p."""
        found: list[NDArray[np.floating[Any]]] = []
        for root, cross, own, w in zip(self._root, self._cross[p], self._own[p], predictor, strict=True):
            product = w.T @ cross
            found.append(own - product - product.T + w.T @ root @ w)
        return found


def _shifted(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values (h, w, C) of the nodes to the left and above; 0 where there is none."""
    left, up = np.zeros_like(values), np.zeros_like(values)
    left[:, 1:] = values[:, :-1]
    up[1:] = values[:-1]
    return left, up


def _quantised(
    predictors: list[list[Double]], root: Eigenbasis, starts: list[int]
) -> tuple[NDArray[np.int8], FloatArray]:
    """Predictors in the root's components: int8 (P, K, G) and their scales (P, K)."""
    K, G = root.rows.shape
    rows, scales = np.zeros((len(predictors), K, G), np.int8), np.zeros((len(predictors), K), np.float32)
    for p, parts in enumerate(predictors):
        for group, part in enumerate(parts):
            members = np.flatnonzero(root.group == group)
            width = starts[group + 1] - starts[group]
            taken = orthonormal(root.rows[members, :width]) @ part
            largest = np.maximum(np.abs(taken).max(axis=1), 1e-12)
            rows[p, members, :width] = np.rint(taken / largest[:, None] * 127)
            scales[p, members] = np.minimum(largest / 127, 1)
    return rows, scales
