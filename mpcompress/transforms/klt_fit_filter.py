"""Learns the filter of a calibrated codec: gradient descent on tensors coded with it, at steps drawn at random.

A pool of coded tensors is renewed one by one while batches are drawn from it, so that memory is bounded and a tensor
is seen at many steps. The loss is the squared error over that without a filter. Adam: Kingma and Ba 2015, arXiv
1412.6980.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.transforms.klt_basis import to_bytes
from mpcompress.transforms.klt_encoder import Encoder
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_filter import SPAN, FilterModel
from mpcompress.transforms.klt_fit_data import FitData
from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_sample import Sample
from mpcompress.transforms.klt_statistics import StatisticsCache, Steps

__all__ = ["FILTER_STEPS", "fit_filter"]

FILTER_STEPS = 8_000
"""Of gradient descent, as the shipped codecs took."""

HIDDEN = 128
_START = 8  # eighths of a qp above the default
_POOL_BYTES = 192 << 20
_BATCH_TOKENS = 16 * 256
_RATE = 3e-3
_WARM_UP = 200
_DECAY = (0.9, 0.999)
_OFTEN = 50  # steps between two calls of progress

FloatArray = NDArray[np.float32]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Coded:
    """A tensor as decoded, less the means and over the channels' deviation, and what is missing; float16."""

    grid: NDArray[np.float16]
    head: NDArray[np.float16]
    missing: NDArray[np.float16]
    t: float
    weight: float


def fit_filter(model: KltModel, data: FitData, steps: int, progress: Progress | None = None) -> FilterModel:
    """A filter for a codec that has none.

    Args:
        model: the codec.
        data: what it was calibrated on.
        steps: of gradient descent; one needs some 80 ms of CPU time for features of 256 x 384.
        progress: called with (done, total, stage).

    Raises:
        InvalidInputError: the tensors are coded without an error.
    """
    pool = _Pool(model, data)
    network = _Network(model.channels, 1 + min(model.prefix_tokens, 1))
    for step in range(steps):
        if progress is not None and step % _OFTEN == 0:
            progress(step, steps, "filter")
        network.learn(pool.batch(), _RATE * min((step + 1) / _WARM_UP, 1 - step / steps))
        pool.renew()
    if progress is not None:
        progress(steps, steps, "filter")
    return network.model(pool.start, pool.deviation, pool.scale)


