"""Which items of a running batch nobody waits for any more, as the codec sees it, in this process or in a worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from mpcompress.codec import Array


class DroppedError(Exception):
    """Outcome of an item that nobody waits for: its codec did no more for it."""


class Dropped:
    """One flag per item of a call. Set by the event loop, read by the thread or process that runs the call.

    Args:
        count: items of the call.
        flags: int8 (count,), nonzero for dropped; None for new ones.
    """

    def __init__(self, count: int, flags: Array | None = None) -> None:
        self._flags = np.zeros(count, np.int8) if flags is None else flags
        self._mirror: Array | None = None
        self._listeners: dict[int, Callable[[int, int], None]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._flags)

    def __getitem__(self, index: int) -> bool:
        return bool(self._flags[index])

    def drop(self, index: int) -> None:
        """Nobody waits for this item any more."""
        with self._lock:
            self._flags[index] = 1
            if self._mirror is not None:
                self._mirror[index] = 1

    def listen(self, index: int, listener: Callable[[int, int], None]) -> None:
        """From now on `listener` hears (parts done, parts in all) of this item, in the thread that runs the call.

        Codecs in processes of their own are not heard.
        """
        self._listeners[index] = listener

    def tell(self, index: int, done: int, total: int) -> None:
        """Parts of an item are done."""
        listener = self._listeners.get(index)
        if listener is not None:
            listener(done, total)

    def mirror(self, flags: Array | None) -> None:
        """From now on keeps a copy in `flags`, memory that another process reads; None ends that."""
        with self._lock:
            self._mirror = flags
            if flags is not None:
                flags[...] = self._flags

    def tokens(self) -> list[Token]:
        """A cancel token for each item."""
        return [Token(self, index) for index in range(len(self))]

    def __reduce__(self) -> Any:
        # A copy for another process: what happens later reaches it through the mirror only.
        return Dropped, (len(self),)


class Token:
    """Tells a codec whether one item is dropped, and who waits for the item how far it is."""

    def __init__(self, dropped: Dropped, index: int) -> None:
        self._dropped, self._index = dropped, index

    def is_set(self) -> bool:
        """Whether nobody waits for the item any more."""
        return self._dropped[self._index]

    def progress(self, done: int, total: int) -> None:
        """Parts of the item are done."""
        self._dropped.tell(self._index, done, total)
