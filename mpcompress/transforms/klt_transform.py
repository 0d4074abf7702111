"""The float half of family `klt`: tokens to coefficients to integers, and back. Nothing here changes a table row.

x (L, C) ──► minus mean ──► KLT over channels ──► DCT over the tiles ──► / step ──► dead zone ──► q
x_hat    ◄── plus mean  ◄── KLT transposed    ◄── inverse DCT        ◄── * step ◄── centroid  ◄── q
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_symbols import SymbolPlan
from mpcompress.transforms.scratch import Scratch
from mpcompress.transforms.tiling import FloatArray, Layout, forward_tiles, inverse_tiles

MAX_SYMBOL = 1 << 30


class KltTransform:
    """Transforms of one codec instance; holds float32 copies of its arrays. Not thread-safe, like its codec."""

    def __init__(self, model: KltModel) -> None:
        self._mean = model.mean
        self._prefix_mean = model.prefix_mean
        self._scratch = Scratch()
        self._basis = np.ascontiguousarray(model.basis, np.float32)
        self._rounding = np.array(model.rounding, np.float32)
        centroid = np.concatenate([np.zeros((model.tables.count, 1), np.float32), model.centroid], axis=1)
        self._centroid, self._columns = np.ascontiguousarray(centroid).ravel(), centroid.shape[1]

    def centre(self, x: FloatArray, layout: Layout) -> FloatArray:
        """Subtracts the means: (L, C) to (L, C)."""
        centred = x - self._mean
        known = min(layout.prefix, len(self._prefix_mean))
        centred[:known] = x[:known] - self._prefix_mean[:known]
        return centred

    def analyse(self, centred: FloatArray, layout: Layout, depth: int) -> FloatArray:
        """(L, C) to the first `depth` components of the coefficients, (L, depth) in the order of the layout."""
        tokens = self._scratch.take("tokens", len(centred), depth)
        np.matmul(centred, self._basis[:depth].T, out=tokens)
        return forward_tiles(tokens, layout, self._scratch, np.empty_like(tokens))

    def synthesise(self, coefficients: FloatArray, layout: Layout) -> FloatArray:
        """(L, depth) coefficients to tokens (L, C), means added. The result is valid until the next call."""
        tokens = inverse_tiles(coefficients, layout, self._scratch, self._scratch.take("tokens", *coefficients.shape))
        x = self._scratch.take("features", len(tokens), self._basis.shape[1])
        np.matmul(tokens, self._basis[: tokens.shape[1]], out=x)
        known = min(layout.prefix, len(self._prefix_mean))
        x[:known] += self._prefix_mean[:known] - self._mean
        x += self._mean
        return x

    def quantise(self, coefficients: FloatArray, plan: SymbolPlan) -> NDArray[np.int32] | None:
        """(L, depth) coefficients to n symbols; None when one is not finite or beyond +-2^30."""
        values = coefficients.ravel()[plan.index]
        values[: plan.prefix_symbols] *= np.float32(1 / plan.prefix_step)
        values[plan.prefix_symbols :] *= np.float32(1 / plan.patch_step)
        magnitude = np.abs(values)
        if magnitude.size and not float(magnitude.max()) < MAX_SYMBOL - 1:
            return None
        magnitude += np.where(magnitude < 1, self._rounding[0], self._rounding[1])
        return np.copysign(np.floor(magnitude, out=magnitude), values).astype(np.int32)

    def dequantise(self, symbols: NDArray[np.int32], plan: SymbolPlan) -> FloatArray:
        """Turns n symbols into (positions, depth) coefficients. The result is valid until the next call."""
        values = symbols.astype(np.float32)
        column = np.minimum(np.abs(symbols), self._columns - 1)
        column += plan.rows * np.int32(self._columns)
        values -= np.sign(values) * self._centroid[column]
        values[: plan.prefix_symbols] *= np.float32(plan.prefix_step)
        values[plan.prefix_symbols :] *= np.float32(plan.patch_step)
        coefficients = self._scratch.take("coefficients", plan.positions, plan.depth)
        coefficients.fill(0)
        coefficients.ravel()[plan.index] = values
        return coefficients
