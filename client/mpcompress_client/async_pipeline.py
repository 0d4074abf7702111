"""Many items over one stream after another, for asyncio: as `pipeline`, with tasks instead of threads.

    caller's task       pulling task              sending task                     stream task
    results() ◄── ledger ◄── pull, prepare     ledger ──► send ──► server ──► responses ──► ledger

Pulling has a task of its own: a stream that ends must not cancel the user's generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from typing import Any, Generic

import grpc

from mpcompress_client.errors import CancelledError, MPCompressError, ServerError
from mpcompress_client.heap import keep_messages_on_the_heap
from mpcompress_client.items import Item, RequestT, ResponseT, ResultT
from mpcompress_client.ledger import Chosen, Ledger
from mpcompress_client.source import InputT, Source
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.bundles import Pace, accepted
from mpcompress_proto.parcel import Parcel

# How long a finished stream may take to deliver its status before it is cancelled.
_END_S = 5.0


class Bell:
    """Wakes every task that waits for something to change."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Wakes them."""
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Waits for the next ring, or as long as said."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait((future,), timeout=timeout_s)
        finally:
            self._waiting.discard(future)


class AsyncPipeline(Generic[InputT, RequestT, ResponseT, ResultT]):
    """The streams over which the items of a source travel.

    Args:
        open_call: opens a stream; what it raises ends everything.
        prepare: makes an item of an input and its index; its MPCompressError is that item's result.
        inputs: the user's iterable; one that is not asynchronous is read in another thread unless it is a sequence.
        ledger: the books.
        target: the server's address, for messages.
    """

    def __init__(
        self,
        *,
        open_call: Callable[[], Any],
        prepare: Callable[[InputT, int], Item[RequestT, ResponseT, ResultT]],
        inputs: Iterable[InputT] | AsyncIterable[InputT],
        ledger: Ledger[RequestT, ResponseT, ResultT],
        target: str,
    ) -> None:
        keep_messages_on_the_heap()
        self._open_call = open_call
        self._prepare: Callable[[InputT, int], Item[RequestT, ResponseT, ResultT]] = prepare
        self._pull_next = _puller(inputs)
        self._ledger: Ledger[RequestT, ResponseT, ResultT] = ledger
        self._target = target
        self._bell = Bell()
        # The stream that takes items: None while there is none, and once it drains, breaks or is given up.
        self._stream: object | None = None
        self._call: Any = None
        self._given_up = False
        self._most_bundled = 1

    async def results(self, errors: str) -> AsyncGenerator[tuple[int, ResultT | MPCompressError], None]:
        """Results with the index of their item, as `pipeline.run` gives them."""
        tasks = [asyncio.create_task(self._pull()), asyncio.create_task(self._run())]
        finished = False
        try:
            while True:
                slot = self._ledger.pop()
                while slot is None and not self._ledger.finished:
                    await self._bell.wait(self._ledger.next_deadline_s())
                    if self._ledger.expire():
                        self._give_up_stream()
                    slot = self._ledger.pop()
                self._bell.ring()
                if slot is None:
                    break
                assert slot.outcome is not None
                if errors == "raise" and isinstance(slot.outcome, MPCompressError):
                    raise slot.outcome
                yield slot.index, slot.outcome
            if self._ledger.crash is not None:
                raise self._ledger.crash
            finished = True
        finally:
            if finished:
                await asyncio.wait(tasks, timeout=_END_S)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up_stream(self) -> None:
        self._stream, self._given_up = None, True
        if self._call is not None:
            self._call.cancel()
        self._bell.ring()

    # ------------------------------------------------------------------------------------------------- pulling

    async def _pull(self) -> None:
        while not self._ledger.exhausted:
            if not self._ledger.may_pull():
                await self._bell.wait()
                continue
            self._ledger.pulling = True
            item: Item[RequestT, ResponseT, ResultT] | MPCompressError | None = None
            crash: BaseException | None = None
            try:
                pulled = await self._pull_next()
                if pulled:
                    item = self._prepared(pulled[0])
            except BaseException as error:
                if _is_cancelled():
                    raise
                # The user's own exception, of whatever kind: it belongs to the caller's task.
                crash = error
            self._ledger.pulling = False
            if item is None:
                self._ledger.end(crash)
            else:
                self._ledger.admit(item)
            self._bell.ring()

    def _prepared(self, value: InputT) -> Item[RequestT, ResponseT, ResultT] | MPCompressError:
        try:
            return self._prepare(value, self._ledger.admitted)
        except MPCompressError as error:
            return error

    # ------------------------------------------------------------------------------------------------- streams

    async def _run(self) -> None:
        try:
            while await self._more():
                delay_s = await self._one_stream()
                self._ledger.tell()
                await self._pause(delay_s)
            self._ledger.tell()
        except BaseException as crash:
            if _is_cancelled():
                raise
            self._ledger.abort(crash)
            self._give_up_stream()

    async def _more(self) -> bool:
        """Waits until there is something to send; False when there never will be."""
        while not self._ledger.settled:
            # After a stray error the next item pulled takes it, and only then is a stream worth opening.
            if self._ledger.waiting and not self._ledger.has_stray_error:
                return True
            await self._bell.wait()
        return False

    async def _pause(self, delay_s: float) -> None:
        until = self._ledger.clock() + delay_s
        while not self._ledger.settled and (left_s := until - self._ledger.clock()) > 0:
            await self._bell.wait(left_s)

    async def _one_stream(self) -> float:
        """Opens a stream, reads all of it. Returns the pause before the next, seconds."""
        stream = self._stream = object()
        self._given_up, self._most_bundled = False, 1
        self._ledger.stream_opened()
        call = self._call = self._open_call()
        sender = asyncio.create_task(self._send(call, stream))
        error: MPCompressError | None = None
        try:
            while (parcel := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                if self._most_bundled == 1:
                    self._most_bundled = accepted(await call.initial_metadata())
                self._take(parcel)
        except grpc.RpcError as rpc_error:
            error = error_of_rpc(rpc_error, self._target)
        except asyncio.CancelledError:
            # This task was cancelled, or only its call: by `_give_up_stream`, or because the channel was closed.
            if _is_cancelled():
                raise
            error = CancelledError(f"the call to {self._target} was cancelled")
        finally:
            early, self._stream = self._stream is stream, None
            sender.cancel()
            call.cancel()
            await asyncio.gather(sender, return_exceptions=True)
        # Ended by this side: what it was given up for has its error already.
        delay_s = self._ledger.stream_ended(None if self._given_up else error, early=early)
        self._bell.ring()
        return delay_s

    def _take(self, parcel: Parcel[ResponseT]) -> None:
        answered = False
        for one in parcel.bundle or (parcel,):
            if one.message.WhichOneof("event") == "draining":
                self._stream = None
                self._ledger.draining()
                self._bell.ring()
            elif (found := self._ledger.receive(one)) is not None:
                self._ledger.settle(*found)
                answered = True
        if answered:
            self._bell.ring()
            self._ledger.tell()

    # ------------------------------------------------------------------------------------------------- sending

    async def _send(self, call: Any, stream: object) -> None:
        pace = Pace()
        try:
            while found := await self._next_to_send(stream, pace.room):
                for parcel in self._ledger.parcels(found):
                    pace.leaves(parcel.nbytes)
                    await call.write(parcel)
                    pace.left()
            await call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError):
            # The call is over; the reading side says why.
            return
        except Exception as error:
            self._ledger.abort(ServerError(f"sending to {self._target} failed: {error!r}"))
            self._give_up_stream()

    async def _next_to_send(self, stream: object, room: int) -> Chosen[RequestT, ResponseT, ResultT]:
        while self._stream is stream:
            found = self._ledger.next_to_send(self._most_bundled, room)
            if found:
                # There is a deadline more to wait for.
                self._bell.ring()
                return found
            if self._ledger.all_sent:
                break
            await self._bell.wait(self._ledger.next_due_s())
        return []


def _puller(inputs: Iterable[InputT] | AsyncIterable[InputT]) -> Callable[[], Awaitable[list[InputT]]]:
    """Gives the next input in a list, or an empty list at the end."""
    if isinstance(inputs, AsyncIterable):
        iterator = aiter(inputs)

        async def pull_async() -> list[InputT]:
            try:
                return [await anext(iterator)]
            except StopAsyncIteration:
                return []

        return pull_async
    source = Source(inputs)
    if not isinstance(inputs, Sequence):
        # A generator may read files or wait for a camera.
        return lambda: asyncio.to_thread(source.pull)

    async def pull() -> list[InputT]:
        return source.pull()

    return pull


def _is_cancelled() -> bool:
    """Whether the running task itself is being cancelled, not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
