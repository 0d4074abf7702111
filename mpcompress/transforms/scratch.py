"""Buffers that are used again: on fresh memory the first touch of each page costs more than the arithmetic."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_KEPT_ELEMENTS = 1 << 22


class Scratch:
    """Named float32 buffers of one codec instance, which one thread at a time uses."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[np.float32]] = {}

    def take(self, name: str, *shape: int) -> NDArray[np.float32]:
        """An uninitialised array, valid until `name` is taken again. Large ones are not kept."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = np.empty(size, np.float32)
            if size <= _KEPT_ELEMENTS:
                self._buffers[name] = buffer
        return buffer[:size].reshape(shape)
