"""Whether an item may come in: room on its stream, its connection and the server, and a chance to be in time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mpcompress_server.errors import DeadlineUnreachableError, ItemTimeoutError, NoRoomError
from mpcompress_server.items import Item
from mpcompress_server.reservation import ByteBudget, reserve_all, reserve_at_once
from mpcompress_server.scheduler import Scheduler, size_class
from mpcompress_server.settings import ROOM_PER_ITEM, Limits

# Every item costs this much beyond its tensors: header, messages, bookkeeping.
ITEM_OVERHEAD_BYTES = 8192


class Connections:
    """The budgets of the server's connections, each for as long as the connection has a call.

    Args:
        limits: of the server.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._open: dict[str, tuple[ByteBudget, int]] = {}

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def budget(self, peer: str) -> Iterator[ByteBudget]:
        """The budget of the connection `peer`, while one of its calls runs."""
        limits = self._limits
        nbytes = limits.max_inflight_bytes_per_connection or sys.maxsize
        fresh = ByteBudget(nbytes, limits.max_inflight_items_per_connection), 0
        budget, calls = self._open.get(peer, fresh)
        self._open[peer] = budget, calls + 1
        try:
            yield budget
        finally:
            budget, calls = self._open[peer]
            self._open[peer] = budget, calls - 1
            if calls == 1:
                del self._open[peer]


class Admission:
    """Lets the items of one stream in.

    Args:
        limits: of the server.
        budgets: of the connection and of the server.
        scheduler: knows how long items wait.
        stream: the stream, for the scheduler.
    """

    def __init__(self, *, limits: Limits, budgets: Sequence[ByteBudget], scheduler: Scheduler, stream: object) -> None:
        self._limits = limits
        self._budgets = budgets
        self._scheduler = scheduler
        self._stream = stream
        self._slots = asyncio.Semaphore(limits.max_items_per_stream)
        self._clock = asyncio.get_running_loop().time

    async def admit(self, item: Item, call_deadline: float) -> None:
        """Gives an item its slot and its reservation, waiting for both within one bound.

        Raises:
            DeadlineUnreachableError: it cannot be done in time, as those before it tell.
            NoRoomError: the bound is over.
            ItemTimeoutError: the item's own timeout is over.
        """
        self._check_deadline(item, min(item.deadline, call_deadline))
        copies = ROOM_PER_ITEM if item.plan.loaded.entry.isolation == "process" else 1
        need = copies * item.plan.nbytes + item.plan.extra_bytes + ITEM_OVERHEAD_BYTES
        if not self._slots.locked():
            item.reservation = reserve_at_once(self._budgets, need)
            if item.reservation is not None:
                await self._slots.acquire()  # without waiting: there is one
                return
        until = self._clock() + self._limits.reservation_timeout_s
        slot = False
        try:
            async with asyncio.timeout_at(min(until, item.deadline)):
                await self._slots.acquire()
                slot = True
                item.reservation = await reserve_all(self._budgets, need)
        except TimeoutError:
            if slot:
                self._slots.release()
            if until < item.deadline:
                what = "memory" if slot else "place on this stream"
                raise NoRoomError(f"no {what} within {self._limits.reservation_timeout_s} s") from None
            raise ItemTimeoutError("the item's timeout ran out while it waited for memory") from None
        except BaseException:
            if slot:
                self._slots.release()
            raise

    def leave(self) -> None:
        """An item that was let in has its final event: its slot is free."""
        self._slots.release()

    def _check_deadline(self, item: Item, deadline: float) -> None:
        plan = item.plan
        kind = size_class(plan.compress, plan.nbytes)
        expected_s = self._scheduler.expected_s(plan.loaded.id, self._stream, kind)
        left_s = deadline - self._clock()
        if expected_s > left_s:
            error = DeadlineUnreachableError(
                f"its time limit leaves {max(left_s, 0.0):.1f} s, and the items before it take about {expected_s:.1f} s"
            )
            error.retry_after_s = expected_s
            raise error
