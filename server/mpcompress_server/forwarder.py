"""The scheduler of a codec that another server has: every job is under way at once, and waits there."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from functools import partial

from mpcompress_server.errors import ItemCancelledError, ServerDrainingError
from mpcompress_server.forwarding import Forwarding
from mpcompress_server.remotes import RemoteServer, RemoteServers
from mpcompress_server.scheduler import Finished, Job


class Forwarder:
    """The jobs of one codec. How many there are is for admission, which has the memory of each.

    Args:
        codec_id: of the codec.
        server: where it runs.
        servers: gets the server back.
    """

    def __init__(self, codec_id: str, server: RemoteServer, servers: RemoteServers) -> None:
        self._id = codec_id
        self._server = server
        self._servers = servers
        self._tasks: dict[Job, asyncio.Task[Finished]] = {}
        self._closing = False

    @property
    def ready(self) -> bool:
        """Whether a worker is there that can at least decode with the codec."""
        info = self._server.codecs.get(self._id)
        return self._server.reachable and info is not None and bool(info.fingerprint)

    def submit(self, job: Job) -> None:
        """Sends a job on its way; the worker says how many go before it."""
        task = self._tasks[job] = asyncio.create_task(Forwarding(self._server, job).run())
        task.add_done_callback(partial(self._settle, job))

    def cancel(self, job: Job) -> None:
        """Ends the call at the worker, which ends the encoder there."""
        task = self._tasks.get(job)
        if task is not None:
            task.cancel()

    def _settle(self, job: Job, task: asyncio.Task[Finished]) -> None:
        del self._tasks[job]
        job.work = None
        if task.cancelled():
            stopped = ServerDrainingError("the server stops")
            job.result.set_exception(stopped if self._closing else ItemCancelledError("cancelled"))
        elif (error := task.exception()) is not None:
            job.result.set_exception(error)
        else:
            job.result.set_result(task.result())

    def expected_s(self, codec_id: str, stream: Hashable, size_class: Hashable) -> float:
        """0: only the worker knows, and refuses what cannot be in time."""
        return 0.0

    def waiting(self) -> dict[str, int]:
        """Jobs that have not been started, as far as their workers have said."""
        return {self._id: sum(job.work is not None for job in self._tasks)}

    async def start(self) -> None:
        """Does nothing."""

    async def close(self) -> None:
        """Fails all jobs; the last codec of a server closes its connections. Closing twice is harmless."""
        if self._closing:
            return
        self._closing = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._servers.close(self._server)
