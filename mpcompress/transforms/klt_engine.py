"""What encoder and decoder of family `klt` share: a codec's arrays ready for use, and the pyramid of one sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_basis import Bases, Predictor, group_starts
from mpcompress.transforms.klt_context import CLASSES
from mpcompress.transforms.klt_filter import Filter
from mpcompress.transforms.klt_haar import predict, split
from mpcompress.transforms.klt_inverse import invert_rows
from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_pyramid import Level, Plan, make_plan, with_far
from mpcompress.transforms.klt_statistics import Steps
from mpcompress.transforms.scratch import Scratch

__all__ = ["Engine", "split_all"]

FloatArray = NDArray[np.float32]
Lists = tuple[NDArray[np.int32], NDArray[np.uint16], NDArray[np.int32], NDArray[np.int64]]
"""Index, classes and values of symbols, and where those of each row begin."""


class Engine:
    """Float32 forms of one codec's arrays, and what follows from them; any thread may use it."""

    def __init__(self, model: KltModel) -> None:
        self.model = model
        starts = group_starts(model.channels)
        self.bases = Bases(model.basis, model.basis_group, starts)
        self.slots = [int(slot) for slot in model.slot]
        self._inverse = (
            *(model.slot.astype(np.int32), self.bases.rows, self.bases.place, self.bases.group, self.bases.starts),
        )
        root_group = model.basis_group[model.slot[0]]
        self.predictors = [
            Predictor(rows, scale, root_group, starts)
            for rows, scale in zip(model.predictor, model.predictor_scale, strict=True)
        ]
        self.filter = None if model.filter is None else Filter(model.filter)
        self.feedback = [(np.float32(left), np.float32(up)) for left, up in model.feedback]
        slopes = [(np.float32(across), np.float32(down)) for across, down in model.slope]
        self._slopes = slopes or [(np.float32(0), np.float32(0))]
        self._mean = model.mean.astype(np.float32)
        self._dead: dict[float, FloatArray] = {}

    def plan(self, prefix: int, height: int, width: int, far: int) -> Plan:
        """Rows of a sample with `far` far tokens."""
        known, depth = self.model.prefix_tokens, self.model.depth
        return with_far(make_plan(prefix, height, width, known, depth), far, known, depth)

    def head_mean(self, prefix: int) -> FloatArray:
        """(prefix, C): means of the prefix tokens; of those that the codec does not know, that of far tokens."""
        heads = self._mean[: min(prefix, self.model.prefix_tokens)]
        if len(heads) == prefix:
            return heads
        unknown = np.broadcast_to(self.model.far_mean, (prefix - len(heads), self.model.channels))
        return np.concatenate([heads, unknown])

    def patch_mean(self, height: int, width: int) -> FloatArray:
        """(height * width, C), or (1, C) for all: each token of another grid takes the nearest's mean."""
        means, (h, w) = self._mean[self.model.prefix_tokens :], self.model.mean_grid
        if (height, width) == (h, w) or (h, w) == (1, 1):
            return means
        rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
        return np.asarray(means.reshape(h, w, -1)[rows][:, columns].reshape(height * width, -1))

    def dead_zone(self, rate: float | None) -> FloatArray:
        """(CLASSES,) in steps: smaller ones are certainly 0 at this rate; None where later symbols have a say, too."""
        if rate is None:
            return _NEAREST
        found = self._dead.get(rate)
        if found is None:
            found = self._dead[rate] = _dead_zone(self.model, rate)
        return found

    def slope(self, level: Level) -> tuple[np.float32, np.float32]:
        """Of a level: across and down."""
        return self._slopes[min(level.depth, len(self._slopes) - 1)]

    def invert(self, symbols: Lists, plan: Plan, first: int, end: int, steps: Steps, tokens: FloatArray) -> None:
        """Rows `first` to `end` - 1 of tokens (rows + 1, C) from their symbols, see `klt_inverse`."""
        invert_rows(
            *(*symbols, first, end, plan.kind, plan.neighbours, self.model.feedback, self.model.centroid),
            *(steps.size(prefix=False), steps.size(prefix=True), self.model.prefix_tokens, *self._inverse, tokens),
        )

    def take_slope(self, level: Level, low: FloatArray, details: list[FloatArray], sign: int) -> None:
        """Adds (1) or subtracts (-1), in place, what the low-pass says about the first two details."""
        across, down = self.slope(level)
        if across or down:
            predict(low, level.norm, across, down, details[0], details[1], np.float32(sign))


def split_all(grid: FloatArray, plan: Plan, scratch: Scratch) -> tuple[FloatArray, list[list[FloatArray]]]:
    """(h, w, C) to the root (1, 1, C) and the details of each level, coarse to fine. In buffers of `scratch`."""
    low, channels = grid, grid.shape[2]
    found = []
    for level in reversed(plan.levels):
        name = f"level {level.depth}"
        below = scratch.take(f"{name} low", level.ph, level.pw, channels)
        details = [scratch.take(f"{name} {o}", *level.shape(o), channels) for o in range(3)]
        split(low, level.y_low, level.x_low, below, *details)
        found.append(details)
        low = below
    return low, found[::-1]


_NEAREST = np.full(CLASSES, 0.5, np.float32)


def _dead_zone(model: KltModel, rate: float) -> FloatArray:
    """A little less than where 1 beats 0: where (size - centroid)^2 + rate * (bits of 1 - bits of 0) < size^2.

    From 1.5 on 2 may beat 0 before 1 does.
    """
    if rate < 0:
        return np.full(CLASSES, 0.599, np.float32)
    one = np.maximum(model.centroid[:, 1].astype(np.float64), 0.01)
    zone = (one**2 + rate * (model.cost[:, 1].astype(np.float64) - model.cost[:, 0])) / (2 * one)
    return np.asarray(np.clip(0.9999 * zone, 0.5, 1.5), np.float32)
