"""Learns the filter of a calibrated codec: gradient descent on tensors coded with it, at steps drawn at random.

A pool of coded tensors is renewed one by one while batches are drawn from it, so that memory is bounded and a tensor
is seen at many steps. The loss is the squared error over that without a filter. Towards the end half of the tensors are
coded as the slow search does, which leaves to the filter what it adds by itself: each then learns from the other.
Tensors are coded on the CPU, where a GPU learns, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.transforms.klt_encoder import Encoder
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_filter import SPAN, Filter, FilterModel
from mpcompress.transforms.klt_filter_network import Example, Network, array_module
from mpcompress.transforms.klt_fit_data import FitData
from mpcompress.transforms.klt_model import KltModel
from mpcompress.transforms.klt_sample import Reconstruction, Sample
from mpcompress.transforms.klt_statistics import StatisticsCache, Steps

__all__ = ["FILTER_STEPS", "fit_filter"]

FILTER_STEPS = 10_000
"""Of gradient descent. With four times as many some 2 to 3 % more of the bits are saved at low rates."""

_START = 8  # eighths of a qp above the default
_POOL_BYTES = {"cpu": 192 << 20, "cuda": 4 << 30}
_RENEWED = {"cpu": 1, "cuda": 4}  # steps between two: a step on a GPU is shorter than the coding of a tensor
_BATCH_TOKENS = 16 * 256
_RATE, _LAST_RATE = 3e-3, 1e-3
_WARM_UP = 200
_LAST_SHARE = 5  # one in so many steps is of the end, where tensors are coded with the filter in view
_OFTEN = 50  # steps between two calls of progress

FloatArray = NDArray[np.float32]
Progress = Callable[[int, int, str], None]


def fit_filter(
    model: KltModel, data: FitData, steps: int, progress: Progress | None = None, *, device: str = "cpu"
) -> FilterModel:
    """A filter for a codec that has none.

    Args:
        model: the codec.
        data: what it was calibrated on.
        steps: of gradient descent; one needs some 80 ms of CPU time for features of 256 x 384.
        progress: called with (done, total, stage).
        device: "cpu", or "cuda" with CuPy: some 10 ms for a step, the coding of tensors on a busy CPU included.

    Raises:
        InvalidInputError: the tensors are coded without an error; another device.
        CodecUnavailableError: no CuPy or no GPU here.
    """
    xp = array_module(device)
    pool = _Pool(model, data, xp, _POOL_BYTES[device])
    network = Network(xp, model.channels, 1 + min(model.prefix_tokens, 1))
    last = steps // _LAST_SHARE
    for begin, end, rate, in_view in ((0, steps - last, _RATE, None), (steps - last, steps, _LAST_RATE, network)):
        pool.network = in_view
        for step in range(begin, end):
            if progress is not None and step % _OFTEN == 0:
                progress(step, steps, "filter")
            network.learn(pool.batch(), rate * min((step - begin + 1) / _WARM_UP, (end - step) / (end - begin)))
            if step % _RENEWED[device] == 0:
                pool.renew()
    if progress is not None:
        progress(steps, steps, "filter")
    return pool.learnt(network)


class _Pool:
    """Coded tensors of a calibration set.

    Attributes:
        network: half of the tensors are coded with this in view.
    """

    network: Network | None = None

    def __init__(self, model: KltModel, data: FitData, xp: Any, room: int) -> None:
        self._model, self._data, self._xp = model, data, xp
        self._encoder, self._statistics = Encoder(Engine(model)), StatisticsCache(model)
        self._rng = np.random.default_rng(0)
        self.start = model.base_log2 + model.qp.default + _START
        self._last = min(model.qp.maximum, model.qp.default + _START + SPAN) - model.qp.default - _START
        self.deviation, self.scale = self._spread()
        self._coded: list[Example] = []
        while room > 0 and len(self._coded) < 2 * max(len(data), 64):
            self._coded.append(self._code())
            room -= 2 * self._coded[-1].grid.nbytes

    def _spread(self) -> tuple[FloatArray, float]:
        """Deviation of each channel about its mean, (C,), at least a little; and of all."""
        squares, count = np.zeros(self._data.channels), 0
        for tensor in self._data.tensors(self._data.some(64)):
            centred, _ = self._encoder.centred(tensor.x[self._data.prefix :], tensor.height, tensor.width)
            squares, count = squares + np.square(centred, dtype=np.float64).sum(0), count + len(centred)
        variance = squares / count
        return np.sqrt(variance + 1e-3 * variance.mean()).astype(np.float32), float(np.sqrt(variance.mean()))

    def _code(self) -> Example:
        rng, prefix, xp = self._rng, self._data.prefix, self._xp
        tensor = self._data[int(rng.integers(len(self._data)))]
        above = int(self._last * rng.random() ** 2)  # what is coarser still is asked for less
        steps = Steps(self.start + above, self._model.prefix_qp_offset_eighths, 0)
        sample = Sample(tensor.x, prefix, tensor.height, tensor.width, np.zeros(0, np.int64))
        found = self._coded_once(sample, steps, None)
        aim: FloatArray = np.zeros(1, np.float32)
        if self.network is not None and rng.random() < 0.5:
            known = Filter(self.learnt(self.network))
            for _ in range(int(rng.integers(1, 3))):
                aim = known.correction(found.grid, found.head, steps.patch)
                found = self._coded_once(sample, steps, aim)
        missing = (found.centred + aim - found.grid) / self.scale
        error = float(np.square(missing).mean())
        head = np.zeros(self._data.channels, np.float32) if found.head is None else found.head
        return Example(
            grid=xp.asarray((found.grid / self.deviation).astype(np.float16)),
            head=xp.asarray((head / self.deviation).astype(np.float16)),
            missing=xp.asarray(missing.astype(np.float16)),
            t=above / SPAN,
            weight=1 / max(error, 1e-6),
        )

    def _coded_once(self, sample: Sample, steps: Steps, aim: FloatArray | None) -> Reconstruction:
        found = self._encoder.reconstruct(sample, steps, self._statistics.at(steps), self._model.rate, aim)
        if found is None:
            raise InvalidInputError("a value is too large beside the others", field="sources")
        return found

    def learnt(self, network: Network) -> FilterModel:
        """A network as a filter of these tensors."""
        return network.model(self.start, self.deviation, self.scale)

    def renew(self) -> None:
        """Another tensor for one of them."""
        self._coded[int(self._rng.integers(len(self._coded)))] = self._code()

    def batch(self) -> list[Example]:
        """Tensors of one grid, so many that their tokens make a batch."""
        first = self._coded[int(self._rng.integers(len(self._coded)))]
        alike = [item for item in self._coded if item.grid.shape == first.grid.shape]
        count = max(1, _BATCH_TOKENS // (first.grid.shape[0] * first.grid.shape[1]))
        return [alike[int(number)] for number in self._rng.integers(len(alike), size=count)]
