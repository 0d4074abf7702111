"""Calibration tensors as the fit wants them: float32, far tokens filled, read again whenever they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpcompress.feature_files import FeatureTensor
from mpcompress.transforms.klt_far import fill, find_far

__all__ = ["FitData", "FitTensor"]

_KEPT_BYTES = 256 << 20
_KEPT_FAR = 4096
_TYPICAL_TENSORS = 64

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class FitTensor:
    """x (prefix + height * width, C), whose far tokens are filled from their neighbours."""

    x: FloatArray
    height: int
    width: int


class FitData:
    """Tensors of one calibration; at most 256 MB of them are kept, the others read anew.

    Args:
        tensors: (L, C) each.
        prefix: prefix tokens P.
        token_res: grid of all; None for sequences.

    Attributes:
        token_energy: what a tenth of the tokens exceed, squared distance from the others.
        far: tokens that were far, (n, C), 4096 at most, of the tensors read so far.
    """

    def __init__(self, tensors: Sequence[FeatureTensor], prefix: int, token_res: tuple[int, int] | None) -> None:
        self._tensors = tensors
        self.prefix, self.token_res = prefix, token_res
        self.channels = tensors[0].shape[1]
        self.far: list[FloatArray] = []
        self._kept: dict[int, FitTensor] = {}
        self._room = _KEPT_BYTES
        self._seen: set[int] = set()
        self.token_energy = self._typical()

    def __len__(self) -> int:
        return len(self._tensors)

    def grid(self, number: int) -> tuple[int, int]:
        """(height, width) of a tensor."""
        return self.token_res or (1, self._tensors[number].shape[0] - self.prefix)

    def __getitem__(self, number: int) -> FitTensor:
        kept = self._kept.get(number)
        if kept is not None:
            return kept
        x = self._tensors[number].read().copy()
        height, width = self.grid(number)
        patches = x[self.prefix :]
        far = find_far(_energies(patches), self.token_energy)
        if far.size:
            if number not in self._seen and len(self.far) < _KEPT_FAR:
                self.far.extend(patches[far])
            fill(patches.reshape(height, width, -1), far)
        self._seen.add(number)
        found = FitTensor(x, height, width)
        if x.nbytes <= self._room:
            self._room -= x.nbytes
            self._kept[number] = found
        return found

    def _typical(self) -> float:
        """What a tenth of the tokens of some tensors exceed: their squared distance from the tensor's median token."""
        energies = []
        for number in self.some(_TYPICAL_TENSORS):
            patches = self._tensors[number].read()[self.prefix :]
            energies.append(_energies(patches))
        return float(np.quantile(np.concatenate(energies), 0.9))

    def some(self, most: int, seed: int = 0) -> list[int]:
        """Numbers of at most `most` tensors, at random but always the same; smaller choices are parts of larger."""
        return [int(number) for number in np.random.default_rng(seed).permutation(len(self))[:most]]

    def tensors(self, numbers: Sequence[int]) -> Iterator[FitTensor]:
        """These tensors, one after the other."""
        for number in numbers:
            yield self[number]


def _energies(patches: FloatArray) -> FloatArray:
    """Squared distances (n,) of tokens (n, C) from their median."""
    return np.asarray(np.square(patches - np.median(patches, axis=0)).sum(axis=1))
