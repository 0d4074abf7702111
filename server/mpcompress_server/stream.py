"""One stream of items: a coroutine reads requests while another writes answers, so no order of calls deadlocks.

    header ──► plan ──► slot + reservation ──► chunks ──► job ──► outbox
               │ refused    │ no room             │ bad     │ failed, cancelled, late
               └────────────┴─────────────────────┴─────────┴──► error in the outbox

While an item waits for its reservation nothing is read: gRPC's flow control then holds the sender. An item's memory is
given back when its answer is written, or, when it failed inside a codec call, when that call returns.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import grpc
import structlog

from mpcompress_proto.errors import WireError
from mpcompress_proto.tensors import MAX_CHUNK_BYTES, Receiver
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import messages as convert
from mpcompress_server.active_items import ActiveItems
from mpcompress_server.admission import Admission
from mpcompress_server.counters import Counters
from mpcompress_server.errors import (
    DrainedError,
    IncompleteItemError,
    ItemCancelledError,
    ProtocolError,
    ServerDrainingError,
    StreamError,
    rule_of,
)
from mpcompress_server.item_events import ItemEvents
from mpcompress_server.items import Item
from mpcompress_server.operations import Operation, Piece
from mpcompress_server.outbox import Outbox
from mpcompress_server.reservation import ByteBudget
from mpcompress_server.scheduler import Scheduler
from mpcompress_server.settings import Limits

# A stream that failed is read on while its client writes, but not for ever, and not when it only waits.
_LINGER_S = 10.0
_LINGER_IDLE_S = 0.1


class Stream:
    """The engine of one Compress or Decompress call.

    Args:
        operation: which of the two.
        limits: of the server.
        budgets: of its connection and of the server.
        scheduler: runs complete items.
        counters: of the server.
        request_id: for the log and the errors.
        turn: whose turn its items are in their lines; None: its own.
        metadata: of the call, for other servers.
        background: holds what may outlive the call.
        most_bundled: messages in a bundle that its client takes; 1 for none.
    """

    def __init__(
        self,
        *,
        operation: Operation,
        limits: Limits,
        budgets: Sequence[ByteBudget],
        scheduler: Scheduler,
        counters: Counters,
        request_id: str,
        turn: str | None,
        metadata: Sequence[tuple[str, str]],
        background: set[asyncio.Future[Any]],
        most_bundled: int = 1,
    ) -> None:
        self._operation = operation
        self._limits = limits
        self._log = structlog.get_logger("mpcompress_server.stream").bind(request_id=request_id, method=operation.name)
        self._outbox = Outbox(limits.max_unread_answers, most_bundled)
        self._items = ActiveItems(
            operation=operation,
            admission=Admission(limits=limits, budgets=budgets, scheduler=scheduler, stream=turn or self),
            scheduler=scheduler,
            stream=turn or self,
            counters=counters,
            events=ItemEvents(
                operation=operation,
                counters=counters,
                outbox=self._outbox,
                request_id=request_id,
                on_overflow=self._fail_stream,
            ),
            metadata=metadata,
            background=background,
        )
        self._counters = counters
        # By id: a stream that idles must not hold its last item, and with it a codec that is to be closed.
        self._current: int | None = None
        self._call_deadline = math.inf
        self._ended = False
        self._draining = False
        self._failure: StreamError | None = None
        self._requests = 0
        self._clock = asyncio.get_running_loop().time

    # ------------------------------------------------------------------------------------------------ the call

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serves the call until both sides have ended. Raises StreamError for what ends it early."""
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            self._call_deadline = self._clock() + remaining_s
        reader = asyncio.create_task(self._read(context))
        writer = asyncio.create_task(self._outbox.write(context.write, self._done))
        try:
            pending: set[asyncio.Future[Any]] = {reader, writer}
            while not writer.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            if self._failure is not None:
                await self._linger(reader)
                raise self._failure
            if not self._ended:
                raise DrainedError("the server stops; all items of this stream that it took are answered")
        finally:
            reader.cancel()
            writer.cancel()
            self._close()
            await asyncio.gather(reader, writer, return_exceptions=True)

    def drain(self, grace_s: float) -> None:
        """Takes no new items; ends the call when those it has are answered."""
        if not self._draining:
            self._draining = True
            self._outbox.progress(self._operation.response(draining=pb.Draining(grace=convert.duration(grace_s))))
            self._outbox.nudge()

    def _done(self) -> bool:
        return not self._items and (self._ended or self._draining or self._failure is not None)

    async def _linger(self, reader: asyncio.Future[None]) -> None:
        """Reads on for a while before the call ends in an error.

        The status travels behind the answers. A client that writes everything before it reads would never come to
        read it if its writes were held up here.
        """
        until = self._clock() + _LINGER_S
        before = -1
        while not reader.done() and before != self._requests and self._clock() < until:
            before = self._requests
            await asyncio.wait((reader,), timeout=_LINGER_IDLE_S)

    def _close(self) -> None:
        """Nobody reads any more: gives up every item."""
        self._counters.cancelled["call", "writing"] += self._outbox.close()
        self._items.forget_all("call")

    def _fail_stream(self, error: StreamError) -> None:
        """Ends the call once the answers that are there are written; drops whatever still comes."""
        if self._failure is None:
            self._log.info("stream failed", reason=rule_of(error).reason, error=error.message)
            self._failure = error
            self._items.forget_all("stream")
            self._outbox.nudge()

    # ------------------------------------------------------------------------------------------------- reading

    async def _read(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            self._requests += 1
            if self._failure is None:
                try:
                    await self._take(request)
                except StreamError as error:
                    self._fail_stream(error)
            # While the next message comes, which may be long, this one is memory that nobody needs.
            del request
        self._give_up_current("the stream ended before the item")
        self._ended = True
        self._outbox.nudge()

    async def _take(self, request: Any) -> None:
        if isinstance(request, StreamError):  # what the deserialiser could not read
            raise request
        if not request.bundle:
            await self._take_one(request.message, request.bulk)
        for one in request.bundle:
            if self._failure is None:
                # The bytes of the others must not stay as long as this one's: it gets its own.
                await self._take_one(one.message, bytes(one.bulk))

    async def _take_one(self, message: Any, bulk: bytes | memoryview) -> None:
        kind = message.WhichOneof("message")
        if kind is None:
            raise ProtocolError("a message without header, chunk or cancel", field="message")
        if kind == "header":
            await self._take_header(message.header, bulk)
        elif kind == "bundle":
            raise ProtocolError("a bundle without messages, or in a bundle", field="bundle")
        elif kind == "cancel":
            item = self._items.get(message.cancel.item_id)
            if item is not None:
                self._items.fail(item, ItemCancelledError("cancelled by CancelItem"))
        else:
            self._take_chunk(kind, self._operation.piece(kind, getattr(message, kind), bulk))

    async def _take_header(self, header: Any, inline: bytes | memoryview) -> None:
        item_id = header.item_id
        if self._items.get(item_id) is not None:
            raise ProtocolError(f"item {item_id} is not answered yet", field="header.item_id")
        self._give_up_current("another header came before the item's end")
        self._items.late.discard(item_id)
        now = self._clock()
        try:
            if self._draining:
                raise ServerDrainingError("the server stops and takes no new items")
            timeout_s = convert.seconds(header.timeout, "timeout") or self._limits.default_timeout_s
            if timeout_s > self._limits.max_timeout_s:
                raise WireError(f"this server takes at most {self._limits.max_timeout_s} s", field="timeout")
            plan = self._operation.plan(header)
            item = Item(
                id=item_id,
                plan=plan,
                accepted_at=now,
                deadline=now + timeout_s,
                want_progress=header.want_progress,
            )
            await self._items.admit(item, self._call_deadline)
        except StreamError:
            raise
        except Exception as error:
            self._items.refuse(item_id, error)
            return
        item.receiver = Receiver(plan.sizes)
        try:
            if inline:
                item.receiver.fill(inline)
        except WireError as error:
            self._items.fail(item, error)
            return
        self._current = item.id
        self._items.start_if_complete(item)

    def _take_chunk(self, kind: str, piece: Piece) -> None:
        item = self._items.get(piece.item_id) if piece.item_id == self._current else None
        if item is None or item.receiver is None:
            if piece.item_id in self._items.late:
                return
            raise ProtocolError(
                f"a chunk of item {piece.item_id}, which was never announced or is complete", field=f"{kind}.item_id"
            )
        try:
            if len(piece.data) > MAX_CHUNK_BYTES:
                raise WireError(f"a chunk has at most {MAX_CHUNK_BYTES} bytes", field=f"{piece.field}.data")
            item.receiver.add(piece.part, piece.offset, piece.data, piece.field)
        except WireError as error:
            self._items.fail(item, error)
            return
        self._items.start_if_complete(item)

    def _give_up_current(self, why: str) -> None:
        item = self._items.get(self._current) if self._current is not None else None
        self._current = None
        if item is not None and item.receiver is not None:
            self._items.fail(item, IncompleteItemError(why, field="chunk"))
