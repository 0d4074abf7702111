"""A filter behind the decoder: what is likely to have been lost, from what was decoded. It changes no symbol.

A coefficient that was quantised to zero is not zero in the mean, given its neighbours: features lie near a curved
surface, of which the KLT only knows the plane. One hidden layer sees each patch token, its eight neighbours, the mean
of all and the first prefix token, as decoded, and adds to the token what it learnt in calibration::

    a      = near (3 x 3, a weight for each unit) over In v,  v the centred token (C,) as decoded
    hidden = max(a + context + bias(t), 0) * gain(t)     context = Mean mean(v) + Head (first prefix token)
    v     += strength * Out hidden

bias and gain are parabolas of t, which is the step. All sums of a healthy codec file are bounded, so that what is
finite stays so. A network behind a transform codec's decoder: Dong et al. 2015, arXiv 1504.06993.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress._numba import njit, types
from mpcompress.errors import CodecFileError
from mpcompress.transforms.klt_haar import F1R, F3, F3R
from mpcompress.transforms.klt_products import multiply, to_panels

__all__ = ["FULL_STRENGTH", "SPAN", "Filter", "FilterModel", "hidden_units"]

SPAN = 192
"""1/48 octave: t goes from 0 at the finest step that is filtered to 1 at one that is 24 qp coarser."""

FULL_STRENGTH = 8
MAX_HIDDEN = 1024
_OCTAVES = 960  # of `start` either way, 1/48 each
_LARGEST = {"near": 64.0, "bias": 1e6, "gain": 64.0, "inner_scale": 1e3, "context_scale": 1e3, "outer_scale": 1e3}
_LARGEST_SUM = 1e4

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class FilterModel:
    """A filter's numbers: C channels, H hidden units, n = 1 or 2 contexts.

    Args:
        start: log2 of the finest step that is filtered, 1/48 octave.
        inner: int8 (H, C), rows of In.
        inner_scale: float32 (H,), of each row.
        context: int8 (n, H, C): Mean, and Head where the codec has prefix tokens.
        context_scale: float32 (n, H).
        near: float32 (H, 3, 3), down and across; tokens outside the grid are zero.
        bias: float32 (H, 3): times 1, t, t^2.
        gain: float32 (H, 3), too.
        outer: int8 (H, C), rows of Out transposed.
        outer_scale: float32 (H,).
    """

    start: int
    inner: NDArray[np.int8]
    inner_scale: FloatArray
    context: NDArray[np.int8]
    context_scale: FloatArray
    near: FloatArray
    bias: FloatArray
    gain: FloatArray
    outer: NDArray[np.int8]
    outer_scale: FloatArray

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Names and arrays, in one order."""
        for field in fields(self):
            if field.name != "start":
                yield field.name, getattr(self, field.name)

    def check(self, channels: int, prefix: int) -> None:
        """Raises CodecFileError for shapes that do not fit, and for numbers that could make features infinite."""
        hidden, contexts = len(self.inner), 1 + min(prefix, 1)
        if not 1 <= hidden <= MAX_HIDDEN or abs(self.start) > _OCTAVES:
            raise CodecFileError(f"a filter of {hidden} units, from {self.start} on", field="filter_start")
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "inner": ((hidden, channels), np.int8),
            "inner_scale": ((hidden,), np.float32),
            "context": ((contexts, hidden, channels), np.int8),
            "context_scale": ((contexts, hidden), np.float32),
            "near": ((hidden, 3, 3), np.float32),
            "bias": ((hidden, 3), np.float32),
            "gain": ((hidden, 3), np.float32),
            "outer": ((hidden, channels), np.int8),
            "outer_scale": ((hidden,), np.float32),
        }
        for name, array in self.arrays():
            shape, dtype = shapes[name]
            if array.shape != shape or array.dtype != dtype:
                said = f"filter_{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}"
                raise CodecFileError(said, field=f"filter_{name}")
            if name in _LARGEST and not float(np.abs(array).max()) <= _LARGEST[name]:
                raise CodecFileError(f"filter_{name} is out of range", field=f"filter_{name}")
            array.flags.writeable = False
        inner = np.abs(self.inner.astype(np.float32)).sum(1) * np.abs(self.inner_scale)
        context = np.abs(self.context.astype(np.float32)).sum(2) * np.abs(self.context_scale)
        outer = np.abs(self.outer * self.outer_scale[:, None]).sum(0)
        if not max(float(inner.max()), float(context.max()), float(outer.max())) <= _LARGEST_SUM:
            raise CodecFileError("a filter that amplifies too much", field="filter_outer")


class Filter:
    """A filter ready for use; nothing in it changes, so any thread may use it."""

    def __init__(self, model: FilterModel) -> None:
        self._start = model.start
        self._hidden = len(model.inner)
        self._inner = to_panels(model.inner * model.inner_scale[:, None])
        self._context = [
            np.ascontiguousarray((rows * scale[:, None]).T)
            for rows, scale in zip(model.context, model.context_scale, strict=True)
        ]
        self._near = np.ascontiguousarray(model.near.transpose(1, 2, 0))
        self._bias, self._gain = model.bias.T, model.gain.T
        self._outer = to_panels((model.outer * model.outer_scale[:, None]).T)

    def works(self, log2_step: int) -> bool:
        """Whether units of this step are filtered; of steps beyond those it was made for none are."""
        return self._start <= log2_step <= self._start + 2 * SPAN

    def correction(self, grid: FloatArray, head: FloatArray | None, log2_step: int) -> FloatArray:
        """What to add to a grid of patches at full strength.

        Args:
            grid: (h, w, C), contiguous, without means.
            head: (C,), the first prefix token without its mean, where there is one that the codec knows.
            log2_step: of the patches, 1/48 octave.

        Returns:
            (h, w, C), a new array.
        """
        h, w, channels = grid.shape
        tokens = grid.reshape(h * w, channels)
        t = np.float32(min((log2_step - self._start) / SPAN, 1.0))
        powers = np.array([1, t, t * t], np.float32)
        context = tokens.mean(axis=0) @ self._context[0]
        if head is not None and len(self._context) > 1:
            context += head @ self._context[1]
        units = multiply(tokens, self._inner, self._hidden).reshape(h, w, -1)
        hidden = np.empty_like(units)
        hidden_units(units, self._near, context + powers @ self._bias, powers @ self._gain, hidden)
        return multiply(hidden.reshape(h * w, -1), self._outer, channels).reshape(h, w, channels)


@njit(types.void(F3R, F3R, F1R, F1R, F3), lazy=True, fastmath={"contract"})
def hidden_units(units: Any, near: Any, shift: Any, gain: Any, out: Any) -> None:
    """Units (h, w, H) to max(sums over 3 x 3 neighbours weighted by near (3, 3, H) + shift (H,), 0) * gain (H,)."""
    height, width, hidden = units.shape
    for i in range(height):
        for j in range(width):
            for k in range(hidden):
                out[i, j, k] = shift[k]
            for y in range(max(i - 1, 0), min(i + 2, height)):
                for x in range(max(j - 1, 0), min(j + 2, width)):
                    for k in range(hidden):
                        out[i, j, k] += near[y + 1 - i, x + 1 - j, k] * units[y, x, k]
            for k in range(hidden):
                out[i, j, k] = max(out[i, j, k], np.float32(0)) * gain[k]
