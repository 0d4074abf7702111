"""The items of one stream between their headers and their final events: admission, work, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import copy_context
from functools import partial
from typing import Any

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.admission import ITEM_OVERHEAD_BYTES, Admission
from mpcompress_server.answers import Answer
from mpcompress_server.counters import Cause, Counters, Stage
from mpcompress_server.errors import IncompleteItemError, ItemCancelledError, ItemTimeoutError
from mpcompress_server.item_events import ItemEvents
from mpcompress_server.items import Item, RecentIds
from mpcompress_server.operations import Operation
from mpcompress_server.scheduler import Finished, Job, Scheduler, Work

# Above this, checksums and copies of one item would keep the event loop from all others.
_OFF_LOOP_BYTES = 1 << 20

_ACCEPTED, _QUEUED = pb.ItemProgress.STAGE_ACCEPTED, pb.ItemProgress.STAGE_QUEUED
_STARTED, _PROGRESS = pb.ItemProgress.STAGE_STARTED, pb.ItemProgress.STAGE_PROGRESS
# A call that is cancelled may look like one whose client sends no more: the rest of an item never comes.
_CAUSES: dict[type[Exception], Cause] = {
    ItemCancelledError: "item",
    ItemTimeoutError: "deadline",
    IncompleteItemError: "call",
}


class ActiveItems:
    """All items of a stream that have no final event yet.

    Args:
        operation: what happens to them.
        admission: lets them in.
        scheduler: runs complete items.
        stream: the stream, for the scheduler.
        counters: told what becomes of items.
        events: tells their client.
        metadata: of the call, for other servers.
        background: holds what may outlive the call.
    """

    def __init__(
        self,
        *,
        operation: Operation,
        admission: Admission,
        scheduler: Scheduler,
        stream: object,
        counters: Counters,
        events: ItemEvents,
        metadata: Sequence[tuple[str, str]],
        background: set[asyncio.Future[Any]],
    ) -> None:
        self._operation = operation
        self._admission = admission
        self._scheduler = scheduler
        self._stream = stream
        self._counters = counters
        self._events = events
        self._metadata = metadata
        self._background = background
        self._active: dict[int, Item] = {}
        self._closed: Cause | None = None
        self._clock = asyncio.get_running_loop().time
        self.late = RecentIds()
        """Items whose chunks may still come, to be dropped."""

    def __len__(self) -> int:
        return len(self._active)

    def get(self, item_id: int) -> Item | None:
        """The item of that id, if it has no final event yet."""
        return self._active.get(item_id)

    async def admit(self, item: Item, call_deadline: float) -> None:
        """Lets an item in. Raises what `Admission.admit` raises."""
        item.call_deadline = call_deadline
        try:
            await self._admission.admit(item, call_deadline)
        except ItemTimeoutError:
            self._counters.cancelled["deadline", "reserving"] += 1
            raise
        except asyncio.CancelledError:
            self._counters.cancelled["call", "reserving"] += 1
            raise
        self._active[item.id] = item
        item.timer = asyncio.get_running_loop().call_at(item.deadline, self._late, item)
        if self._closed is not None:  # while it waited
            self._forget(item)
            item.release()
            self._counters.cancelled[self._closed, "reserving"] += 1
        self._events.progress(item, _ACCEPTED)

    # ------------------------------------------------------------------------------------------------- working

    def start_if_complete(self, item: Item) -> None:
        """Puts an item to work when its last byte has come."""
        if item.receiver is None or not item.receiver.complete:
            return
        buffers, item.receiver = item.receiver.buffers, None
        self._spent(item, "receive", item.accepted_at)
        result: asyncio.Future[Any]
        if _is_large(item):
            result = asyncio.create_task(self._work(item, buffers))
        elif self._submitted(item, buffers) and item.job is not None:
            # No task of its own: that would take the event loop two turns more, and longer than all of its messages.
            result = item.job.result
            result.add_done_callback(partial(self._worked, item))
        else:
            return
        self._background.add(result)
        result.add_done_callback(self._background.discard)

    def _submitted(self, item: Item, buffers: list[Any]) -> bool:
        """Whether a complete item is in its codec's line; else it has its end, and its memory is given back."""
        try:
            if item.is_open():
                self._submit(item, item.plan.work(buffers))
                buffers.clear()
                return True
        except Exception as error:
            self.fail(item, error)
            item.job = None
        item.release()
        return False

    def _submit(self, item: Item, work: Work) -> None:
        """Puts an item that is open into its codec's line."""
        item.job = Job(
            loaded=item.plan.loaded,
            work=work,
            deadline=min(item.deadline, item.call_deadline),
            key=item.plan.key,
            stream=self._stream,
            nbytes=item.plan.nbytes,
            metadata=self._metadata,
            on_started=partial(copy_context().run, self._started, item),
        )
        if item.want_progress:
            item.job.on_position = partial(self._events.progress, item, _QUEUED)
            item.job.on_parts = partial(self._events.progress, item, _PROGRESS, 0)
        position = self._scheduler.submit(item.job)
        if position is not None:
            self._events.progress(item, _QUEUED, position)

    async def _work(self, item: Item, buffers: list[Any]) -> None:
        """Runs a complete large item to its answer. Outlives the call when the codec does."""
        try:
            work = await asyncio.to_thread(item.plan.work, buffers)
            buffers.clear()
            if item.is_open():
                self._submit(item, work)
                assert item.job is not None
                del work
                finished = await item.job.result
                self._told(item, finished)
                if item.is_open():
                    answer = await asyncio.to_thread(item.plan.answer, finished)
                    del finished
                    self._answer(item, answer)
        except Exception as error:
            self.fail(item, error)
        finally:
            buffers.clear()
            self._ended(item)

    def _worked(self, item: Item, result: asyncio.Future[Finished]) -> None:
        """Answers a small item with what its codec gave."""
        try:
            finished = result.result()
            self._told(item, finished)
            if item.is_open():
                self._answer(item, item.plan.answer(finished))
        except (Exception, asyncio.CancelledError) as error:
            self.fail(item, error if isinstance(error, Exception) else ItemCancelledError("the server stops"))
        finally:
            del result  # which has the error, whose traceback has this frame
            self._ended(item)

    def _told(self, item: Item, finished: Finished) -> None:
        for stage, seconds in finished.stages(item.plan.loaded, item.plan.compress):
            self._counters.on_stage(self._operation.name, item.plan.loaded.id, stage, seconds, item.id)

    def _answer(self, item: Item, answer: Answer) -> None:
        """Queues the result of an item, unless it has its end already."""
        item.job = None
        if item.is_open():
            assert item.reservation is not None
            item.reservation.shrink(answer.nbytes + ITEM_OVERHEAD_BYTES)
            self._leave(item)
            item.sending = True
            self._counters.on_result(
                self._operation.name, item.plan.loaded.id, sum(item.plan.sizes), answer.nbytes, answer.bpfp
            )
            self._events.result(answer.messages, answer.inline_bytes, partial(self._sent, item, self._clock()))

    def _ended(self, item: Item) -> None:
        """Nothing works for an item any more; what is to be sent keeps its memory until it is."""
        item.job = None
        if not item.sending:
            item.release()

    def _started(self, item: Item) -> None:
        if item.job is not None:
            self._spent(item, "queue", item.job.queued_at)
        self._events.progress(item, _STARTED)

    def _sent(self, item: Item, since: float) -> None:
        self._spent(item, "send", since)
        item.release()

    def _spent(self, item: Item, stage: str, since: float) -> None:
        seconds = self._clock() - since
        self._counters.on_stage(self._operation.name, item.plan.loaded.id, stage, seconds, item.id)

    # ------------------------------------------------------------------------------------------------- ending

    def _leave(self, item: Item) -> None:
        """The item's fate is known: it is no longer active."""
        item.answered = True
        if self._active.get(item.id) is item:
            del self._active[item.id]
            self._admission.leave()
        if item.timer is not None:
            item.timer.cancel()

    def forget_all(self, cause: Cause) -> None:
        """Ends every item, and those that still come, without an answer."""
        self._closed = self._closed or cause
        for item in list(self._active.values()):
            self._counters.cancelled[cause, _stage(item)] += 1
            self._forget(item)

    def _forget(self, item: Item) -> None:
        """Ends an item without an answer; what its codec still holds is given back by `_work`."""
        collecting = item.receiver is not None
        self._leave(item)
        if item.job is not None:
            self._scheduler.cancel(item.job)
        if collecting:
            item.release()

    def fail(self, item: Item, error: Exception) -> None:
        """Answers an item with an error, unless it has its answer."""
        if item.answered:
            return
        if type(error) in _CAUSES:
            self._counters.cancelled[_CAUSES[type(error)], _stage(item)] += 1
        if item.receiver is not None:
            self.late.add(item.id)
        self._forget(item)
        self._events.error(item.id, error)

    def _late(self, item: Item) -> None:
        self.fail(item, ItemTimeoutError("the item's timeout ran out"))

    def refuse(self, item_id: int, error: Exception) -> None:
        """Answers an item that never became one."""
        self.late.add(item_id)
        self._events.error(item_id, error)


def _is_large(item: Item) -> bool:
    return item.plan.nbytes > _OFF_LOOP_BYTES


def _stage(item: Item) -> Stage:
    """Where an item is that was let in and has no final event."""
    if item.receiver is not None:
        return "receiving"
    if item.job is None:
        return "checking"
    if item.job.work is not None:
        return "queued"
    return "answering" if item.job.result.done() else "running"
