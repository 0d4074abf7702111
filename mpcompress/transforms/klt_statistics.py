"""What a codec knows at one step: integers only, from its stored tables. See `klt_context`."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_context import (
    CLASS_SHIFT,
    CLASSES,
    FEATURES,
    KNOWN,
    LEVEL,
    LEVEL_LIMIT,
    OWN,
    UNITS,
    WEIGHT_LIMIT,
    WORTH,
    ZERO_SAYS,
    log2_table,
)
from mpcompress.transforms.klt_limits import LEVEL_BUCKETS
from mpcompress.transforms.klt_model import KltModel

_CACHED = 64
_CACHED_BYTES = 64 << 20


@dataclass(frozen=True)
class Steps:
    """Quantiser of a unit, in 1/48 octave: log2 of the patches' step, the prefix tokens' less it, and the gain."""

    patch: int
    prefix_offset: int
    gain: int

    @classmethod
    def of(cls, model: KltModel, qp_eighths: int, prefix_qp_offset_eighths: int, gain_eighths: int) -> Steps:
        """The steps of a unit with this state."""
        return cls(model.base_log2 + qp_eighths, prefix_qp_offset_eighths, gain_eighths)

    @cached_property
    def _sizes(self) -> tuple[np.float32, np.float32]:
        return (
            np.float32(2.0 ** (self.patch / UNITS)),
            np.float32(2.0 ** ((self.patch + self.prefix_offset) / UNITS)),
        )

    def size(self, *, prefix: bool) -> np.float32:
        """2^(units / 48), of the prefix tokens' step or of the patches'."""
        return self._sizes[prefix]


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the kernels take, and how many components of each kind may be coded.

    Args:
        known: int16 (kinds, KNOWN, K), see `klt_context.KNOWN`.
        ends: int32 (kinds,), how many components may be coded.
        said: evidence (CLASSES, MAGNITUDES), `log2_table()` and cutoff.
        worth: int16 (CLASSES,).
    """

    known: NDArray[np.int16]
    ends: NDArray[np.int32]
    said: tuple[NDArray[np.int16], NDArray[np.int16], int]
    worth: NDArray[np.int16]

    @cached_property
    def last(self) -> list[int]:
        """`ends` for Python."""
        return [int(value) for value in self.ends]

    @cached_property
    def kernel(self) -> tuple[Any, ...]:
        """All as `STATISTICS_TYPE`, for kernels that are not in a hurry."""
        evidence, log2, cutoff = self.said
        level, weight, own = self.known[:, LEVEL], self.known[:, :FEATURES], self.known[:, OWN]
        arrays = *(np.ascontiguousarray(part) for part in (level, weight, own)), self.ends, evidence, self.worth, log2
        for array in arrays:
            array.flags.writeable = False
        return (*arrays, cutoff)


class StatisticsCache:
    """Statistics of one codec, the latest kept. For one thread at a time."""

    def __init__(self, model: KltModel) -> None:
        self._model = model
        self._kept: OrderedDict[Steps, Statistics] = OrderedDict()

    def at(self, steps: Steps) -> Statistics:
        """Statistics at these steps."""
        found = self._kept.get(steps)
        if found is None:
            found = self._kept[steps] = statistics_at(self._model, steps)
            while len(self._kept) > 1 and (
                len(self._kept) > _CACHED or sum(kept.known.nbytes for kept in self._kept.values()) > _CACHED_BYTES
            ):
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(steps)
        return found


def statistics_at(model: KltModel, steps: Steps) -> Statistics:
    """Levels, weights and calibrated classes of every kind and component at these steps."""
    kinds, components = model.base.shape
    offset = np.zeros(kinds, np.int32)
    offset[1 : 1 + model.prefix_tokens] = steps.prefix_offset
    above = model.base.astype(np.int32) - offset[:, None] + (steps.gain - steps.patch - model.cutoff)
    bucket = np.clip(above // UNITS + 2, 0, LEVEL_BUCKETS - 1)
    octave = np.array([(k + 1).bit_length() - 1 for k in range(components)])
    weight = (
        model.weight_kind[:, None].astype(np.int32)
        + model.weight_level[bucket]
        + model.weight_component[np.minimum(octave, len(model.weight_component) - 1)]
    )
    known = np.empty((kinds, KNOWN, components), np.int16)
    np.clip(
        weight[..., :FEATURES].swapaxes(1, 2), -WEIGHT_LIMIT, WEIGHT_LIMIT, out=known[:, :FEATURES], casting="unsafe"
    )
    np.clip(above + weight[..., FEATURES], -LEVEL_LIMIT, LEVEL_LIMIT, out=known[:, LEVEL], casting="unsafe")
    own = np.clip(above >> CLASS_SHIFT, 0, CLASSES - 1)
    known[:, OWN], known[:, ZERO_SAYS], known[:, WORTH] = own, model.evidence[own, 0], model.worth[own]
    coded = known[:, LEVEL] >= 0
    ends = np.where(coded.any(1), components - np.argmax(coded[:, ::-1], 1), 0).astype(np.int32)
    for array in (known, ends):
        array.flags.writeable = False
    return Statistics(known, ends, (model.evidence, log2_table(), model.cutoff), model.worth)
