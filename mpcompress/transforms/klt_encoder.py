"""Features of one sample to symbols, in a closed loop: what is predicted is predicted from what the decoder will have.

    x (L, C) ──► minus means ──► far tokens aside ──► pyramid ──► root, prefix tokens, levels coarse to fine, far tokens
    each group of rows ──► minus the slope of the decoded low-pass ──► its KLT ──► quantiser ──► decoded values
    decoded patches ──► the filter, where the codec has one ──► what it would win
    further passes: x less what the filter added, so that symbols say what it does not know

The pyramid and the bases are orthonormal, so the error of the features is that of the coefficients. What codes is a
generator that stops at small groups for a product that several samples may share: see `klt_together`.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_context import Memory, new_memory
from mpcompress.transforms.klt_domain import bands_of
from mpcompress.transforms.klt_engine import Engine, Lists, split_all
from mpcompress.transforms.klt_far import fill, subtract_means
from mpcompress.transforms.klt_haar import merge
from mpcompress.transforms.klt_kernels import quantise_rows
from mpcompress.transforms.klt_limits import BANDS
from mpcompress.transforms.klt_pyramid import Plan
from mpcompress.transforms.klt_sample import Coding, Group, Observer, Product, Reconstruction, Sample, Symbols
from mpcompress.transforms.klt_statistics import Statistics, Steps
from mpcompress.transforms.klt_together import alone
from mpcompress.transforms.scratch import Scratch

__all__ = ["DEAD_ZONE", "NO_PASSES", "Encoder", "Passes"]

DEAD_ZONE = -1.0
"""A rate that turns the search off."""

_AIMED_RATE = 0.7  # of the rate: with the filter in view fewer symbols had best be 0, on held-out pictures
_LEAST_HELP = 0.25  # of what the filter adds: held-out features have .4 to 1 along what is missing, others below .1
_SHARED_ROWS = 8
_ROOT, _PREFIX, _LEVEL, _FAR = range(4)

FloatArray = NDArray[np.float32]


class Passes(NamedTuple):
    """How often to code a sample again: each time in view of what the filter, if it helps, would add to the last.

    With `priced`, and without a filter too, also in view of what the symbols of the last time cost those after them.
    """

    most: int
    priced: bool


NO_PASSES = Passes(0, priced=False)


class Encoder:
    """Quantises samples of one codec, one at a time; its buffers, `scratch` among them, are those of that sample."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.scratch = Scratch()
        self._memory: Memory = new_memory(0, 0)
        self._part = np.empty(engine.model.components, np.int32)
        self._lists: Lists | None = None
        self.bounds = np.array(bands_of(engine.model.components))

    def quantise(
        self,
        sample: Sample,
        steps: Steps,
        statistics: Statistics,
        rate: float,
        observe: Observer | None = None,
        passes: Passes = NO_PASSES,
    ) -> Symbols | None:
        """Symbols of a sample; None when a value is not finite or too large for the step."""
        return alone(self._engine.bases, self.quantising(sample, steps, statistics, rate, observe, passes))

    def quantising(
        self,
        sample: Sample,
        steps: Steps,
        statistics: Statistics,
        rate: float,
        observe: Observer | None = None,
        passes: Passes = NO_PASSES,
    ) -> Coding[Symbols | None]:
        """`quantise`, with products that others may share."""
        run = _Run(self, sample, steps, statistics, rate, observe)
        if not (yield from run.code()):
            return None
        for _ in range(passes.most):
            aim = run.change if run.is_helped() else None
            if aim is None and not passes.priced:
                break
            run = _Run(self, sample, steps, statistics, rate, None, run.prices() if passes.priced else None, aim)
            if not (yield from run.code()):
                return (yield from self.quantising(sample, steps, statistics, rate))
        return run.symbols()

    def reconstruct(
        self, sample: Sample, steps: Steps, statistics: Statistics, rate: float, aim: FloatArray | None = None
    ) -> Reconstruction | None:
        """A sample as a decoder has it, valid until the next one; None as of `quantise`.

        With `aim` (h, w, C), what a filter added to it before, it is coded as a further pass codes it.
        """
        run = _Run(self, sample, steps, statistics, rate, None, None, aim, whole=True)
        return run.reconstruction if alone(self._engine.bases, run.code()) else None

    def centred(self, x: FloatArray, height: int, width: int) -> tuple[FloatArray, FloatArray]:
        """Patches (height * width, C) less their means, valid until the next call or sample, and each one's energy."""
        grid = self.scratch.take("grid", height * width, x.shape[1])
        energy = np.empty(len(x), np.float32)
        subtract_means(x, self._engine.patch_mean(height, width), grid, energy)
        return grid, energy

    def _room(self, rows: int) -> tuple[Memory, Lists]:
        """Memory and lists for so many rows, from the last time when they are large enough."""
        components = self._engine.model.components
        if self._lists is None or len(self._memory[0]) < rows + 1:
            self._memory = new_memory(rows, components)
            size = rows * components
            begins = np.empty(rows + 2, np.int64)
            self._lists = np.empty(size, np.int32), np.empty(size, np.uint16), np.empty(size, np.int32), begins
        memory, lists = self._memory, self._lists
        if rows * components > _KEPT_ELEMENTS:
            self._lists = None
        memory[3].fill(0)
        return memory, lists


