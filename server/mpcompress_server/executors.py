"""Where a codec runs: a thread of the server, or a process that may die alone.

An executor holds one instance of one codec and runs one call at a time; a codec with several instances has several.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from mpcompress.codec import FeatureCodec
from mpcompress_server.calls import Call, CallResult, run_call


class Executor(Protocol):
    """Runs the calls of one codec instance."""

    async def start(self) -> None:
        """Loads and warms up the codec. Raises what loading raises."""

    async def run(self, call: Call) -> CallResult:
        """Runs one call. Failures are outcomes, not exceptions."""

    async def close(self) -> None:
        """Waits for the running call and gives everything back."""


class ThreadExecutor:
    """A codec in a thread of its own, so that one instance is only ever called by that thread.

    Args:
        load: makes the instance; called in the thread.
        name: of the thread.
    """

    def __init__(self, load: Callable[[], FeatureCodec], name: str) -> None:
        self._load = load
        self._codec: FeatureCodec | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    async def start(self) -> None:
        """Loads and warms up."""

        def start() -> FeatureCodec:
            codec = self._load()
            codec.warm_up()
            return codec

        self._codec = await asyncio.get_running_loop().run_in_executor(self._pool, start)

    async def run(self, call: Call) -> CallResult:
        """Runs one call in the thread."""
        if self._codec is None:
            raise RuntimeError("run before start")
        return await asyncio.get_running_loop().run_in_executor(self._pool, run_call, self._codec, call)

    async def close(self) -> None:
        """Waits for the running call: a thread cannot be stopped."""
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)
