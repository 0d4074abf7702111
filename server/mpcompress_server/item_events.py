"""What the items of one stream tell their client: progress, and each one final event."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import structlog

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import messages as convert
from mpcompress_server.counters import Counters
from mpcompress_server.errors import INTERNAL, UnreadAnswersError, drop_frames, rule_of, to_status
from mpcompress_server.items import Item
from mpcompress_server.operations import Operation
from mpcompress_server.outbox import Outbox


class ItemEvents:
    """Makes the events of items and puts them into their stream's outbox.

    Args:
        operation: what happens to the items.
        counters: told how items end.
        outbox: takes the events.
        request_id: for the log and the errors.
        on_overflow: called when the client leaves too many final events unread.
    """

    def __init__(
        self,
        *,
        operation: Operation,
        counters: Counters,
        outbox: Outbox,
        request_id: str,
        on_overflow: Callable[[UnreadAnswersError], None],
    ) -> None:
        self._operation = operation
        self._counters = counters
        self._outbox = outbox
        self._request_id = request_id
        self._on_overflow = on_overflow
        self._log = structlog.get_logger("mpcompress_server.items").bind(request_id=request_id, method=operation.name)
        self._clock = asyncio.get_running_loop().time

    def result(self, messages: Iterator[Any], nbytes: int | None, release: Callable[[], None]) -> None:
        """The final event of an item that ended well, as `Outbox.final` takes it."""
        self._counters.items[self._operation.name, "ok"] += 1
        self._final(messages, nbytes, release)

    def error(self, item_id: int, error: Exception) -> None:
        """The final event of any other, or of what never became an item."""
        rule = rule_of(error)
        self._counters.items[self._operation.name, rule.reason] += 1
        if rule is INTERNAL:
            self._log.error("item failed", item=item_id, reason=rule.reason, exc_info=error)
        else:
            self._log.info("item failed", item=item_id, reason=rule.reason, error=str(error))
        status = to_status(error, self._request_id)
        drop_frames(error)
        self._final(iter((self._operation.response(item_id=item_id, error=status),)), 0, None)

    def _final(self, messages: Iterator[Any], nbytes: int | None, release: Callable[[], None] | None) -> None:
        try:
            self._outbox.final(messages, nbytes, release)
        except UnreadAnswersError as error:
            self._on_overflow(error)

    def progress(
        self, item: Item, stage: pb.ItemProgress.Stage.ValueType, position: int = 0, done: int = 0, total: int = 0
    ) -> None:
        """Where an item is, when its client wants to know."""
        if item.want_progress and not item.answered:
            elapsed = convert.duration(self._clock() - item.accepted_at)
            progress = pb.ItemProgress(
                stage=stage, queue_position=position, parts_done=done, parts_total=total, elapsed=elapsed
            )
            self._outbox.progress(self._operation.response(item_id=item.id, progress=progress))
