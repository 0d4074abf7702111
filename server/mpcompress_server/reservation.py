"""Budgets that streams share: who comes first waits first, and nobody waits without a bound."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence


class ByteBudget:
    """Hands out bytes, and places for items, up to a limit of each, first come first served.

    A large request at the head is not overtaken by small ones behind it, so it cannot starve. Lives in one event loop.

    Args:
        limit: bytes that may be reserved at the same time.
        max_items: items that may have reserved some.
    """

    def __init__(self, limit: int, max_items: int | None = None) -> None:
        self.limit = limit
        self.max_items = max_items
        self.used = 0
        self.items = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Requests that wait for room."""
        return len(self._waiting)

    async def reserve(self, nbytes: int) -> Reservation:
        """Waits until an item of `nbytes` fits; bound it with asyncio.timeout. The caller checked nbytes <= limit."""
        await self.take(nbytes)
        return Reservation([(self, nbytes)])

    async def take(self, nbytes: int) -> None:
        """As `reserve`, for one who gives back by `give_back`."""
        if self.take_at_once(nbytes):
            return
        place = (nbytes, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        try:
            await place[1]
        except asyncio.CancelledError:
            if place[1].done() and not place[1].cancelled():
                self.give_back(nbytes, items=1)  # granted in the same turn of the loop in which the wait was given up
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(place)
                self._grant()
            raise

    def take_at_once(self, nbytes: int) -> bool:
        """As `take`, when nobody has to wait; whether it was so."""
        if self._waiting or not self._fits(nbytes):
            return False
        self._add(nbytes)
        return True

    def give_back(self, nbytes: int, *, items: int = 0) -> None:
        """Returns bytes and places."""
        self.used -= nbytes
        self.items -= items
        self._grant()

    def _fits(self, nbytes: int) -> bool:
        return self.used + nbytes <= self.limit and (self.max_items is None or self.items < self.max_items)

    def _add(self, nbytes: int) -> None:
        self.used += nbytes
        self.items += 1

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            nbytes, future = self._waiting.popleft()
            if future.cancelled():
                continue
            self._add(nbytes)
            future.set_result(None)


class Reservation:
    """What belongs to one item until it is released. Releasing twice is harmless.

    Args:
        shares: budgets, and the bytes of each that the item has.
    """

    def __init__(self, shares: Sequence[tuple[ByteBudget, int]]) -> None:
        self._shares = list(shares)

    def shrink(self, nbytes: int) -> None:
        """Keeps only `nbytes` of each budget, where that is less."""
        for index, (budget, held) in enumerate(self._shares):
            if nbytes < held:
                self._shares[index] = (budget, nbytes)
                budget.give_back(held - nbytes)

    def release(self) -> None:
        """Gives everything back."""
        shares, self._shares = self._shares, []
        for budget, held in shares:
            budget.give_back(held, items=1)


def reserve_at_once(budgets: Sequence[ByteBudget], nbytes: int) -> Reservation | None:
    """As `reserve_all`, when it need not wait; else None, and nothing is reserved."""
    shares: list[tuple[ByteBudget, int]] = []
    for budget in budgets:
        share = min(nbytes, budget.limit)
        if not budget.take_at_once(share):
            Reservation(shares).release()
            return None
        shares.append((budget, share))
    return Reservation(shares)


async def reserve_all(budgets: Sequence[ByteBudget], nbytes: int) -> Reservation:
    """Waits until an item of `nbytes`, or as much as a budget ever has, fits all budgets, one after the other.

    The narrowest comes first: who waits for the last has what it needs of the others, and whoever is before it in the
    last will give back without asking the others for more. So nobody waits for ever.
    """
    shares: list[tuple[ByteBudget, int]] = []
    try:
        for budget in budgets:
            share = min(nbytes, budget.limit)
            await budget.take(share)
            shares.append((budget, share))
    except BaseException:
        Reservation(shares).release()
        raise
    return Reservation(shares)
