"""The network of a filter while it learns: see `klt_filter` for what it computes, `klt_fit_filter` for what from.

Adam: Kingma and Ba 2015, arXiv 1412.6980. On a GPU CuPy does what NumPy does on a CPU, so there is one code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import CodecUnavailableError, InvalidInputError
from mpcompress.transforms.klt_basis import to_bytes
from mpcompress.transforms.klt_filter import FilterModel

__all__ = ["HIDDEN", "Example", "Network", "array_module", "near_sums"]

HIDDEN = 128
_DECAY = (0.9, 0.999)

FloatArray = NDArray[np.float32]


def array_module(device: str) -> Any:
    """NumPy for "cpu", CuPy for "cuda".

    Raises:
        InvalidInputError: another word.
        CodecUnavailableError: no CuPy or no GPU here.
    """
    if device == "cpu":
        return np
    if device != "cuda":
        raise InvalidInputError(f"device {device!r}: cpu or cuda", field="device")
    try:
        import cupy

        cupy.zeros(1)
    except Exception as error:  # no CuPy, or one without a driver, a device or a library of its own
        said = f"learning on a GPU needs CuPy (cupy-cuda12x or cupy-cuda13x) and a GPU: {error}"
        raise CodecUnavailableError(said, field="device") from error
    return cupy


@dataclass(frozen=True)
class Example:
    """A tensor as decoded, less the means and over the channels' deviation, and what is missing; float16 arrays.

    Args:
        grid: (h, w, C).
        head: (C,), the first prefix token.
        missing: (h, w, C), what it lacks, over the deviation of all.
        t: its step, see `klt_filter.SPAN`.
        weight: of its squared error.
    """

    grid: Any
    head: Any
    missing: Any
    t: float
    weight: float


class Network:
    """A filter's numbers, on grids over the channels' deviations and errors over that of all.

    Args:
        xp: NumPy, or CuPy; see `array_module`. Examples are arrays of the same.
        channels: C.
        contexts: 1, or 2 with prefix tokens.
        hidden: units.
    """

    def __init__(self, xp: Any, channels: int, contexts: int, hidden: int = HIDDEN) -> None:
        rng = np.random.default_rng(1)
        near = np.zeros((3, 3, hidden), np.float32)
        near[1, 1] = 1
        gain = np.zeros((3, hidden), np.float32)
        gain[0] = 1
        parts = {
            "inner": (rng.standard_normal((channels, hidden)) / channels**0.5).astype(np.float32),
            "context": np.zeros((contexts, channels, hidden), np.float32),
            "near": near,
            "bias": np.zeros((3, hidden), np.float32),
            "gain": gain,
            "outer": np.zeros((hidden, channels), np.float32),
        }
        self._xp = xp
        self._parts = {name: xp.asarray(part) for name, part in parts.items()}
        self._first = {name: xp.zeros_like(part) for name, part in self._parts.items()}
        self._second = {name: xp.zeros_like(part) for name, part in self._parts.items()}
        self._steps = 0

    def learn(self, batch: Sequence[Example], rate: float) -> None:
        """One step of Adam."""
        self._steps += 1
        first, second = _DECAY
        xp = self._xp
        rate *= (1 - second**self._steps) ** 0.5 / (1 - first**self._steps)
        for name, gradient in self._gradients(batch).items():
            m, v = self._first[name], self._second[name]
            m += (1 - first) * (gradient - m)
            v += (1 - second) * (gradient * gradient - v)
            self._parts[name] -= np.float32(rate) * m / (xp.sqrt(v) + np.float32(1e-8))

    def _gradients(self, batch: Sequence[Example]) -> dict[str, Any]:
        parts, xp = self._parts, self._xp
        grid = xp.stack([item.grid for item in batch]).astype(np.float32)
        count, h, w, channels = grid.shape
        tokens = grid.reshape(-1, channels)
        contexts = xp.stack([grid.mean(axis=(1, 2)), xp.stack([item.head for item in batch]).astype(np.float32)])
        contexts = contexts[: len(parts["context"])]
        powers = xp.array([[1, item.t, item.t**2] for item in batch], np.float32)
        units = (tokens @ parts["inner"]).reshape(count, h, w, -1)
        hidden = near_sums(units, parts["near"])
        hidden += (powers @ parts["bias"] + xp.einsum("nbc,nch->bh", contexts, parts["context"]))[:, None, None]
        gains = (powers @ parts["gain"])[:, None, None]
        xp.maximum(hidden, 0, out=hidden)
        gained = (hidden * gains).reshape(len(tokens), -1)
        # The gradient of the mean of weight * |missing - correction|^2, from the end to the beginning.
        back = gained @ parts["outer"]
        back -= xp.stack([item.missing for item in batch]).reshape(back.shape)
        weights = xp.array([item.weight for item in batch], np.float32) * (2 / back.size)
        back = (back.reshape(count, -1) * weights[:, None]).reshape(back.shape)
        found = {"outer": gained.T @ back}
        unit_back = (back @ parts["outer"].T).reshape(hidden.shape)
        found["gain"] = powers.T @ xp.einsum("bijh,bijh->bh", hidden, unit_back)
        unit_back *= gains
        unit_back *= hidden > 0
        sums = unit_back.sum(axis=(1, 2))
        found["bias"] = powers.T @ sums
        found["context"] = xp.einsum("nbc,bh->nch", contexts, sums)
        near = xp.zeros_like(parts["near"])
        spread = xp.zeros_like(units)
        for i in range(3):
            for j in range(3):
                if abs(i - 1) < h and abs(j - 1) < w:
                    to, seen = overlap(i - 1, j - 1)
                    near[i, j] = xp.einsum("bijh,bijh->h", unit_back[to], units[seen])
                    spread[seen] += unit_back[to] * parts["near"][i, j]
        found["near"] = near
        found["inner"] = tokens.T @ spread.reshape(len(tokens), -1)
        return found

    def model(self, start: int, deviation: FloatArray, scale: float) -> FilterModel:
        """What it learnt, on features as they are."""
        parts = {name: part if self._xp is np else part.get() for name, part in self._parts.items()}
        inner, inner_scale = _bytes((parts["inner"] / deviation[:, None]).T)
        outer, outer_scale = _bytes(parts["outer"] * np.float32(scale))
        context = [_bytes((part / deviation[:, None]).T) for part in parts["context"]]
        return FilterModel(
            start=start,
            inner=inner,
            inner_scale=inner_scale,
            context=np.stack([rows for rows, _ in context]),
            context_scale=np.stack([scales for _, scales in context]),
            near=np.ascontiguousarray(parts["near"].transpose(2, 0, 1)),
            bias=np.ascontiguousarray(parts["bias"].T),
            gain=np.ascontiguousarray(parts["gain"].T),
            outer=outer,
            outer_scale=outer_scale,
        )


def _bytes(rows: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """(n, C) as bytes, and what each row's are multiplied by."""
    scale = np.maximum(np.abs(rows).max(axis=1), 1e-30) / 127
    return to_bytes(rows), scale.astype(np.float32)


def near_sums(units: Any, near: Any) -> Any:
    """(..., h, w, H) to the sums over each node's 3 x 3 neighbourhood, weighted by near (3, 3, H)."""
    h, w = units.shape[-3:-1]
    out = units * near[1, 1]
    for i in range(3):
        for j in range(3):
            if (i, j) == (1, 1) or abs(i - 1) >= h or abs(j - 1) >= w:
                continue
            to, seen = overlap(i - 1, j - 1)
            out[to] += units[seen] * near[i, j]
    return out


def overlap(down: int, across: int) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Nodes that have a neighbour so far down and across, and these neighbours."""
    to, seen = [], []
    for shift in (down, across):
        to.append(slice(max(-shift, 0), -shift if shift > 0 else None))
        seen.append(slice(max(shift, 0), shift if shift < 0 else None))
    return (..., *to, slice(None)), (..., *seen, slice(None))