_KEPT_ELEMENTS = 1 << 22
_NO_PRICE = np.zeros((0, 0), np.float32)


class _Run:
    """The coding of one sample."""

    def __init__(
        self,
        encoder: Encoder,
        sample: Sample,
        steps: Steps,
        statistics: Statistics,
        rate: float,
        observe: Observer | None,
        price: FloatArray | None = None,
        aim: FloatArray | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._encoder, self._engine, self._scratch = encoder, encoder._engine, encoder.scratch
        self._sample, self._steps, self._statistics = sample, steps, statistics
        self._rate, self._observe = np.float32(rate if aim is None else _AIMED_RATE * rate), observe
        self._price = _NO_PRICE if price is None else price
        self._dead = self._engine.dead_zone(float(self._rate) if price is None else None)
        self._aim = aim
        self._plan = self._engine.plan(sample.prefix, sample.height, sample.width, sample.far.size)
        self._memory, self.lists = encoder._room(self._plan.rows)
        self._tokens = self._scratch.take("rows", self._plan.rows + 1, sample.x.shape[1])
        self._tokens[0] = 0
        self._filtered = self._engine.filter is not None and self._engine.filter.works(steps.patch)
        self._whole = whole or self._filtered
        self.reconstruction: Reconstruction | None = None
        self.change: FloatArray | None = None  # what the filter would add, (h, w, C)
        self.count = 0
        self._error = 0.0

    def symbols(self) -> Symbols:
        """What was coded, and what the filter would win: right after it was coded, as all its arrays are buffers."""
        index, classes, values, _ = self.lists
        n = self.count
        return Symbols(index[:n].copy(), classes[:n].copy(), values[:n].copy(), *self._left)

    def is_helped(self) -> bool:
        """Whether the filter knows such features: it adds to others what nobody lost. Right after it was coded."""
        if self.change is None:
            return False
        _, cross, power = self._left
        return cross > _LEAST_HELP * power

    @cached_property
    def _left(self) -> tuple[float, float, float]:
        """`error`, `cross` and `power` of `Symbols`."""
        if self.change is None:
            return max(self._error, 0.0), 0.0, 0.0
        assert self.reconstruction is not None
        error, missing = self._error, self._scratch.take("missing", *self.change.shape)
        np.subtract(self.reconstruction.centred, self.reconstruction.grid, out=missing)
        if self._aim is not None:
            error -= _energy(missing)
            missing += self._aim
            error += _energy(missing)
        return max(error, 0.0), float(np.vdot(missing, self.change)), _energy(self.change)

    def prices(self) -> FloatArray:
        """Of evidence; right after it was coded."""
        from mpcompress.transforms.klt_lookahead import price_evidence

        price = np.empty_like(self._memory[0], np.float32)
        plan, statistics, cost = self._plan, self._statistics, self._engine.model.cost
        index, classes, values, _ = self.lists
        n = self.count
        price_evidence(
            *(plan.kind, plan.neighbours, statistics.kernel, self._memory),
            *(index[:n], classes[:n], values[:n], cost, price),
        )
        return price

    def code(self) -> Coding[bool]:
        """Codes all rows; False when a value cannot be."""
        engine, plan = self._engine, self._plan
        grid, apart = self._centred()
        root, details = split_all(grid, plan, self._scratch)
        field = yield from self._group((_ROOT, 0), 1, root.reshape(1, -1), prefix=False)
        if field is None:
            return False
        self._decode(1, 2)
        low = self._tokens[1].reshape(1, 1, -1)
        head, coded = yield from self._prefix(field[1])
        if not coded:
            return False
        decoded = yield from self._levels(plan, low, details)
        if decoded is None:
            return False
        if self._whole:
            self.reconstruction = Reconstruction(grid, decoded, head)
        if self._filtered:
            assert engine.filter is not None
            # Far tokens' places count as they are on the grid.
            self.change = engine.filter.correction(decoded, head, self._steps.patch)
        if apart is None:
            return True
        return (yield from self._group((_FAR, 0), plan.rows - len(apart) + 1, apart, prefix=False)) is not None

    def _prefix(self, root: FloatArray) -> Coding[tuple[FloatArray | None, bool]]:
        """Codes the prefix tokens; the first as decoded less its mean, where it is needed, and whether all could be."""
        engine, sample = self._engine, self._sample
        heads = sample.x[: sample.prefix] - engine.head_mean(sample.prefix)
        decoded = None
        for number in range(sample.prefix):
            known = number < len(engine.predictors)
            predicted = engine.predictors[number](root) if known else np.float32(0)
            row = (heads[number] - predicted)[None]
            field = yield from self._group((_PREFIX, number), 2 + number, row, prefix=known)
            if field is None:
                return None, False
            if self._whole and known and number == 0:
                self._decode(2, 3)
                decoded = self._tokens[2] + predicted
        return decoded, True

    def _centred(self) -> tuple[FloatArray, FloatArray | None]:
        """The grid (h, w, C) less the means, without far tokens; and these, less theirs."""
        sample, engine = self._sample, self._engine
        patches = sample.x[sample.prefix :]
        centred = sample.centred
        if centred is None:
            centred, _ = self._encoder.centred(patches, sample.height, sample.width)
        grid = centred.reshape(sample.height, sample.width, patches.shape[1])
        apart = None
        if sample.far.size:
            fill(grid, sample.far)
            apart = patches[sample.far] - engine.model.far_mean
        if self._aim is not None:
            grid = np.subtract(grid, self._aim, out=self._scratch.take("aimed", *grid.shape))
        return grid, apart

    def _levels(self, plan: Plan, low: FloatArray, details: list[list[FloatArray]]) -> Coding[FloatArray | None]:
        """Codes the details; the grid as decoded, or that of the finest level's parents where nobody needs it."""
        engine = self._engine
        for level, parts in zip(plan.levels, details, strict=True):
            engine.take_slope(level, low, parts, -1)
            decoded: list[FloatArray] = []
            for orientation, part in enumerate(parts):
                first, end = level.first[orientation], level.first[orientation + 1]
                if first < end:
                    rows, turn = part.reshape(-1, part.shape[2]), (_LEVEL, orientation - 3 * level.depth)
                    if (yield from self._group(turn, first, rows, prefix=False)) is None:
                        return None
                if level.depth or self._whole:
                    self._decode(first, end)
                    decoded.append(self._tokens[first:end].reshape(part.shape))
            if level.depth or self._whole:
                engine.take_slope(level, low, decoded, 1)
                above = self._scratch.take(f"level {level.depth} decoded", level.h, level.w, low.shape[2])
                merge(low, decoded[0], decoded[1], decoded[2], level.y_low, level.x_low, above)
                low = above
        return low

    def _decode(self, first: int, end: int) -> None:
        """Rows `first` to `end` - 1 of the tokens, as the decoder has them."""
        self._engine.invert(self.lists, self._plan, first, end, self._steps, self._tokens)

    def _group(self, turn: tuple[int, int], first: int, rows: FloatArray, *, prefix: bool) -> Coding[FloatArray | None]:
        """Codes rows (n, C) of one kind; returns their field (n + 1, depth), or None when a value cannot be coded."""
        engine, statistics = self._engine, self._statistics
        kind = int(self._plan.kind[first])
        depth = statistics.last[kind]
        if len(rows) <= _SHARED_ROWS:
            x = yield Product(turn, engine.slots[kind], depth, rows)
        else:
            x = engine.bases.forward(engine.slots[kind], rows, depth)
        field = np.empty((len(rows) + 1, depth), np.float32)
        energies = np.zeros(BANDS + 1)
        begin = self.count
        self.count = quantise_rows(
            *(x, first, kind, self._plan.neighbours, statistics.known, *statistics.said, *self._memory),
            *(self._encoder._part, engine.model.cost, engine.model.centroid, *engine.feedback[kind]),
            *(
                self._steps.size(prefix=prefix),
                self._rate,
                self._dead,
                self._price,
                field,
                *self.lists,
                self._encoder.bounds,
                energies,
                begin,
            ),
        )
        if self.count < 0:
            return None
        *bands, error = energies.tolist()
        inside = sum(bands)
        energy = _energy(rows) if depth < rows.shape[1] else inside
        self._error += error + (energy - inside)
        if self._observe is not None:
            self._observe(Group(kind, first, x, field, energy, bands, begin, self.count))
        return field


def _energy(values: FloatArray) -> float:
    return float(np.vdot(values, values))
