"""Many items over one stream, for threads: bounded look-ahead, results in order, reading and writing at once.

    caller's thread      grpc's sending thread                  reader thread
    results() ◄── slots ◄── pull, prepare, send ──► server ──► responses ──► slot.outcome

A slot is taken when an item is pulled from the user's iterable and freed when its result has been handed out, so that
neither a slow producer nor a slow consumer makes memory grow, and neither can block the other's direction.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Generic

import grpc

from mpcompress_client.errors import DeadlineError, MPCompressError, ServerError
from mpcompress_client.items import Item, RequestT, ResponseT, ResultT
from mpcompress_client.source import InputT, Source
from mpcompress_client.status import error_of_rpc

# How much longer than an item's own time limit the client waits: the server's answer says more than a local timeout.
GRACE_S = 10.0
# How long a finished stream may take to deliver its status before it is cancelled.
_END_S = 5.0


@dataclass(eq=False)
class _Slot(Generic[RequestT, ResponseT, ResultT]):
    item_id: int
    item: Item[RequestT, ResponseT, ResultT] | None
    nbytes: int
    outcome: ResultT | MPCompressError | None = None
    deadline: float | None = None


class Pipeline(Generic[InputT, RequestT, ResponseT, ResultT]):
    """One stream over which the items of a source travel.

    Args:
        open_call: opens the stream over an iterator of requests.
        prepare: makes an item of an input; its MPCompressError is that item's result.
        source: where the inputs come from.
        target: the server's address, for messages.
        look_ahead: items pulled and not yet handed out.
        look_ahead_bytes: their bytes; one item more may be pulled, because its size is not known before.
    """

    def __init__(
        self,
        *,
        open_call: Callable[[Iterator[RequestT]], Any],
        prepare: Callable[[InputT], Item[RequestT, ResponseT, ResultT]],
        source: Source[InputT],
        target: str,
        look_ahead: int,
        look_ahead_bytes: int,
    ) -> None:
        self._prepare: Callable[[InputT], Item[RequestT, ResponseT, ResultT]] = prepare
        self._source = source
        self._target = target
        self._look_ahead = look_ahead
        self._look_ahead_bytes = look_ahead_bytes
        self._changed = threading.Condition()
        self._slots: deque[_Slot[RequestT, ResponseT, ResultT]] = deque()
        self._unanswered: dict[int, _Slot[RequestT, ResponseT, ResultT]] = {}
        self._accepting = True
        self._pulling = False
        self._last_id = 0
        self._crash: BaseException | None = None
        self.failure: MPCompressError | None = None
        self._owner = threading.get_ident()
        self._call = open_call(self._requests())
        self._reader = threading.Thread(target=self._read, name="mpcompress-reader", daemon=True)
        self._reader.start()

    @property
    def admitted(self) -> int:
        """Items that were given a place on this stream."""
        return self._last_id

    def results(self) -> Iterator[ResultT | MPCompressError]:
        """Results in the order of the source, an error in the place of each item that failed.

        Ends when the source is exhausted or the stream takes no more items. Raises what the source's iterable raised.
        """
        while True:
            with self._changed:
                slot = self._next_answered()
            if slot is None:
                break
            assert slot.outcome is not None
            yield slot.outcome
        if self._crash is not None:
            raise self._crash

    def close(self, *, finished: bool = False) -> None:
        """Ends the stream; cancels what is not answered. `finished` waits a moment for the server's status."""
        with self._changed:
            self._accepting = False
            self._changed.notify_all()
        # The garbage collector may close an abandoned iterator in any thread, even in one that the reader waits for.
        joins = threading.get_ident() == self._owner
        if finished and joins:
            self._reader.join(_END_S)
        self._call.cancel()
        if joins:
            self._reader.join()

    def _next_answered(self) -> _Slot[RequestT, ResponseT, ResultT] | None:
        """Waits for the first slot's outcome; None when there will be no more. Called with the lock held."""
        while True:
            head = self._slots[0] if self._slots else None
            if head is None and not self._accepting and not self._pulling:
                return None
            if head is not None and head.outcome is not None:
                self._slots.popleft()
                self._changed.notify_all()
                return head
            left = None if head is None or head.deadline is None else head.deadline - time.monotonic()
            if left is not None and left <= 0:
                self._fail(DeadlineError(f"{self._target} did not answer an item within its time limit"))
                self._call.cancel()
            else:
                self._changed.wait(left)

    # ------------------------------------------------------------------------------------------ sending thread

    def _requests(self) -> Iterator[RequestT]:
        """What grpc sends; runs in grpc's own thread, which must never see an exception."""
        try:
            while (slot := self._admit()) is not None:
                item = slot.item
                if item is None:
                    continue
                with self._changed:
                    slot.deadline = time.monotonic() + item.timeout_s + GRACE_S
                    self._changed.notify_all()
                for request in item.requests(slot.item_id):
                    if slot.outcome is not None:
                        # Answered before it was all sent: an error. The rest would be dropped.
                        break
                    yield request
        except Exception as error:
            with self._changed:
                self._fail(ServerError(f"sending to {self._target} failed: {error!r}"))

    def _admit(self) -> _Slot[RequestT, ResponseT, ResultT] | None:
        """Waits for room, pulls and prepares the next item; None at the end of the source or stream."""
        with self._changed:
            while self._accepting and not self._room():
                self._changed.wait()
            if not self._accepting:
                return None
            self._pulling = True
        slot: _Slot[RequestT, ResponseT, ResultT] | None = None
        crash: BaseException | None = None
        try:
            pulled = self._source.pull()
            if pulled:
                slot = self._slot(pulled[0])
        except BaseException as error:
            # The user's own exception, of whatever kind: it belongs to the caller's thread.
            crash = error
        with self._changed:
            self._pulling = False
            if slot is None:
                self._accepting = False
                self._crash = self._crash or crash
            elif self._accepting or self.failure is not None:
                self._register(slot)
            else:
                self._source.put_back(pulled[0])
                slot = None
            self._changed.notify_all()
        return slot

    def _room(self) -> bool:
        return len(self._slots) < self._look_ahead and (
            not self._slots or sum(slot.nbytes for slot in self._slots) < self._look_ahead_bytes
        )

    def _slot(self, value: InputT) -> _Slot[RequestT, ResponseT, ResultT]:
        try:
            item = self._prepare(value)
        except MPCompressError as error:
            return _Slot(item_id=0, item=None, nbytes=0, outcome=error)
        return _Slot(item_id=0, item=item, nbytes=item.nbytes)

    def _register(self, slot: _Slot[RequestT, ResponseT, ResultT]) -> None:
        self._last_id += 1
        slot.item_id = self._last_id
        self._slots.append(slot)
        if slot.outcome is None:
            if self.failure is None:
                self._unanswered[slot.item_id] = slot
            else:
                slot.outcome, slot.item = self.failure, None

    # ------------------------------------------------------------------------------------------- reader thread

    def _read(self) -> None:
        error: MPCompressError | None = None
        try:
            for response in self._call:
                self._take(response)
        except grpc.RpcError as rpc_error:
            error = error_of_rpc(rpc_error, self._target)
        except Exception as crash:
            error = ServerError(f"reading the answer of {self._target} failed: {crash!r}")
            self._call.cancel()
        with self._changed:
            if error is None and (self._unanswered or self._accepting):
                error = ServerError(f"{self._target} ended the stream without answering all items")
            if error is not None:
                self._fail(error)

    def _take(self, response: ResponseT) -> None:
        if response.WhichOneof("event") == "draining":
            with self._changed:
                self._accepting = False
                self._changed.notify_all()
            return
        slot = self._unanswered.get(response.item_id)
        item = None if slot is None else slot.item
        if slot is None or item is None:
            return
        outcome: ResultT | MPCompressError | None
        try:
            outcome = item.receive(response)
        except MPCompressError as error:
            outcome = error
        if outcome is not None:
            with self._changed:
                # The result may wait for its turn; the tensors that it came of need not.
                slot.outcome, slot.item = outcome, None
                self._unanswered.pop(slot.item_id, None)
                self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------- endings

    def _fail(self, error: MPCompressError) -> None:
        """Gives every unanswered item the error; takes no more. Called with the lock held."""
        if self.failure is None:
            self.failure = error
        self._accepting = False
        for slot in self._unanswered.values():
            if slot.outcome is None:
                slot.outcome, slot.item = error, None
        self._unanswered.clear()
        self._changed.notify_all()


def run(
    *,
    errors: str,
    source: Source[InputT],
    make: Callable[[Source[InputT]], Pipeline[InputT, RequestT, ResponseT, ResultT]],
) -> Generator[ResultT | MPCompressError, None, None]:
    """Results of a whole source over as many streams as it takes: a stream that drains or fails is followed by another.

    Args:
        errors: "raise" ends at the first error; "return" gives it in its item's place.
        source: where the inputs come from.
        make: opens a stream for what is left of the source.
    """
    while not source.done:
        pipeline = make(source)
        finished = False
        try:
            for outcome in pipeline.results():
                if errors == "raise" and isinstance(outcome, MPCompressError):
                    raise outcome
                yield outcome
            finished = pipeline.failure is None
        finally:
            pipeline.close(finished=finished)
        if pipeline.failure is not None and pipeline.admitted == 0:
            # The stream broke before it took an item: without this, a dead server would be called for ever.
            if not source.pull():
                return
            if errors == "raise":
                raise pipeline.failure
            yield pipeline.failure
