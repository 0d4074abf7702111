"""Where a codec runs: a thread of the server, or a process that may die alone.

An executor holds one instance of one codec and runs one call at a time, or one in each of the codec's two stages; a
codec with several instances has several executors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from mpcompress.codec import FeatureCodec
from mpcompress_server.calls import Call, CallResult, begin_call, run_call
from mpcompress_server.loop_thread import LoopThread


class Executor(Protocol):
    """Runs the calls of one codec instance.

    Attributes:
        ready: whether it can, now or in a moment.
        on_change: called in the event loop when `ready` has changed.
    """

    ready: bool
    on_change: Callable[[], None]

    async def start(self) -> None:
        """Loads and warms up the codec. Raises what loading raises."""

    async def run(self, call: Call, next_may_begin: Callable[[], None]) -> CallResult:
        """Runs one call. Failures are outcomes, not exceptions.

        `next_may_begin` may be called once, in the event loop, when another call could begin before this one ends.
        """

    async def close(self) -> None:
        """Waits for the running call and gives everything back."""


class ThreadExecutor:
    """A codec in a thread of its own, and its second stages in another, so that two calls overlap.

    Args:
        load: makes the instance; called in the thread.
        name: of the thread.
    """

    def __init__(self, load: Callable[[], FeatureCodec], name: str) -> None:
        self.ready = True
        self.on_change: Callable[[], None] = lambda: None
        self._load = load
        self._codec: FeatureCodec | None = None
        self._first = LoopThread(name)
        self._second = LoopThread(f"{name}-second")

    async def start(self) -> None:
        """Loads and warms up."""

        def start() -> FeatureCodec:
            codec = self._load()
            codec.warm_up()
            return codec

        self._codec = await self._first.run(start)

    async def run(self, call: Call, next_may_begin: Callable[[], None]) -> CallResult:
        """Runs one call in the threads."""
        if self._codec is None:
            raise RuntimeError("run before start")
        if not self._codec.staged:
            return await self._first.run(run_call, self._codec, call)
        finish = await self._first.run(begin_call, self._codec, call)
        if not finish.too_many:  # else the next one waits until it is known how small it has to be
            next_may_begin()
        return await self._second.run(finish)

    async def close(self) -> None:
        """Waits for the running calls: a thread cannot be stopped."""
        for thread in (self._first, self._second):
            await asyncio.to_thread(thread.close)
