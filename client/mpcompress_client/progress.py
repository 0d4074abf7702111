"""Where an unfinished item is, for the user's progress callback. Does no input or output."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mpcompress_client.errors import InvalidRequestError
from mpcompress_proto.v1 import compression_pb2 as pb

Stage = Literal["accepted", "queued", "started", "progress", "resubmitted", "done", "failed"]

_STAGES: dict[int, Stage] = {
    pb.ItemProgress.STAGE_ACCEPTED: "accepted",
    pb.ItemProgress.STAGE_QUEUED: "queued",
    pb.ItemProgress.STAGE_STARTED: "started",
    pb.ItemProgress.STAGE_PROGRESS: "progress",
}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """One event of one item.

    Attributes:
        index: the item's place among those of the call, from 0.
        stage: "accepted" (the server has room), "queued" (all bytes are there), "started", "progress" (see the counts),
            "resubmitted" (it will be sent again), "done", "failed".
        queue_position: when queued: items in front.
        parts_done: parts done, of `parts_total`; 0 of 0 when the codec cannot tell.
        parts_total: see `parts_done`.
        elapsed_s: since the server accepted it, seconds.
    """

    index: int
    stage: Stage
    queue_position: int = 0
    parts_done: int = 0
    parts_total: int = 0
    elapsed_s: float = 0.0


ProgressCallback = Callable[[Progress], object]


def check_callback(progress: ProgressCallback | None) -> ProgressCallback | None:
    """Raises InvalidRequestError for what cannot be called."""
    if progress is not None and not callable(progress):
        raise InvalidRequestError(f"progress is a function of one event, not {progress!r}", field="progress")
    return progress


def progress_of(index: int, message: pb.ItemProgress) -> Progress | None:
    """The event for a message; None for a stage of a newer server."""
    stage = _STAGES.get(message.stage)
    if stage is None:
        return None
    return Progress(
        index=index,
        stage=stage,
        queue_position=message.queue_position,
        parts_done=message.parts_done,
        parts_total=message.parts_total,
        elapsed_s=message.elapsed.ToTimedelta().total_seconds(),
    )


class Events:
    """What the user's callback is told, and when. Without a callback nothing is kept."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._waiting: deque[Progress] = deque()

    def at_once(self, index: int, message: pb.ItemProgress) -> None:
        """Tells what the server says. Raises what the callback raises."""
        event = progress_of(index, message)
        if event is not None and self._callback is not None:
            self._callback(event)

    def later(self, index: int, stage: Stage) -> None:
        """Keeps an event for `tell`; raises nothing."""
        if self._callback is not None:
            self._waiting.append(Progress(index=index, stage=stage))

    def tell(self) -> None:
        """Tells what was kept. Raises what the callback raises."""
        while self._waiting and self._callback is not None:
            self._callback(self._waiting.popleft())
