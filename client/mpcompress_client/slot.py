"""The place of one item in a call with many. Does no input or output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic

from mpcompress_client.errors import MPCompressError
from mpcompress_client.items import Item, RequestT, ResponseT, ResultT


@dataclass(eq=False)
class Slot(Generic[RequestT, ResponseT, ResultT]):
    """One item's place. `index` counts from 0 in the order of the source; `item_id` is one more."""

    index: int
    item: Item[RequestT, ResponseT, ResultT] | None
    nbytes: int
    outcome: ResultT | MPCompressError | None = None
    error: MPCompressError | None = None
    attempts: int = 0
    deadline: float | None = None
    due: float = 0.0

    @property
    def item_id(self) -> int:
        """What the stream calls it."""
        return self.index + 1
