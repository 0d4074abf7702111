"""A bar on standard error with what is done, what is left and how long that takes; nothing where no person looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[..., None]


@contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """Shows a bar; gives a function that moves it by one, or by `amount`."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=total)

        def advance(amount: float = 1) -> None:
            bars.advance(task, amount)

        yield advance
