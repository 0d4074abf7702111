"""Many items over one stream after another, for threads: reading and writing at once.

    caller's thread      grpc's sending thread                       reader thread
    results() ◄── ledger ◄── pull, prepare, send ──► server ──► responses ──► ledger

The reader thread opens the streams, one at a time, and the next one when a stream breaks or drains. The books are in
`ledger`; this is who does what when.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic

import grpc

from mpcompress_client import ledger as books
from mpcompress_client.errors import MPCompressError, ServerError
from mpcompress_client.items import Item, RequestT, ResponseT, ResultT
from mpcompress_client.ledger import Ledger
from mpcompress_client.slot import Slot
from mpcompress_client.source import InputT, Source
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.parcel import Parcel

# How long a finished stream may take to deliver its status before it is cancelled.
_END_S = 5.0


class Pipeline(Generic[InputT, RequestT, ResponseT, ResultT]):
    """The streams over which the items of a source travel.

    Args:
        open_call: opens a stream over an iterator of requests, with a time limit in seconds or None; what it raises
            ends everything.
        prepare: makes an item of an input and its index; its MPCompressError is that item's result.
        source: where the inputs come from.
        ledger: the books.
        target: the server's address, for messages.
        limit_s: for a call with one item: its time limit. The caller's thread reads then, which saves one, and the
            stream has gRPC's own deadline. None: a thread reads.
    """

    def __init__(
        self,
        *,
        open_call: Callable[[Iterator[Parcel[RequestT]], float | None], Any],
        prepare: Callable[[InputT, int], Item[RequestT, ResponseT, ResultT]],
        source: Source[InputT],
        ledger: Ledger[RequestT, ResponseT, ResultT],
        target: str,
        limit_s: float | None = None,
    ) -> None:
        self._open_call = open_call
        self._limit_s = limit_s
        self._prepare: Callable[[InputT, int], Item[RequestT, ResponseT, ResultT]] = prepare
        self._source = source
        self._ledger: Ledger[RequestT, ResponseT, ResultT] = ledger
        self._target = target
        # One lock and two conditions, one for the caller and one for all others: a thread that is woken in vain costs
        # as much as a message. The time at which the caller wakes by itself is on the ledger's clock. It may be early:
        # to find it anew for each result takes longer than all else here. What would make it late must change it.
        lock = threading.RLock()
        self._answered = threading.Condition(lock)
        self._changed = threading.Condition(lock)
        self._caller_wakes = 0.0
        self._closed = False
        # The stream that takes items: None while there is none, and once it drains, breaks or is given up.
        self._stream: object | None = None
        self._call: Any = None
        self._given_up = False
        self._owner = threading.get_ident()
        self._reader: threading.Thread | None = None
        if limit_s is None:
            self._reader = threading.Thread(target=self._run, name="mpcompress-reader", daemon=True)
            self._reader.start()

    # ------------------------------------------------------------------------------------------ caller's thread

    def results(self) -> Iterator[tuple[int, ResultT | MPCompressError]]:
        """Results with the index of their item, an error in the place of each item that failed.

        Raises what the source's iterable or the progress callback raised, after the results that are there.
        """
        if self._reader is None:
            self._run()
        while True:
            with self._answered:
                slot = self._ledger.pop()
                while slot is None and not self._ledger.finished:
                    now = self._ledger.clock()
                    if self._caller_wakes <= now:
                        if self._ledger.expire():
                            self._give_up_stream()
                        left_s = self._ledger.next_deadline_s()
                        self._caller_wakes = math.inf if left_s is None else now + left_s
                    else:
                        self._answered.wait(None if self._caller_wakes == math.inf else self._caller_wakes - now)
                    slot = self._ledger.pop()
                if slot is None or self._ledger.may_pull():
                    self._changed.notify_all()
            if slot is None:
                break
            assert slot.outcome is not None
            yield slot.index, slot.outcome
        if self._ledger.crash is not None:
            raise self._ledger.crash

    def close(self, *, finished: bool = False) -> None:
        """Ends the streams; cancels what is not answered. `finished` waits a moment for the server's status."""
        # The garbage collector may close an abandoned iterator in any thread, even in one that the reader waits for.
        reader = self._reader if threading.get_ident() == self._owner else None
        if finished and reader is not None:
            reader.join(_END_S)
        with self._changed:
            self._closed = True
            self._give_up_stream()
        if reader is not None:
            reader.join()

    def _give_up_stream(self) -> None:
        self._stream, self._given_up = None, True
        if self._call is not None:
            self._call.cancel()
        self._wake_all()

    def _wake_all(self) -> None:
        self._caller_wakes = 0.0
        self._answered.notify_all()
        self._changed.notify_all()

    # ------------------------------------------------------------------------------------------- reader thread

    def _run(self) -> None:
        try:
            while self._more():
                delay_s = self._one_stream()
                self._ledger.tell()
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._ledger.settled, delay_s)
            self._ledger.tell()
        except BaseException as crash:
            # Of the user's callback, or of opening a stream on a closed channel: it belongs to the caller's thread.
            with self._changed:
                self._ledger.abort(crash)
                self._give_up_stream()

    def _more(self) -> bool:
        """Waits until there is something to do; False when there never will be."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or self._ledger.settled or self._ledger.may_pull() or self._ledger.waiting
                )
                if self._closed or self._ledger.settled:
                    return False
                if not (self._ledger.has_stray_error and self._ledger.may_pull()):
                    return True
                self._ledger.pulling = True
            self._pull()

    def _one_stream(self) -> float:
        """Opens a stream, reads all of it. Returns the pause before the next, seconds."""
        stream = object()
        error: MPCompressError | None = None
        with self._changed:
            if self._closed:
                return 0.0
            self._stream, self._given_up = stream, False
            self._ledger.stream_opened()
            self._call = self._open_call(self._requests(stream), self._stream_limit_s())
        try:
            for parcel in self._call:
                self._take(parcel)
        except grpc.RpcError as rpc_error:
            error = error_of_rpc(rpc_error, self._target)
        finally:
            self._call.cancel()
        with self._changed:
            early, self._stream = self._stream is stream, None
            # Ended by this side: what it was given up for has its error already.
            delay_s = self._ledger.stream_ended(None if self._given_up else error, early=early)
            self._wake_all()
        return delay_s

    def _stream_limit_s(self) -> float | None:
        if self._limit_s is None:
            return None
        left_s = self._ledger.next_deadline_s()
        return (self._limit_s if left_s is None else left_s) + books.GRACE_S

    def _take(self, parcel: Parcel[ResponseT]) -> None:
        if parcel.message.WhichOneof("event") == "draining":
            with self._changed:
                self._stream = None
                self._ledger.draining()
                self._changed.notify_all()
            return
        answered = self._ledger.receive(parcel)
        if answered is not None:
            with self._changed:
                self._ledger.settle(*answered)
                self._answered.notify_all()
                if self._ledger.waiting:
                    self._caller_wakes = 0.0  # what is sent again ends earlier than what is under way
                    self._changed.notify_all()
            self._ledger.tell()

    # ------------------------------------------------------------------------------------------ sending thread

    def _requests(self, stream: object) -> Iterator[Parcel[RequestT]]:
        """What grpc sends; runs in grpc's own thread, which must never see an exception."""
        try:
            while (next_slot := self._next_to_send(stream)) is not None:
                slot, left_s = next_slot
                item = slot.item
                if item is None:
                    continue
                for request in item.requests(slot.item_id, left_s):
                    if not self._ledger.is_under_way(slot):
                        # Answered before it was all sent: an error. The rest would be dropped.
                        break
                    yield request
        except Exception as error:
            with self._changed:
                self._ledger.abort(ServerError(f"sending to {self._target} failed: {error!r}"))
                self._give_up_stream()

    def _next_to_send(self, stream: object) -> tuple[Slot[RequestT, ResponseT, ResultT], float] | None:
        """Waits for something to send; None when this stream takes no more."""
        while True:
            with self._changed:
                while True:
                    if self._stream is not stream:
                        return None
                    found = self._ledger.next_to_send()
                    if found is not None:
                        due = self._ledger.clock() + found[1] + books.GRACE_S
                        if due < self._caller_wakes:
                            self._caller_wakes = due
                            self._answered.notify_all()  # to wait for this one's deadline
                        return found
                    if self._ledger.may_pull():
                        self._ledger.pulling = True
                        break
                    if self._ledger.all_sent:
                        return None
                    self._changed.wait(self._ledger.next_due_s())
            self._pull()

    def _pull(self) -> None:
        """Pulls and prepares the next item; `pulling` is set, so that no other thread does."""
        item: Item[RequestT, ResponseT, ResultT] | MPCompressError | None = None
        crash: BaseException | None = None
        try:
            pulled = self._source.pull()
            if pulled:
                item = self._prepared(pulled[0])
        except BaseException as error:
            # The user's own exception, of whatever kind: it belongs to the caller's thread.
            crash = error
        with self._changed:
            self._ledger.pulling = False
            to_send = isinstance(item, Item) and not self._ledger.has_stray_error
            if item is None:
                self._ledger.end(crash)
            else:
                self._ledger.admit(item)
            self._changed.notify_all()
            if not to_send:  # but to be handed out, or the end
                self._answered.notify_all()

    def _prepared(self, value: InputT) -> Item[RequestT, ResponseT, ResultT] | MPCompressError:
        try:
            return self._prepare(value, self._ledger.admitted)
        except MPCompressError as error:
            return error


def run(
    *, errors: str, make: Callable[[], Pipeline[InputT, RequestT, ResponseT, ResultT]]
) -> Generator[tuple[int, ResultT | MPCompressError], None, None]:
    """Results of a pipeline with their indices; it is made when the first is asked for, and closed after the last.

    Args:
        errors: "raise" ends at the first error; "return" gives it in its item's place.
        make: makes the pipeline.
    """
    pipeline = make()
    finished = False
    try:
        for index, outcome in pipeline.results():
            if errors == "raise" and isinstance(outcome, MPCompressError):
                raise outcome
            yield index, outcome
        finished = True
    finally:
        pipeline.close(finished=finished)
