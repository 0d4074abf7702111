"""What a checked header asks for, whichever RPC it came by and wherever its work is done."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property

from mpcompress.codec import Array
from mpcompress_server.answers import Answer
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.scheduler import Finished, Work


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a checked header asks for.

    Args:
        loaded: the codec that does it.
        sizes: bytes of each part that the client sends.
        result_bytes: most bytes that the result takes.
        extra_bytes: what else the item takes while it lives, once.
        compress: whether tensors come and a unit goes.
        key: items of equal keys may share a batch.
        work: makes the work of the parts' buffers; raises WireError for bytes that cannot be right.
        answer: makes the answer of what the codec gave.
    """

    loaded: LoadedCodec
    sizes: list[int]
    result_bytes: int
    extra_bytes: int = 0
    compress: bool
    key: Hashable
    work: Callable[[list[Array]], Work]
    answer: Callable[[Finished], Answer]

    @cached_property
    def nbytes(self) -> int:
        """What comes and what it becomes."""
        return sum(self.sizes) + self.result_bytes
