"""A bar on standard error with what is done, what is left and how long that takes; nothing where no person looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mpcompress_client.progress import Progress as Event

Advance = Callable[..., None]


class Watch:
    """Shows in a bar where the item is that was heard of last: a progress callback for the client.

    Frames take a video encoder minutes; a bar of items alone would stand still.
    """

    def __init__(self) -> None:
        self.show: Callable[[str], None] = lambda text: None

    def __call__(self, event: Event) -> None:
        """Hears of an item, in the client's thread."""
        words = words_of(event)
        if words:
            self.show(words)

    def if_seen(self) -> Watch | None:
        """Itself where a person looks, else None: nobody has to tell it anything."""
        return self if sys.stderr.isatty() else None


def words_of(event: Event) -> str:
    """Like "item 3: queued, 2 before it"."""
    what = ""
    if event.stage == "queued":
        what = f"queued, {event.queue_position} before it"
    elif event.stage in ("started", "progress"):
        what = "being coded"
        if event.parts_total > 1:
            what = f"{event.parts_done} of {event.parts_total} parts"
    elif event.stage == "resubmitted":
        what = "sent again"
    if not what:
        return ""
    seconds = f", {event.elapsed_s:.0f} s" if event.elapsed_s >= 1 else ""
    return f"item {event.index + 1}: {what}{seconds}"


@contextmanager
def bar(title: str, total: int, watch: Watch | None = None) -> Iterator[Advance]:
    """Shows a bar, and what `watch` hears; gives a function that moves it by one, or by `amount`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    note = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, note, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=total, note="")

        def advance(amount: float = 1) -> None:
            bars.advance(task, amount)

        if watch is not None:
            watch.show = lambda text: bars.update(task, note=text)
        yield advance
