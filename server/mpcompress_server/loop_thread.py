"""A thread that works for the event loop, one thing after the other.

`ThreadPoolExecutor` does the same with a future of its own beside the loop's, a lock and a condition for each, and
callbacks between the two: for codecs that take a millisecond, as much work as all else that is done for an item.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Task = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class LoopThread:
    """Started with the first thing that there is to do. It keeps nothing of what it has done.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: SimpleQueue[_Task | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def run(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """What a function gives or raises, called in the thread; not at all when the future was cancelled before."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
            self._thread.start()
        self._tasks.put((future, function, arguments))
        return future

    def close(self) -> None:
        """Waits for what was given to it: a thread cannot be stopped. Blocks."""
        self._tasks.put(None)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            _do(*task)
            del task


def _do(future: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if future.cancelled():
        return
    tell: Callable[[Any], None]
    try:
        tell, found = future.set_result, function(*arguments)
    except BaseException as error:
        tell, found = future.set_exception, error
    with contextlib.suppress(RuntimeError):  # the loop has ended
        future.get_loop().call_soon_threadsafe(_tell, future, tell, found)
    # An error among what was found has frames that lead here: neither would go before a garbage collection.
    del future, tell, found


def _tell(future: asyncio.Future[Any], tell: Callable[[Any], None], found: Any) -> None:
    """In the event loop."""
    if not future.done():
        tell(found)
