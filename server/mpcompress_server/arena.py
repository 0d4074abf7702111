"""Memory that the server and one worker process share, for the tensors of the call that the worker is in.

An anonymous file rather than a named segment: nothing is left behind however either process dies, and it is not
subject to the 64 MiB of /dev/shm that containers have by default, beyond which the first touch of a page is a SIGBUS
in the server.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpcompress.codec import Array, TensorSpec
from mpcompress_proto.tensors import dtype_named

_ALIGNMENT = 64


@dataclass(frozen=True)
class Ref:
    """Where an array lies in an arena: dtype name, shape, offset in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Size, bytes."""
        return int(np.prod(self.shape)) * dtype_named(self.dtype).itemsize


class Layout:
    """Places arrays one after the other, aligned."""

    def __init__(self) -> None:
        self.size = 0

    def place(self, spec: TensorSpec) -> Ref:
        """Room for one more array."""
        ref = Ref(spec.dtype, spec.shape, self.size)
        self.size += -(-ref.nbytes // _ALIGNMENT) * _ALIGNMENT
        return ref


class Arena:
    """A file descriptor of anonymous memory.

    Args:
        descriptor: one that `create` made, here or in the parent process.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    @classmethod
    def create(cls) -> Arena:
        """A new one, empty."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("mpcompress-tensors"))
        with tempfile.TemporaryFile() as file:
            return cls(os.dup(file.fileno()))

    def resize(self, size: int) -> None:
        """Sets the size, bytes; 0 gives all memory back."""
        os.ftruncate(self.descriptor, size)

    def map(self, size: int) -> mmap.mmap:
        """Its first `size` bytes, shared. At least 1."""
        return mmap.mmap(self.descriptor, size)

    def close(self) -> None:
        """Closes the descriptor; memory goes when both processes have."""
        os.close(self.descriptor)


def view(memory: Any, ref: Ref) -> Array:
    """The array at a ref, without a copy."""
    flat = np.frombuffer(memory, dtype_named(ref.dtype), count=int(np.prod(ref.shape)), offset=ref.offset)
    return flat.reshape(ref.shape)
