"""The answers of one stream on their way out: written one after the other, so that no two items interleave."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mpcompress_proto.bundles import Pace
from mpcompress_proto.parcel import Parcel, bundled
from mpcompress_server.errors import UnreadAnswersError

# Progress is worth nothing to a client that does not read: beyond this it is dropped.
_MAX_UNREAD_PROGRESS = 1024


class Letter(NamedTuple):
    """An item's messages that follow one another.

    Args:
        messages: made one by one.
        nbytes: their bulk, when it is one message that may travel in a bundle; else None.
        release: called when they are written or never will be.
        final: whether they count as an answer.
    """

    messages: Iterator[Any]
    nbytes: int | None
    release: Callable[[], None] | None
    final: bool


class Outbox:
    """A queue with one reader, the stream's writer.

    Args:
        max_unread: final events that may wait.
        most_bundled: messages of a bundle; 1 for none.
        pace: of the stream; None: a new one.
    """

    def __init__(self, max_unread: int, most_bundled: int = 1, pace: Pace | None = None) -> None:
        self._max_unread = max_unread
        self._most_bundled = most_bundled
        self._pace = pace or Pace()
        self._letters: deque[Letter] = deque()
        self._leaving: list[Letter] = []
        self._unread = 0
        self._wake = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._letters)

    def progress(self, message: Any) -> None:
        """Queues an event that the client can do without."""
        if len(self._letters) < _MAX_UNREAD_PROGRESS:
            self._put(Letter(iter((message,)), 0, None, False))

    def final(
        self, messages: Iterator[Any], nbytes: int | None = None, release: Callable[[], None] | None = None
    ) -> None:
        """Queues an item's final event; the arguments are those of `Letter`. `release` is called once in any case.

        Raises:
            UnreadAnswersError: too many wait; this one is queued nevertheless.
        """
        self._unread += 1
        self._put(Letter(messages, nbytes, release, True))
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
                letters = self._leaving = self._next()
                try:
                    for message in self._messages(letters):
                        self._pace.leaves(message.nbytes if isinstance(message, Parcel) else 0)
                        await send(message)
                        self._pace.left()
                        del message
                finally:
                    for letter in letters:
                        if letter.release:
                            letter.release()
                self._unread -= sum(letter.final for letter in letters)
                self._leaving = []
                del letters, letter
            if done():
                return
            self._wake.clear()
            await self._wake.wait()

    def _next(self) -> list[Letter]:
        """What travels next: the first letter, with others when all of them together are a bundle."""
        letters = [self._letters.popleft()]
        nbytes = letters[0].nbytes
        while nbytes is not None and self._letters and len(letters) < self._most_bundled:
            more = self._letters[0].nbytes
            if more is None or nbytes + more > self._pace.room:
                break
            nbytes += more
            letters.append(self._letters.popleft())
        return letters

    def _messages(self, letters: list[Letter]) -> Iterator[Any]:
        if len(letters) == 1:
            return letters[0].messages
        return iter((bundled([message for letter in letters for message in letter.messages]),))

    def close(self) -> int:
        """Drops what is left and whatever still comes. Returns how many results were left."""
        self._closed = True
        results = sum(letter.release is not None for letter in (*self._leaving, *self._letters))
        while self._letters:
            letter = self._letters.popleft()
            if letter.release:
                letter.release()
        return results
