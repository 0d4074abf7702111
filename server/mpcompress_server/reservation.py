"""A byte budget that all streams share: who comes first waits first, and nobody waits without a bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque


class ByteBudget:
    """Hands out bytes up to a limit, first come first served.

    A large request at the head is not overtaken by small ones behind it, so it cannot starve. Lives in one event loop.

    Args:
        limit: bytes that may be reserved at the same time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiting)

    async def reserve(self, nbytes: int) -> Reservation:
        """Waits until `nbytes` fit; bound it with asyncio.timeout. The caller has checked nbytes <= limit."""
        if not self._waiting and self.used + nbytes <= self.limit:
            self.used += nbytes
            return Reservation(self, nbytes)
        place = (nbytes, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        try:
            await place[1]
        except asyncio.CancelledError:
            if place[1].done() and not place[1].cancelled():
                self.give_back(nbytes)  # granted in the same turn of the loop in which the wait was given up
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(place)
                self._grant()
            raise
        return Reservation(self, nbytes)

    def give_back(self, nbytes: int) -> None:
        """Returns bytes; used by Reservation."""
        self.used -= nbytes
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.limit:
            nbytes, future = self._waiting.popleft()
            if future.cancelled():
                continue
            self.used += nbytes
            future.set_result(None)


class Reservation:
    """Bytes that belong to one item until they are released. Releasing twice is harmless."""

    def __init__(self, budget: ByteBudget, nbytes: int) -> None:
        self._budget = budget
        self.nbytes = nbytes

    def shrink(self, nbytes: int) -> None:
        """Keeps only `nbytes`, when that is less."""
        if nbytes < self.nbytes:
            surplus, self.nbytes = self.nbytes - nbytes, nbytes
            self._budget.give_back(surplus)

    def release(self) -> None:
        """Gives everything back."""
        self.shrink(0)
