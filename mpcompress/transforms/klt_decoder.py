"""Streams of family `klt` to symbols, and symbols to features.

The first half is integers; what it allocates is bounded by the stream and by the tensor that the unit claims, whose
pages are touched only as far as the stream goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpcompress.entropy.ending import MAX_TAIL, SHORT, is_closed, open_stream
from mpcompress.entropy.tables import CDF_BEGIN, CdfTables
from mpcompress.errors import CorruptBitstreamError
from mpcompress.transforms.klt_context import MAGNITUDES, Memory, new_memory
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_filter import FULL_STRENGTH
from mpcompress.transforms.klt_haar import merge
from mpcompress.transforms.klt_kernels import decode_rows
from mpcompress.transforms.klt_pyramid import Plan
from mpcompress.transforms.klt_statistics import Statistics, Steps
from mpcompress.transforms.scratch import Scratch

__all__ = ["Decoded", "StreamReader", "Synthesis"]

_KEPT_ELEMENTS = 1 << 22
_ROUNDING_SYMBOLS = 64  # a few symbols of half a bit hide in the coder's first state

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class Decoded:
    """Symbols of one sample that are not 0: see `klt_kernels.decode_rows`."""

    plan: Plan
    index: NDArray[np.int32]
    classes: NDArray[np.uint16]
    values: NDArray[np.int32]
    begins: NDArray[np.int64]
    depths: NDArray[np.int32]


class StreamReader:
    """Decodes the samples of streams of one codec, one stream at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._memory: Memory = new_memory(0, 0)
        self._part = np.empty(engine.model.components, np.int32)
        self._zeros = zero_intervals(engine.model.tables)

    def read(self, stream: bytes, plans: list[Plan], statistics: Statistics) -> list[Decoded]:
        """Symbols of the samples of a stream. Raises CorruptBitstreamError when no encoder writes it."""
        data = np.frombuffer(stream, np.uint8)
        reader = open_stream(stream[:4], data.size, self._engine.model.ending)
        if reader[0] > data.size:
            raise _corrupt(data.size)
        room = 8 * data.size + (MAX_TAIL if self._engine.model.ending == SHORT else _ROUNDING_SYMBOLS)
        found = [self._sample(data, reader, plan, statistics, room) for plan in plans]
        if not is_closed(data.size, reader):
            raise _corrupt(data.size)
        return found

    def _sample(
        self, data: NDArray[np.uint8], reader: NDArray[np.int64], plan: Plan, statistics: Statistics, room: int
    ) -> Decoded:
        components = self._engine.model.components
        room = min(room, plan.rows * components)
        index, values = np.empty((2, room), np.int32)
        classes = np.empty(room, np.uint16)
        begins, depths = np.zeros(plan.rows + 2, np.int64), np.zeros(plan.rows + 1, np.int32)
        memory = self._memory if len(self._memory[0]) > plan.rows else new_memory(plan.rows, components)
        if memory[0].size <= _KEPT_ELEMENTS:
            self._memory = memory
        memory[3].fill(0)
        count = decode_rows(
            *(data, reader, plan.kind, statistics.ends, plan.neighbours, statistics.known, *statistics.said, *memory),
            *(self._part, self._engine.model.tables.packed, self._zeros),
            *(index, classes, values, begins, depths),
        )
        if count < 0:
            raise _corrupt(data.size)
        return Decoded(plan, index[:count], classes[:count], values[:count], begins, depths)


def zero_intervals(tables: CdfTables) -> NDArray[np.int32]:
    """(T, 2): where the interval of symbol 0 begins in each table, and its width."""
    packed = tables.packed
    blocks = packed[1 : 1 + tables.count]
    at = blocks + CDF_BEGIN - packed[blocks]
    return np.ascontiguousarray(np.stack([packed[at], packed[at + 1] - packed[at]], axis=1))


class Synthesis:
    """Turns symbols of one codec into features, one sample at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._scratch = Scratch()

    def features(self, decoded: Decoded, steps: Steps, far: NDArray[np.int64], strength: int) -> FloatArray:
        """Float32 (L, C), valid until the next call.

        Args:
            decoded: the symbols.
            steps: of the unit.
            far: the far tokens among the patches.
            strength: of the filter, eighths.
        """
        engine, plan = self._engine, decoded.plan
        prefix, channels = plan.prefix, engine.model.channels
        tokens = self._scratch.take("rows", plan.rows + 1, channels)
        tokens[0] = 0
        lists = decoded.index, decoded.classes, decoded.values, decoded.begins
        engine.invert(lists, plan, 1, plan.rows + 1, steps, tokens)
        out = self._scratch.take("features", prefix + plan.h * plan.w, channels)
        known = min(prefix, len(engine.predictors))
        out[:prefix] = tokens[2 : 2 + prefix]
        if known:
            root = self._root(decoded, steps)
            for number in range(known):
                out[number] += engine.predictors[number](root)
        self._grid(plan, tokens, out[prefix:])
        if strength and engine.filter is not None and engine.filter.works(steps.patch):
            grid = out[prefix:].reshape(plan.h, plan.w, channels)
            change = engine.filter.correction(grid, out[0] if known else None, steps.patch)
            if strength != FULL_STRENGTH:
                change *= np.float32(strength / FULL_STRENGTH)
            grid += change
        out[:prefix] += engine.head_mean(prefix)
        out[prefix:] += engine.patch_mean(plan.h, plan.w)
        if far.size:
            out[prefix + far] = tokens[plan.rows + 1 - far.size :] + engine.model.far_mean
        return out

    def _grid(self, plan: Plan, tokens: FloatArray, out: FloatArray) -> None:
        """Rows (rows + 1, C), which are changed, to the patches (h * w, C), without means."""
        engine, channels = self._engine, out.shape[1]
        low = tokens[1].reshape(1, 1, channels)
        for level in plan.levels:
            details = [tokens[level.first[o] : level.first[o + 1]].reshape(*level.shape(o), channels) for o in range(3)]
            engine.take_slope(level, low, details, 1)
            if level.depth == 0:
                target = out.reshape(plan.h, plan.w, channels)
            else:
                target = self._scratch.take(f"level {level.depth}", level.h, level.w, channels)
            merge(low, details[0], details[1], details[2], level.y_low, level.x_low, target)
            low = target
        if not plan.levels:
            out[...] = low.reshape(1, -1)

    def _root(self, decoded: Decoded, steps: Steps) -> FloatArray:
        """Components (depth,) of the root."""
        model, own = self._engine.model, slice(int(decoded.begins[1]), int(decoded.begins[2]))
        size = np.abs(decoded.values[own])
        entry = np.minimum(size, MAGNITUDES - 1)
        value = model.centroid[decoded.classes[own], entry] + (size - entry).astype(np.float32)
        root = np.zeros(int(decoded.depths[1]), np.float32)
        root[decoded.index[own] - model.components] = np.copysign(value, decoded.values[own]) * steps.size(prefix=False)
        return root


def _corrupt(size: int) -> CorruptBitstreamError:
    return CorruptBitstreamError(f"{size} bytes are not a payload of this codec and shape", field="payload")
