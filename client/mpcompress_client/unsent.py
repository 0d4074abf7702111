"""The items of a call that wait to be sent, for the first time or again. Does no input or output."""

from __future__ import annotations

from bisect import insort
from typing import Generic

from mpcompress_client.items import RequestT, ResponseT, ResultT
from mpcompress_client.slot import Slot


class Unsent(Generic[RequestT, ResponseT, ResultT]):
    """Slots in the order of the source, each with the time from which it may be sent, `due`."""

    def __init__(self) -> None:
        self._slots: list[Slot[RequestT, ResponseT, ResultT]] = []

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, slot: Slot[RequestT, ResponseT, ResultT]) -> None:
        """Takes a slot to its place."""
        insort(self._slots, slot, key=lambda other: other.index)

    def choose(self, now: float, most: int, room: int) -> list[Slot[RequestT, ResponseT, ResultT]]:
        """Gives up the next slots whose time has come.

        One, or up to `most` if each of them fits one message and all together have at most `room` bytes.
        """
        chosen: list[Slot[RequestT, ResponseT, ResultT]] = []
        for slot in [slot for slot in self._slots if slot.due <= now][:most]:
            assert slot.item is not None
            nbytes = slot.item.inline_bytes
            room -= nbytes or 0
            if chosen and (nbytes is None or room < 0):
                break
            self._slots.remove(slot)
            chosen.append(slot)
            if nbytes is None:
                break
        return chosen

    def expired(self, now: float) -> list[Slot[RequestT, ResponseT, ResultT]]:
        """Gives up those whose time limit is over."""
        late = [slot for slot in self._slots if slot.deadline is not None and slot.deadline <= now]
        for slot in late:
            self._slots.remove(slot)
        return late

    def drain(self) -> list[Slot[RequestT, ResponseT, ResultT]]:
        """Gives up all."""
        slots, self._slots = self._slots, []
        return slots

    def deadlines(self) -> list[float]:
        """When those run out of time that have been sent before."""
        return [slot.deadline for slot in self._slots if slot.deadline is not None]

    def next_due(self) -> float | None:
        """When the first may be sent; None when none waits."""
        return min((slot.due for slot in self._slots), default=None)
