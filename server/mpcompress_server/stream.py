"""One stream of items: a coroutine reads requests while another writes answers, so no order of calls deadlocks.

    header ──► plan ──► slot + reservation ──► chunks ──► job ──► outbox
               │ refused    │ no room             │ bad     │ failed, cancelled, late
               └────────────┴─────────────────────┴─────────┴──► error in the outbox

While an item waits for its reservation nothing is read: gRPC's flow control then holds the sender. An item's memory is
given back when its answer is written, or, when it failed inside a codec call, when that call returns.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import structlog

from mpcompress_proto.errors import WireError
from mpcompress_proto.tensors import MAX_CHUNK_BYTES, Receiver
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import messages as convert
from mpcompress_server.errors import (
    INTERNAL,
    DrainedError,
    IncompleteItemError,
    ItemCancelledError,
    ItemTimeoutError,
    NoRoomError,
    ProtocolError,
    ServerDrainingError,
    StreamError,
    UnreadAnswersError,
    drop_frames,
    rule_of,
    to_status,
)
from mpcompress_server.items import Item, RecentIds
from mpcompress_server.operations import Operation, error_response
from mpcompress_server.outbox import Outbox
from mpcompress_server.reservation import ByteBudget
from mpcompress_server.scheduler import Job, Scheduler
from mpcompress_server.settings import ROOM_PER_ITEM, Limits

# Every item costs this much beyond its tensors: header, messages, bookkeeping.
_ITEM_OVERHEAD_BYTES = 8192
# Above this, checksums and copies of one item would keep the event loop from all others.
_OFF_LOOP_BYTES = 1 << 20
# A stream that failed is read on while its client writes, but not for ever, and not when it only waits.
_LINGER_S = 10.0
_LINGER_IDLE_S = 0.1

_STAGE = pb.ItemProgress.Stage


class Stream:
    """The engine of one Compress or Decompress call.

    Args:
        operation: which of the two.
        limits: of the server.
        budget: memory that all streams share.
        scheduler: runs complete items.
        request_id: for the log and the errors.
        background: holds tasks that may outlive the call.
    """

    def __init__(
        self,
        *,
        operation: Operation,
        limits: Limits,
        budget: ByteBudget,
        scheduler: Scheduler,
        request_id: str,
        background: set[asyncio.Task[None]],
    ) -> None:
        self._operation = operation
        self._limits = limits
        self._budget = budget
        self._scheduler = scheduler
        self._request_id = request_id
        self._background = background
        self._log = structlog.get_logger("mpcompress_server.stream").bind(request_id=request_id, method=operation.name)
        self._active: dict[int, Item] = {}
        self._current: Item | None = None
        self._late = RecentIds()
        self._outbox = Outbox(limits.max_unread_answers)
        self._slots = asyncio.Semaphore(limits.max_items_per_stream)
        self._ended = False
        self._draining = False
        self._failure: StreamError | None = None
        self._requests = 0
        self._clock = asyncio.get_running_loop().time

    # ------------------------------------------------------------------------------------------------ the call

    async def run(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Serves the call until both sides have ended. Raises StreamError for what ends it early."""
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
        return not self._active and (self._ended or self._draining or self._failure is not None)

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
        self._outbox.close()
        self._forget_all()

    def _forget_all(self) -> None:
        for item in list(self._active.values()):
            self._forget(item)

    def _fail_stream(self, error: StreamError) -> None:
        """Ends the call once the answers that are there are written; drops whatever still comes."""
        if self._failure is None:
            self._log.info("stream failed", reason=rule_of(error).reason, error=error.message)
            self._failure = error
            self._forget_all()
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
        if self._current is not None:
            self._fail(self._current, IncompleteItemError("the stream ended before the item", field="chunk"))
        self._ended = True
        self._outbox.nudge()

    async def _take(self, request: Any) -> None:
        if isinstance(request, StreamError):  # what the deserialiser could not read
            raise request
        kind = request.WhichOneof("message")
        if kind is None:
            raise ProtocolError("a message without header, chunk or cancel", field="message")
        if kind == "header":
            await self._take_header(request.header)
        elif kind == "cancel":
            item = self._active.get(request.cancel.item_id)
            if item is not None:
                self._fail(item, ItemCancelledError("cancelled by CancelItem"))
        else:
            self._take_chunk(kind, getattr(request, kind))

    async def _take_header(self, header: Any) -> None:
        item_id = header.item_id
        if item_id in self._active:
            raise ProtocolError(f"item {item_id} is not answered yet", field="header.item_id")
        if self._current is not None:
            self._fail(self._current, IncompleteItemError("another header came before the item's end", field="chunk"))
        self._late.discard(item_id)
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
            await self._admit(item)
        except StreamError:
            raise
        except Exception as error:
            self._refuse(item_id, error)
            return
        self._progress(item, _STAGE.STAGE_ACCEPTED)
        item.receiver = Receiver(plan.sizes)
        try:
            if header.inline_data:
                item.receiver.fill(header.inline_data)
        except WireError as error:
            self._fail(item, error)
            return
        self._current = item
        self._check_complete(item)

    async def _admit(self, item: Item) -> None:
        """Waits for a slot of the stream and for memory, both within one bound."""
        entry = item.plan.loaded.entry
        copies = ROOM_PER_ITEM if entry.isolation == "process" else 1
        need = copies * (sum(item.plan.sizes) + item.plan.result_bytes) + _ITEM_OVERHEAD_BYTES
        until = self._clock() + self._limits.reservation_timeout_s
        slot = False
        try:
            async with asyncio.timeout_at(min(until, item.deadline)):
                await self._slots.acquire()
                slot = True
                item.reservation = await self._budget.reserve(min(need, self._budget.limit))
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
        self._active[item.id] = item
        item.timer = asyncio.get_running_loop().call_at(
            item.deadline, self._fail, item, ItemTimeoutError("the item's timeout ran out")
        )

    def _take_chunk(self, kind: str, chunk: Any) -> None:
        piece = self._operation.piece(kind, chunk)
        item = self._current
        if item is None or item.id != piece.item_id or item.receiver is None:
            if piece.item_id in self._late:
                return
            raise ProtocolError(
                f"a chunk of item {piece.item_id}, which was never announced or is complete", field=f"{kind}.item_id"
            )
        try:
            if len(piece.data) > MAX_CHUNK_BYTES:
                raise WireError(f"a chunk has at most {MAX_CHUNK_BYTES} bytes", field=f"{piece.field}.data")
            item.receiver.add(piece.part, piece.offset, piece.data, piece.field)
        except WireError as error:
            self._fail(item, error)
            return
        self._check_complete(item)

    # ------------------------------------------------------------------------------------------------- working

    def _check_complete(self, item: Item) -> None:
        if item.receiver is not None and item.receiver.complete:
            buffers, item.receiver, self._current = item.receiver.buffers, None, None
            task = asyncio.create_task(self._work(item, buffers))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _work(self, item: Item, buffers: list[Any]) -> None:
        """Runs a complete item to its answer. Outlives the call when the codec does."""
        queued = False
        try:
            work = await self._call(item, item.plan.work, buffers)
            buffers.clear()
            item.job = Job(
                loaded=item.plan.loaded,
                work=work,
                deadline=item.deadline,
                on_started=lambda: self._progress(item, _STAGE.STAGE_STARTED),
            )
            del work
            if item.answered:
                return
            self._progress(item, _STAGE.STAGE_QUEUED, self._scheduler.submit(item.job))
            finished = await item.job.result
            answer = await self._call(item, item.plan.answer, finished)
            del finished
            item.job = None
            if not item.answered:
                assert item.reservation is not None
                item.reservation.shrink(answer.nbytes + _ITEM_OVERHEAD_BYTES)
                self._leave(item)
                queued = True
                self._queue_final(answer.messages, item.release)
        except Exception as error:
            self._fail(item, error)
        finally:
            buffers.clear()
            item.job = None
            if not queued:
                item.release()

    async def _call(self, item: Item, function: Any, argument: Any) -> Any:
        if sum(item.plan.sizes) + item.plan.result_bytes > _OFF_LOOP_BYTES:
            return await asyncio.to_thread(function, argument)
        return function(argument)

    # ------------------------------------------------------------------------------------------------- ending

    def _leave(self, item: Item) -> None:
        """The item's fate is known: it is no longer active."""
        item.answered = True
        if self._active.get(item.id) is item:
            del self._active[item.id]
            self._slots.release()
        if item.timer is not None:
            item.timer.cancel()
        if self._current is item:
            self._current = None
            self._late.add(item.id)

    def _forget(self, item: Item) -> None:
        """Ends an item without an answer; what its codec still holds is given back by `_work`."""
        collecting = item.receiver is not None
        self._leave(item)
        if item.job is not None:
            self._scheduler.cancel(item.job)
        if collecting:
            item.release()

    def _fail(self, item: Item, error: Exception) -> None:
        if item.answered:
            return
        if item.receiver is not None:
            self._late.add(item.id)
        self._forget(item)
        self._answer_error(item.id, error)

    def _refuse(self, item_id: int, error: Exception) -> None:
        """Answers an item that never became one."""
        self._late.add(item_id)
        self._answer_error(item_id, error)

    def _answer_error(self, item_id: int, error: Exception) -> None:
        rule = rule_of(error)
        if rule is INTERNAL:
            self._log.error("item failed", item=item_id, reason=rule.reason, exc_info=error)
        else:
            self._log.info("item failed", item=item_id, reason=rule.reason, error=str(error))
        status = to_status(error, self._request_id)
        drop_frames(error)
        self._queue_final(iter((error_response(self._operation, item_id, status),)), None)

    def _queue_final(self, messages: Any, release: Any) -> None:
        try:
            self._outbox.final(messages, release)
        except UnreadAnswersError as error:
            self._fail_stream(error)

    def _progress(self, item: Item, stage: pb.ItemProgress.Stage.ValueType, position: int = 0) -> None:
        if item.want_progress and not item.answered:
            elapsed = convert.duration(self._clock() - item.accepted_at)
            progress = pb.ItemProgress(stage=stage, queue_position=position, elapsed=elapsed)
            self._outbox.progress(self._operation.response(item_id=item.id, progress=progress))
