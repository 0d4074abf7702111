"""What a server has done since it started, as plain numbers: for logs, tests and whoever exports metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

# Where an item was when it was given up.
Stage = Literal["reserving", "receiving", "checking", "queued", "running", "answering", "writing"]
# Who gave it up: CancelItem, its timeout, the end of its call (cancelled, out of time, client gone, no more bytes), or
# a stream that broke the contract.
Cause = Literal["item", "deadline", "call", "stream"]


@dataclass(kw_only=True)
class Counters:
    """Only ever written in the server's event loop.

    Attributes:
        items: items by (operation, outcome): "ok" or the reason of their error.
        cancelled: items given up, by (cause, stage).
        batches: calls by (codec id, items in the call).
        dropped: items of running batches whose later stages did not run, by codec id.
        shrunk: batches that were too much for their device, by codec id.
        on_stage: called with (operation, codec id, stage, seconds, item id) when an item leaves a stage,
            in the context of its call.
        on_result: called with (operation, codec id, bytes in, bytes out, bpfp or None) for each result.
    """

    items: Counter[tuple[str, str]] = field(default_factory=Counter)
    cancelled: Counter[tuple[Cause, Stage]] = field(default_factory=Counter)
    batches: Counter[tuple[str, int]] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    shrunk: Counter[str] = field(default_factory=Counter)
    on_stage: Callable[[str, str, str, float, int], None] = field(default=lambda *_: None)
    on_result: Callable[[str, str, int, int, float | None], None] = field(default=lambda *_: None)
