"""The answers of one stream on their way out: written one after the other, so that no two items interleave."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mpcompress_server.errors import UnreadAnswersError

# Progress is worth nothing to a client that does not read: beyond this it is dropped.
_MAX_UNREAD_PROGRESS = 1024


class Letter(NamedTuple):
    """Messages that travel together, what to call when they are written or never will be, and whether they count."""

    messages: Iterator[Any]
    release: Callable[[], None] | None
    final: bool


class Outbox:
    """A queue with one reader, the stream's writer.

    Args:
        max_unread: final events that may wait.
    """

    def __init__(self, max_unread: int) -> None:
        self._max_unread = max_unread
        self._letters: deque[Letter] = deque()
        self._unread = 0
        self._wake = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._letters)

    def progress(self, message: Any) -> None:
        """Queues an event that the client can do without."""
        if len(self._letters) < _MAX_UNREAD_PROGRESS:
            self._put(Letter(iter((message,)), None, False))

    def final(self, messages: Iterator[Any], release: Callable[[], None] | None = None) -> None:
        """Queues an item's final event. `release` is called once, whatever becomes of it.

        Raises:
            UnreadAnswersError: too many wait; this one is queued nevertheless.
        """
        self._unread += 1
        self._put(Letter(messages, release, True))
        if self._unread > self._max_unread:
            raise UnreadAnswersError(
                f"more than {self._max_unread} answers of this stream are unread; read while you write"
            )

    def nudge(self) -> None:
        """Makes the writer look again whether it is done."""
        self._wake.set()

    def _put(self, letter: Letter) -> None:
        if self._closed:
            if letter.release:
                letter.release()
            return
        self._letters.append(letter)
        self._wake.set()

    async def write(self, send: Callable[[Any], Any], done: Callable[[], bool]) -> None:
        """Sends letters until none is left and `done` says that none will come."""
        while True:
            while self._letters:
                letter = self._letters.popleft()
                try:
                    for message in letter.messages:
                        await send(message)
                finally:
                    if letter.release:
                        letter.release()
                self._unread -= letter.final
                del letter
            if done():
                return
            self._wake.clear()
            await self._wake.wait()

    def close(self) -> int:
        """Drops what is left and whatever still comes. Returns how many results were left."""
        self._closed = True
        results = sum(letter.release is not None for letter in self._letters)
        while self._letters:
            letter = self._letters.popleft()
            if letter.release:
                letter.release()
        return results
