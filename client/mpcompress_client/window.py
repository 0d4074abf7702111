"""The items of a call between the user's two ends: admitted, and not yet handed out. Does no input or output."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from typing import Generic

from mpcompress_client.items import RequestT, ResponseT, ResultT
from mpcompress_client.slot import Slot

# Once all places are taken, this part of them must be free before more items are let in: who fills them wakes up for
# several, for waking up costs as much as sending a small one.
_FREE = 4


class Window(Generic[RequestT, ResponseT, ResultT]):
    """Bounded, so that neither a slow producer nor a slow consumer makes memory grow; hands out in its order.

    Args:
        most_items: items held at once.
        most_bytes: their bytes; one item more may be held, because its size is not known before.
        ordered: hand out in the order of the source; else as they finish.
    """

    def __init__(self, *, most_items: int, most_bytes: int, ordered: bool) -> None:
        self._most_items = most_items
        self._most_bytes = most_bytes
        self._ordered = ordered
        self._held = 0
        self._held_bytes = 0
        self._full = False
        # In order all that are held, else those with an outcome.
        self._next: deque[Slot[RequestT, ResponseT, ResultT]] = deque()

    @property
    def has_room(self) -> bool:
        """Whether another item may be held."""
        return not self._full and (not self._held or self._held_bytes < self._most_bytes)

    @property
    def empty(self) -> bool:
        """Whether everything has been handed out."""
        return not self._held

    def hold(self, slot: Slot[RequestT, ResponseT, ResultT]) -> None:
        """Takes a new slot."""
        self._held += 1
        self._held_bytes += slot.nbytes
        self._full = self._held >= self._most_items
        if self._ordered:
            self._next.append(slot)

    def finished(self, slot: Slot[RequestT, ResponseT, ResultT]) -> None:
        """Hears that a slot has its outcome."""
        if not self._ordered:
            self._next.append(slot)

    def pop(self) -> Slot[RequestT, ResponseT, ResultT] | None:
        """The next slot to hand out; None when there is none yet."""
        if not self._next or self._next[0].outcome is None:
            return None
        slot = self._next.popleft()
        self._held -= 1
        self._held_bytes -= slot.nbytes
        self._full = self._full and self._held > self._most_items - max(1, self._most_items // _FREE)
        return slot

    def cut(self) -> None:
        """Forgets what is not finished, and in order what comes after the first of these."""
        self._next = deque(takewhile(lambda slot: slot.outcome is not None, self._next))
        self._held = len(self._next)
