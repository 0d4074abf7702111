"""Features to samples and back: clip to bounds, then a uniform quantiser.

    q     = round((clip(x, low, high) - low) * (2^depth - 1) / (high - low))
    x_hat = q * (high - low) / (2^depth - 1) + low

in float64. Bounds are float32 numbers, because that is how they travel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError, NonFiniteError

__all__ = ["QUANTIZERS", "Bounds", "UniformQuantizer", "check_finite"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Truncation bounds: one pair for the whole tensor or one per layer (axis 1 of a 4-D tensor).

    Args:
        low: lower bounds, each below its upper one; rounded to float32.
        high: as many upper bounds.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(float(np.float32(bound)) for bound in getattr(self, name)))
        if len(self.low) != len(self.high) or not self.low:
            raise InvalidInputError(f"{len(self.low)} lower but {len(self.high)} upper bounds", field="trun_low")
        for low, high in zip(self.low, self.high, strict=True):
            if not (math.isfinite(high - low) and low < high):
                raise InvalidInputError(f"bounds {low:g} and {high:g}: finite, low below high", field="trun_low")

    @classmethod
    def of(cls, low: Any, high: Any) -> Bounds:
        """From a number each or anything with numbers in it: lists, tuples, arrays, list-like configuration objects."""
        return cls(low=_numbers(low, "trun_low"), high=_numbers(high, "trun_high"))

    @classmethod
    def measured(cls, features: NDArray[Any], *, per_layer: bool = False) -> Bounds:
        """The extremes of a finite tensor (axis 1: layers)."""
        axes = tuple(axis for axis in range(features.ndim) if axis != 1) if per_layer else None
        lows = np.atleast_1d(features.min(axis=axes)).astype(np.float32)
        highs = np.atleast_1d(features.max(axis=axes)).astype(np.float32)
        # A constant tensor still needs a range; it decodes to its constant.
        highs = np.where(highs > lows, highs, np.nextafter(lows, np.float32(np.inf)))
        return cls(low=tuple(lows.tolist()), high=tuple(highs.tolist()))

    def shaped(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(low, span), to broadcast against a tensor of `shape`. Raises InvalidInputError if the counts differ."""
        if len(self.low) not in (1, shape[1]):
            raise InvalidInputError(
                f"{len(self.low)} bounds for {shape[1]} layers: give one or as many", field="trun_low"
            )
        form = (1, -1, *(1 for _ in shape[2:]))
        low = np.asarray(self.low, dtype=np.float64).reshape(form)
        return low, np.asarray(self.high, dtype=np.float64).reshape(form) - low


class UniformQuantizer:
    """Uniform, nearest integer, saturating at the bounds."""

    def quantize(self, features: NDArray[Any], bounds: Bounds, bit_depth: int) -> NDArray[np.uint16]:
        """Finite features, axis 1 layers, to integers 0 to 2^bit_depth - 1."""
        low, span = bounds.shaped(features.shape)
        levels = (1 << bit_depth) - 1
        scaled = (features.astype(np.float64) - low) * (levels / span)
        samples: NDArray[np.uint16] = np.rint(np.clip(scaled, 0, levels)).astype(np.uint16)
        return samples

    def dequantize(self, samples: NDArray[np.uint16], bounds: Bounds, bit_depth: int) -> NDArray[np.float32]:
        """Integers to features."""
        low, span = bounds.shaped(samples.shape)
        features: NDArray[np.float32] = (samples * (span / ((1 << bit_depth) - 1)) + low).astype(np.float32)
        return features


# By the name that configurations use (quant_type); add your own.
QUANTIZERS: dict[str, UniformQuantizer] = {"uniform": UniformQuantizer()}


def check_finite(features: NDArray[Any], field: str = "tensors[0]") -> None:
    """Raises NonFiniteError naming the first NaN or infinity."""
    finite = np.isfinite(features)
    if not finite.all():
        index = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), features.shape))
        raise NonFiniteError(f"the features hold {features[index]} at {index}", field=field)


def _numbers(bounds: Any, field: str) -> tuple[float, ...]:
    try:
        values = bounds if isinstance(bounds, Iterable) and not isinstance(bounds, str) else (bounds,)
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{field} is a number or a list of numbers, not {bounds!r}", field=field) from error
