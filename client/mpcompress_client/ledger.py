"""The books of a call with many items: what was pulled, sent, answered and handed out. Does no input or output.

    source ── admit ──► to send ── next_to_send ──► under way ── take, settle ──► answered ── pop ──► caller
                          ▲                            │
                          └── an error that may pass, or the stream broke ──┘

A slot is taken when an item is pulled from the user's iterable and freed when its result has been handed out; the
`Window` bounds how many are taken. The drivers for threads and for asyncio share it; that
for threads holds its lock around every call but `receive` and `parcels`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Generic

from mpcompress_client.errors import DeadlineError, MPCompressError, ServerError, ServerUnavailableError
from mpcompress_client.items import Item, RequestT, ResponseT, ResultT
from mpcompress_client.progress import Events, ProgressCallback
from mpcompress_client.retry import Breaks, Contact, RetryPolicy, may_succeed_later
from mpcompress_client.slot import Slot
from mpcompress_client.unsent import Unsent
from mpcompress_client.window import Window
from mpcompress_proto.parcel import Parcel, bundled

# Slots, and the seconds that each still has.
Chosen = list[tuple[Slot[RequestT, ResponseT, ResultT], float]]

# How much longer than an item's own time limit the client waits: the server's answer says more than a local timeout.
GRACE_S = 10.0

_DRAINING = "SERVER_DRAINING"


class Ledger(Generic[RequestT, ResponseT, ResultT]):
    """The books of one call.

    Args:
        target: the server's address, for messages.
        look_ahead: items admitted and not yet handed out.
        look_ahead_bytes: their bytes; one item more may be admitted, because its size is not known before.
        ordered: hand out in the order of the source; else as they finish.
        policy: what is sent again.
        contact: shared by all calls of a client.
        progress: the user's callback, or None.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        target: str,
        look_ahead: int,
        look_ahead_bytes: int,
        ordered: bool,
        policy: RetryPolicy,
        contact: Contact,
        progress: ProgressCallback | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._policy = policy
        self._breaks = Breaks(policy, contact)
        self.clock = clock
        self._admitted = 0
        self._window: Window[RequestT, ResponseT, ResultT] = Window(
            most_items=look_ahead, most_bytes=look_ahead_bytes, ordered=ordered
        )
        self._unsent: Unsent[RequestT, ResponseT, ResultT] = Unsent()
        self._under_way: dict[int, Slot[RequestT, ResponseT, ResultT]] = {}
        self._responded = False
        self._stray_error: MPCompressError | None = None
        self._aborted = False
        self._events = Events(progress)
        self.pulling = False
        self.exhausted = False
        self.crash: BaseException | None = None

    # ------------------------------------------------------------------------------------------------ admission

    def may_pull(self) -> bool:
        """Whether the next item may be pulled from the source now; sets nothing."""
        return self._window.has_room and not self.pulling and not self.exhausted

    def admit(self, item: Item[RequestT, ResponseT, ResultT] | MPCompressError) -> None:
        """Gives an item that was pulled its slot; an error in its place is its result."""
        if self._aborted:
            return
        slot: Slot[RequestT, ResponseT, ResultT]
        failed: MPCompressError | None
        if isinstance(item, MPCompressError):
            slot, failed = Slot(index=self._admitted, item=None, nbytes=0), item
        else:
            slot, failed = Slot(index=self._admitted, item=item, nbytes=item.nbytes), self._stray_error
            self._stray_error = None
        self._admitted += 1
        self._window.hold(slot)
        if failed is not None:
            self._finish(slot, failed)
        else:
            self._unsent.add(slot)

    def end(self, crash: BaseException | None = None) -> None:
        """No more items: the source is exhausted, or raised `crash`."""
        self.exhausted = True
        self.crash = self.crash or crash

    def abort(self, crash: BaseException) -> None:
        """Ends everything at once: only results that are there are still handed out, up to the first gap."""
        self._aborted = True
        self._under_way.clear()
        self._unsent.drain()
        self._window.cut()
        self.end(crash)

    # -------------------------------------------------------------------------------------------------- sending

    def next_to_send(self, most: int = 1, room: int = 0) -> Chosen[RequestT, ResponseT, ResultT]:
        """The next slots, as `Unsent.choose` takes them, now under way, and the seconds that each still has."""
        now = self.clock()
        self._expire_unsent(now)
        chosen: Chosen[RequestT, ResponseT, ResultT] = []
        for slot in self._unsent.choose(now, most, room):
            assert slot.item is not None
            if slot.deadline is None:
                slot.deadline = now + slot.item.timeout_s
            slot.item.restart()
            self._under_way[slot.item_id] = slot
            chosen.append((slot, slot.deadline - now))
        return chosen

    def parcels(self, chosen: Chosen[RequestT, ResponseT, ResultT]) -> Iterator[Parcel[RequestT]]:
        """What travels of these slots: of one its messages, of several one bundle. Takes nothing that needs a lock."""
        # One whose time ran out meanwhile has no item.
        items = [(slot, slot.item, left_s) for slot, left_s in chosen if slot.item is not None]
        if len(items) > 1:
            yield bundled([one for slot, item, left_s in items for one in item.requests(slot.item_id, left_s)])
            return
        for slot, item, left_s in items:
            for request in item.requests(slot.item_id, left_s):
                if not self.is_under_way(slot):
                    # Answered before it was all sent: an error. The rest would be dropped.
                    break
                yield request

    def is_under_way(self, slot: Slot[RequestT, ResponseT, ResultT]) -> bool:
        """Whether an answer to it is still to come. The rest of a refused item would only be dropped."""
        return self._under_way.get(slot.item_id) is slot

    @property
    def admitted(self) -> int:
        """Items admitted so far: the index of the next."""
        return self._admitted

    @property
    def waiting(self) -> bool:
        """Whether there is something to send, now or later."""
        return bool(self._unsent)

    @property
    def all_sent(self) -> bool:
        """Whether nothing will have to be sent but what fails from now on."""
        return self.exhausted and not self.pulling and not self._unsent

    @property
    def finished(self) -> bool:
        """Whether every result has been handed out."""
        return self.exhausted and not self.pulling and self._window.empty

    @property
    def settled(self) -> bool:
        """Whether every item has its result."""
        return self.all_sent and not self._under_way

    @property
    def has_stray_error(self) -> bool:
        """Whether a stream broke before it took an item: the next one admitted gets its error, and none is opened."""
        return self._stray_error is not None

    # ---------------------------------------------------------------------------------------------- the answers

    def receive(
        self, parcel: Parcel[Any]
    ) -> tuple[Slot[RequestT, ResponseT, ResultT], ResultT | MPCompressError] | None:
        """Gives a response to its item; a slot and its outcome when it was the last one.

        Only the driver's reader calls it. Raises what the user's progress callback raises.
        """
        response = parcel.message
        slot = self._under_way.get(response.item_id)
        item = None if slot is None else slot.item
        if slot is None or item is None:
            return None
        self._responded = True
        self._breaks.answered()
        if response.WhichOneof("event") == "progress":
            self._events.at_once(slot.index, response.progress)
            return None
        try:
            outcome = item.receive(parcel)
        except MPCompressError as error:
            return slot, error
        return None if outcome is None else (slot, outcome)

    def settle(self, slot: Slot[RequestT, ResponseT, ResultT], outcome: ResultT | MPCompressError) -> bool:
        """Takes an item's outcome; True for an error that may pass: the item is sent again."""
        if not self.is_under_way(slot):
            return False
        del self._under_way[slot.item_id]
        if isinstance(outcome, MPCompressError) and may_succeed_later(outcome):
            slot.attempts += 1
            return self._again(slot, outcome, self._policy.delay_s(slot.attempts, outcome))
        self._finish(slot, outcome)
        return False

    def tell(self) -> None:
        """Tells the user's callback what has happened, and raises what it raises. Only the driver's reader calls it."""
        self._events.tell()

    def pop(self) -> Slot[RequestT, ResponseT, ResultT] | None:
        """The next slot to hand out; None when there is none yet."""
        return self._window.pop()

    # ------------------------------------------------------------------------------------------------ the stream

    def stream_opened(self) -> None:
        """A new stream: no answer came over it yet."""
        self._responded = False

    def draining(self) -> None:
        """The server said that it stops: a server is there, but no item moved."""
        self._breaks.contact.made = True

    def stream_ended(self, error: MPCompressError | None, *, early: bool = False) -> float:
        """Sends again, or fails, what a stream has not answered. Returns the pause before the next, seconds.

        Args:
            error: why it ended; None: properly, or because it was given up.
            early: it ended while it still took items.
        """
        if error is None and (self._under_way or (early and not self._responded and not self.all_sent)):
            error = ServerError(f"{self._target} ended the stream without answering all items")
        if error is None:
            return 0.0
        if error.reason == _DRAINING and self._responded and not self._under_way:
            # It finished what it had taken: nobody lost anything.
            return self._policy.delay_s(1)
        if not isinstance(error, ServerUnavailableError):
            self._fail(error, unsent=not self._under_way)
            return 0.0
        responded, now = self._responded, self.clock()
        if not self._breaks.another(now):
            self._fail(error, unsent=True)
            return 0.0
        delay_s = self._policy.delay_s(self._breaks.count, error)
        for slot in list(self._under_way.values()):
            # One that breaks every stream must not be sent for ever; a server that is away is not the item's fault.
            slot.attempts += responded
            self._again(slot, error, delay_s)
        self._under_way.clear()
        return delay_s

    # ------------------------------------------------------------------------------------------------- deadlines

    def expire(self) -> bool:
        """Fails what is past its time limit; True when the stream owes an answer and should be given up."""
        now = self.clock()
        self._expire_unsent(now)
        if not any(slot.deadline is not None and slot.deadline + GRACE_S <= now for slot in self._under_way.values()):
            return False
        self._fail(self._late(), unsent=False)
        return True

    def next_deadline_s(self) -> float | None:
        """Seconds until `expire` may have something to do; None for never."""
        times = [slot.deadline + GRACE_S for slot in self._under_way.values() if slot.deadline is not None]
        times += self._unsent.deadlines()
        return max(0.0, min(times) - self.clock()) if times else None

    def next_due_s(self) -> float | None:
        """Seconds until `next_to_send` may have something that waits now; None for never."""
        due = self._unsent.next_due()
        return None if due is None else max(0.0, due - self.clock())

    def _expire_unsent(self, now: float) -> None:
        for slot in self._unsent.expired(now):
            self._finish(slot, slot.error or self._late())

    def _late(self) -> MPCompressError:
        return DeadlineError(
            f"{self._target} did not answer an item within its time limit; a larger timeout_s waits longer"
        )

    # --------------------------------------------------------------------------------------------------- endings

    def _again(self, slot: Slot[RequestT, ResponseT, ResultT], error: MPCompressError, delay_s: float) -> bool:
        """Sends it again later, if there is a later."""
        due = self.clock() + delay_s
        if slot.attempts >= self._policy.attempts or (slot.deadline is not None and due >= slot.deadline):
            self._finish(slot, error)
            return False
        slot.error, slot.due = error, due
        self._unsent.add(slot)
        self._events.later(slot.index, "resubmitted")
        return True

    def _fail(self, error: MPCompressError, *, unsent: bool) -> None:
        failed = list(self._under_way.values())
        self._under_way.clear()
        if unsent:
            failed += self._unsent.drain()
        for slot in failed:
            self._finish(slot, error)
        if not failed:
            self._stray_error = error

    def _finish(self, slot: Slot[RequestT, ResponseT, ResultT], outcome: ResultT | MPCompressError) -> None:
        # The result may wait for its turn; the tensors that it came of need not.
        slot.outcome, slot.item, slot.error = outcome, None, None
        self._window.finished(slot)
        self._events.later(slot.index, "failed" if isinstance(outcome, MPCompressError) else "done")