class _Pool:
    """Coded tensors of a calibration set."""

    def __init__(self, model: KltModel, data: FitData) -> None:
        self._model, self._data = model, data
        self._encoder, self._statistics = Encoder(Engine(model)), StatisticsCache(model)
        self._rng = np.random.default_rng(0)
        self.start = model.base_log2 + model.qp.default + _START
        self._last = min(model.qp.maximum, model.qp.default + _START + SPAN) - model.qp.default - _START
        self.deviation, self.scale = self._spread()
        self._coded: list[_Coded] = []
        room = _POOL_BYTES
        while room > 0 and len(self._coded) < 2 * max(len(data), 64):
            self._coded.append(self._code())
            room -= 2 * self._coded[-1].grid.nbytes

    def _spread(self) -> tuple[FloatArray, float]:
        """Deviation of each channel about its mean, (C,), at least a little; and of all."""
        squares, count = np.zeros(self._data.channels), 0
        for tensor in self._data.tensors(self._data.some(64)):
            centred = self._encoder.centred(tensor.x[self._data.prefix :], tensor.height, tensor.width)
            squares, count = squares + np.square(centred, dtype=np.float64).sum(0), count + len(centred)
        variance = squares / count
        return np.sqrt(variance + 1e-3 * variance.mean()).astype(np.float32), float(np.sqrt(variance.mean()))

    def _code(self) -> _Coded:
        rng, prefix = self._rng, self._data.prefix
        tensor = self._data[int(rng.integers(len(self._data)))]
        above = int(self._last * rng.random() ** 2)  # what is coarser still is asked for less
        steps = Steps(self.start + above, self._model.prefix_qp_offset_eighths, 0)
        sample = Sample(tensor.x, prefix, tensor.height, tensor.width, np.zeros(0, np.int64))
        found = self._encoder.reconstruct(sample, steps, self._statistics.at(steps), self._model.rate)
        if found is None:
            raise InvalidInputError("a value is too large beside the others", field="sources")
        missing = (found.centred - found.grid) / self.scale
        error = float(np.square(missing).mean())
        head = np.zeros(self._data.channels, np.float32) if found.head is None else found.head
        return _Coded(
            grid=(found.grid / self.deviation).astype(np.float16),
            head=(head / self.deviation).astype(np.float16),
            missing=missing.astype(np.float16),
            t=above / SPAN,
            weight=1 / max(error, 1e-6),
        )

    def renew(self) -> None:
        """Another tensor for one of them."""
        self._coded[int(self._rng.integers(len(self._coded)))] = self._code()

    def batch(self) -> list[_Coded]:
        """Tensors of one grid, so many that their tokens make a batch."""
        first = self._coded[int(self._rng.integers(len(self._coded)))]
        alike = [item for item in self._coded if item.grid.shape == first.grid.shape]
        count = max(1, _BATCH_TOKENS // (first.grid.shape[0] * first.grid.shape[1]))
        return [alike[int(number)] for number in self._rng.integers(len(alike), size=count)]


class _Network:
    """The filter while it learns, on grids over `deviation` and errors over `scale`."""

    def __init__(self, channels: int, contexts: int) -> None:
        rng = np.random.default_rng(1)
        near = np.zeros((3, 3, HIDDEN), np.float32)
        near[1, 1] = 1
        bias = np.zeros((3, HIDDEN), np.float32)
        gain = np.zeros((3, HIDDEN), np.float32)
        gain[0] = 1
        self._parts = {
            "inner": (rng.standard_normal((channels, HIDDEN)) / channels**0.5).astype(np.float32),
            "context": np.zeros((contexts, channels, HIDDEN), np.float32),
            "near": near,
            "bias": bias,
            "gain": gain,
            "outer": np.zeros((HIDDEN, channels), np.float32),
        }
        self._first = {name: np.zeros_like(part) for name, part in self._parts.items()}
        self._second = {name: np.zeros_like(part) for name, part in self._parts.items()}
        self._steps = 0

    def learn(self, batch: list[_Coded], rate: float) -> None:
        """One step of Adam."""
        self._steps += 1
        first, second = _DECAY
        rate *= (1 - second**self._steps) ** 0.5 / (1 - first**self._steps)
        for name, gradient in self._gradients(batch).items():
            m, v = self._first[name], self._second[name]
            m += (1 - first) * (gradient - m)
            v += (1 - second) * (gradient * gradient - v)
            self._parts[name] -= np.float32(rate) * m / (np.sqrt(v) + np.float32(1e-8))

    def _gradients(self, batch: list[_Coded]) -> dict[str, FloatArray]:
        parts = self._parts
        grid = np.stack([item.grid for item in batch]).astype(np.float32)
        count, h, w, channels = grid.shape
        tokens = grid.reshape(-1, channels)
        contexts = np.stack([grid.mean(axis=(1, 2)), np.stack([item.head for item in batch]).astype(np.float32)])
        contexts = contexts[: len(parts["context"])]
        powers = np.array([[1, item.t, item.t**2] for item in batch], np.float32)
        units = (tokens @ parts["inner"]).reshape(count, h, w, -1)
        hidden = near_sums(units, parts["near"])
        hidden += (powers @ parts["bias"] + np.einsum("nbc,nch->bh", contexts, parts["context"]))[:, None, None]
        gains = (powers @ parts["gain"])[:, None, None]
        np.maximum(hidden, 0, out=hidden)
        gained = (hidden * gains).reshape(len(tokens), -1)
        # The gradient of the mean of weight * |missing - correction|^2, from the end to the beginning.
        back = gained @ parts["outer"]
        back -= np.stack([item.missing for item in batch]).reshape(back.shape)
        weights = np.array([item.weight for item in batch], np.float32) * (2 / back.size)
        back = (back.reshape(count, -1) * weights[:, None]).reshape(back.shape)
        found = {"outer": gained.T @ back}
        unit_back = (back @ parts["outer"].T).reshape(hidden.shape)
        found["gain"] = powers.T @ np.einsum("bijh,bijh->bh", hidden, unit_back)
        unit_back *= gains
        unit_back *= hidden > 0
        sums = unit_back.sum(axis=(1, 2))
        found["bias"] = powers.T @ sums
        found["context"] = np.einsum("nbc,bh->nch", contexts, sums)
        near = np.zeros_like(parts["near"])
        spread = np.zeros_like(units)
        for i in range(3):
            for j in range(3):
                if abs(i - 1) < h and abs(j - 1) < w:
                    to, seen = overlap(i - 1, j - 1)
                    near[i, j] = np.einsum("bijh,bijh->h", unit_back[to], units[seen])
                    spread[seen] += unit_back[to] * parts["near"][i, j]
        found["near"] = near
        found["inner"] = tokens.T @ spread.reshape(len(tokens), -1)
        return found

    def model(self, start: int, deviation: FloatArray, scale: float) -> FilterModel:
        """What it learnt, on features as they are."""
        parts = self._parts
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


def near_sums(units: FloatArray, near: FloatArray) -> FloatArray:
    """(..., h, w, H) to the sums over each node's 3 x 3 neighbourhood, weighted by near (3, 3, H)."""
    h, w = units.shape[-3:-1]
    out: FloatArray = units * near[1, 1]
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
