"""A bar on standard error with what is done, what is left and how long that takes; nothing where no person looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from mpcompress_client.progress import Progress as Event

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


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


class Bar:
    """A bar that is shown, or the wish for one where no person looks.

    Args:
        bars: rich's.
        task: its one task.
        total: how much there is to do.
    """

    def __init__(self, bars: Progress, task: TaskID, total: float) -> None:
        self._bars, self._task, self._total = bars, task, total

    def advance(self, amount: float = 1) -> None:
        """Moves it."""
        self._bars.advance(self._task, amount)

    def leave_out(self) -> None:
        """One less to do: it was done before, and says nothing about how long the others take."""
        self._total -= 1
        self._bars.update(self._task, total=self._total)

    def note(self, text: str) -> None:
        """Shows a text behind it."""
        self._bars.update(self._task, note=text)

    def say(self, line: str) -> None:
        """Writes a line to standard error, above the bar and not into it."""
        if self._bars.disable:
            click.echo(line, err=True)
        else:
            self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(title: str, total: int, watch: Watch | None = None) -> Iterator[Bar]:
    """Shows a bar until it is left, and what `watch` hears."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    note = TextColumn("{task.fields[note]}", markup=False)
    with Progress(*columns, note, console=console, transient=True, disable=not console.is_terminal) as bars:
        shown = Bar(bars, bars.add_task(title, total=total, note=""), total)
        if watch is not None:
            watch.show = shown.note
        yield shown
