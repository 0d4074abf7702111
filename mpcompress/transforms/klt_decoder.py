"""Streams of family `klt` to symbols, and symbols to features.

The first half is integers; what it allocates is bounded by the stream and by the tensor that the unit claims, whose
pages are touched only as far as the stream goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpcompress.entropy.primitives import STATE_LOW
from mpcompress.entropy.tables import CDF_BEGIN, CdfTables
from mpcompress.errors import CorruptBitstreamError
from mpcompress.transforms.klt_context import Memory, new_memory
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_haar import merge
from mpcompress.transforms.klt_kernels import decode_rows, dequantise_rows
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
        reader = np.array([4, int.from_bytes(stream[:4], "little")], np.int64)
        if data.size == 0:
            reader[:] = 0, STATE_LOW
        elif data.size < 4 or reader[1] < STATE_LOW:
            raise _corrupt(data.size)
        room = 8 * data.size + _ROUNDING_SYMBOLS
        found = [self._sample(data, reader, plan, statistics, room) for plan in plans]
        if reader[0] != data.size or reader[1] != STATE_LOW:
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

    def features(self, decoded: Decoded, steps: Steps, far: NDArray[np.int64]) -> FloatArray:
        """Float32 (L, C), valid until the next call; `far` are the far tokens among the patches."""
        engine, plan = self._engine, decoded.plan
        prefix, channels = plan.prefix, engine.model.channels
        out = self._scratch.take("features", prefix + plan.h * plan.w, channels)
        root = self._field(decoded, 1, 1, steps, prefix=False)
        for number in range(prefix):
            known = number < len(engine.predictors)
            row = 2 + number
            field = self._field(decoded, row, 1, steps, prefix=known)
            out[number] = engine.bases[plan.kind[row]].inverse(field[1:])[0]
            if known:
                out[number] += engine.predictors[number](root[1])
        self._grid(decoded, steps, engine.root.inverse(root[1:]).reshape(1, 1, -1), out[prefix:])
        out[:prefix] += engine.head_mean(prefix)
        out[prefix:] += engine.patch_mean(plan.h, plan.w)
        if far.size:
            field = self._field(decoded, plan.rows - far.size + 1, far.size, steps, prefix=False)
            out[prefix + far] = engine.far.inverse(field[1:]) + engine.model.far_mean
        return out

    def _grid(self, decoded: Decoded, steps: Steps, low: FloatArray, out: FloatArray) -> None:
        """Low-pass (1, 1, C) and all levels to the patches (h * w, C), without means."""
        engine, plan, channels = self._engine, decoded.plan, out.shape[1]
        for level in plan.levels:
            details = []
            for orientation in range(3):
                first, rows = level.first[orientation], level.first[orientation + 1] - level.first[orientation]
                shape = *level.shape(orientation), channels
                field = self._field(decoded, first, rows, steps, prefix=False) if rows else None
                if field is None or not field.shape[1]:
                    details.append(np.zeros(shape, np.float32))
                else:
                    part = engine.bases[plan.kind[first]].inverse(field[1:])
                    details.append(np.ascontiguousarray(part).reshape(shape))
            engine.take_slope(level, low, details, 1)
            finest = level.depth == 0
            target = out.reshape(plan.h, plan.w, channels) if finest else np.empty((level.h, level.w, channels), "f4")
            merge(low, details[0], details[1], details[2], level.y_low, level.x_low, target)
            low = target
        if not plan.levels:
            out[...] = low.reshape(1, -1)

    def _field(self, decoded: Decoded, first: int, rows: int, steps: Steps, *, prefix: bool) -> FloatArray:
        """(rows + 1, depth) values of a group; row 0 is zero."""
        engine, plan = self._engine, decoded.plan
        depth = int(decoded.depths[first : first + rows].max())
        field = np.empty((rows + 1, depth), np.float32)
        left, up = engine.feedback[plan.kind[first]]
        dequantise_rows(
            *(decoded.index, decoded.classes, decoded.values, decoded.begins, first, rows, engine.model.components),
            *(plan.neighbours, engine.model.centroid, left, up, steps.size(prefix=prefix), field),
        )
        return field


def _corrupt(size: int) -> CorruptBitstreamError:
    return CorruptBitstreamError(f"{size} bytes are not a payload of this codec and shape", field="payload")
