"""One item of one stream, from its header to its final event."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from dataclasses import dataclass, field

from mpcompress_proto.tensors import Receiver
from mpcompress_server.plan import Plan
from mpcompress_server.reservation import Reservation
from mpcompress_server.scheduler import Job


@dataclass(kw_only=True, eq=False)
class Item:
    """What the server knows of an item while it lives.

    Attributes:
        id: the client's.
        plan: what its header asks for.
        accepted_at: loop time of its header.
        deadline: loop time at which it fails.
        call_deadline: loop time at which its call ends.
        want_progress: whether the client wants events in between.
        receiver: collects its bytes; None before they may come and after all have.
        reservation: its memory; None before it is granted.
        job: its work, once all bytes are there.
        timer: fails it at its deadline.
        answered: its final event is queued, or nobody is left to read it.
        sending: that event is its result, which is not written yet.
    """

    id: int
    plan: Plan
    accepted_at: float
    deadline: float
    want_progress: bool
    call_deadline: float = math.inf
    receiver: Receiver | None = None
    reservation: Reservation | None = None
    job: Job | None = None
    timer: asyncio.TimerHandle | None = None
    answered: bool = False
    sending: bool = False

    def is_open(self) -> bool:
        """Whether it has no final event yet."""
        return not self.answered

    def release(self) -> None:
        """Lets go of memory and budget."""
        self.receiver = None
        if self.reservation is not None:
            self.reservation.release()


@dataclass
class RecentIds:
    """The last ids of items that failed before all their bytes came: late chunks of theirs are legal.

    A client sends an item's chunks right after its header, so only the newest can be late; the bound keeps a client
    that fails a million items from costing memory.
    """

    limit: int = 4096
    _ids: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def add(self, item_id: int) -> None:
        """Remembers an id, and forgets the oldest beyond the limit."""
        self._ids[item_id] = None
        self._ids.move_to_end(item_id)
        if len(self._ids) > self.limit:
            self._ids.popitem(last=False)

    def discard(self, item_id: int) -> None:
        """Forgets an id: a new item has it."""
        self._ids.pop(item_id, None)

    def __contains__(self, item_id: int) -> bool:
        return item_id in self._ids
