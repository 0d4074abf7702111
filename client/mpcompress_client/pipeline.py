"""Many items over one stream after another, for threads: reading and writing at once.

    caller's thread      pulling thread        grpc's sending thread          reader thread
    results() ◄── ledger ◄── pull, prepare     ledger ──► send ──► server ──► responses ──► ledger

The reader thread opens the streams, one at a time, and the next one when a stream breaks or drains. Pulling has a
thread of its own: an item that is there must not wait for a source that makes the next one. The books are in `ledger`;
this is who does what when.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Any, Generic

import grpc

from mpcompress_client import ledger as books
from mpcompress_client.errors import MPCompressError, ServerError
from mpcompress_client.heap import keep_messages_on_the_heap
from mpcompress_client.items import Item, RequestT, ResponseT, ResultT
from mpcompress_client.ledger import Chosen, Ledger
from mpcompress_client.source import InputT, Source
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.bundles import Pace, accepted
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
        limit_s: for a call with one item: its time limit. The caller's thread pulls and reads then, which saves two,
            and the stream has gRPC's own deadline. None: threads do.
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
        # One lock and three conditions, for the caller, for who pulls and for all others: a thread that is woken in
        # vain costs as much as a message. The time at which the caller wakes by itself is on the ledger's clock. It may
        # be early: to find it anew for each result takes longer than all else here. What would make it late must change
        # it.
        lock = threading.RLock()
        self._answered = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._changed = threading.Condition(lock)
        self._caller_wakes = 0.0
        self._closed = False
        # The stream that takes items: None while there is none, and once it drains, breaks or is given up.
        self._stream: object | None = None
        self._call: Any = None
        self._given_up = False
        self._most_bundled = 1
        self._owner = threading.get_ident()
        self._reader: threading.Thread | None = None
        if limit_s is None:
            keep_messages_on_the_heap()
            self._reader = threading.Thread(target=self._run, name="mpcompress-reader", daemon=True)
            self._reader.start()
            threading.Thread(target=self._pull_all, name="mpcompress-puller", daemon=True).start()

    # ------------------------------------------------------------------------------------------ caller's thread

    def results(self) -> Iterator[tuple[int, ResultT | MPCompressError]]:
        """Results with the index of their item, an error in the place of each item that failed.

        Raises what the source's iterable or the progress callback raised, after the results that are there.
        """
        if self._reader is None:
            while self._ledger.may_pull():
                self._ledger.pulling = True
                self._pull()
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
                if self._ledger.may_pull():
                    self._room.notify_all()
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
        for condition in (self._answered, self._room, self._changed):
            condition.notify_all()

    # ------------------------------------------------------------------------------------------ pulling thread

    def _pull_all(self) -> None:
        while self._may_pull():
            self._pull()

    def _may_pull(self) -> bool:
        """Waits for room; False when nothing is to be pulled any more."""
        with self._room:
            self._room.wait_for(lambda: self._closed or self._ledger.exhausted or self._ledger.may_pull())
            self._ledger.pulling = not self._closed and not self._ledger.exhausted
            return self._ledger.pulling

    def _pull(self) -> None:
        """Pulls and prepares the next item; `pulling` is set."""
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
        """Waits until there is something to send; False when there never will be."""
        with self._changed:
            # After a stray error the next item pulled takes it, and only then is a stream worth opening.
            self._changed.wait_for(
                lambda: (
                    self._closed or self._ledger.settled or (self._ledger.waiting and not self._ledger.has_stray_error)
                )
            )
            return not self._closed and not self._ledger.settled

    def _one_stream(self) -> float:
        """Opens a stream, reads all of it. Returns the pause before the next, seconds."""
        stream = object()
        error: MPCompressError | None = None
        with self._changed:
            if self._closed:
                return 0.0
            self._stream, self._given_up, self._most_bundled = stream, False, 1
            self._ledger.stream_opened()
            self._call = self._open_call(self._requests(stream), self._stream_limit_s())
        try:
            for parcel in self._call:
                if self._most_bundled == 1 and self._reader is not None:
                    self._most_bundled = accepted(self._call.initial_metadata())
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
        answered = []
        for one in parcel.bundle or (parcel,):
            if one.message.WhichOneof("event") == "draining":
                with self._changed:
                    self._stream = None
                    self._ledger.draining()
                    self._changed.notify_all()
            elif (found := self._ledger.receive(one)) is not None:
                answered.append(found)
        if answered:
            with self._changed:
                again = [self._ledger.settle(slot, outcome) for slot, outcome in answered]
                self._answered.notify_all()
                if any(again):
                    self._caller_wakes = 0.0  # what is sent again ends earlier than what is under way
                    self._changed.notify_all()
            self._ledger.tell()

    # ------------------------------------------------------------------------------------------ sending thread

    def _requests(self, stream: object) -> Iterator[Parcel[RequestT]]:
        """What grpc sends; runs in grpc's own thread, which must never see an exception."""
        pace = Pace()
        try:
            while found := self._next_to_send(stream, pace.room):
                for parcel in self._ledger.parcels(found):
                    pace.leaves(parcel.nbytes)
                    yield parcel
                    pace.left()
        except Exception as error:
            with self._changed:
                self._ledger.abort(ServerError(f"sending to {self._target} failed: {error!r}"))
                self._give_up_stream()

    def _next_to_send(self, stream: object, room: int) -> Chosen[RequestT, ResponseT, ResultT]:
        """Waits for something to send; nothing when this stream takes no more."""
        with self._changed:
            while self._stream is stream:
                found = self._ledger.next_to_send(self._most_bundled, room)
                if found:
                    due = self._ledger.clock() + min(left_s for _, left_s in found) + books.GRACE_S
                    if due < self._caller_wakes:
                        self._caller_wakes = due
                        self._answered.notify_all()  # to wait for this one's deadline
                    return found
                if self._ledger.all_sent:
                    break
                self._changed.wait(self._ledger.next_due_s())
        return []


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
