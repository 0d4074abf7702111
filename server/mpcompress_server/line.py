"""Jobs that wait for one codec: taken in batches of one key, stream by stream in turn.

    stream A  k k k m k ...      lead: the oldest job of the stream whose turn it is
    stream B  m                  batch: the lead, then jobs of its key from all streams in turn
    stream C  k k

A stream's turn is over when its batch is: those that come while it runs are before it in the next round. A stream with
thousands of jobs so delays the single job of another by no more than the batch that runs already, and streams that
come and go with single jobs cannot keep out the one with thousands. Any job can leave without a
trace, whatever its place; joining, leaving and taking cost nothing that grows with the number of jobs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpcompress_server.scheduler import Job

_NEWEST_WEIGHT = 0.2


class _Waiting:
    """The jobs of one stream, or of one stream and key, in order."""

    def __init__(self) -> None:
        self.jobs: OrderedDict[Job, None] = OrderedDict()
        self.expected_s = 0.0

    def add(self, job: Job) -> None:
        self.jobs[job] = None
        self.expected_s += job.expected_s

    def remove(self, job: Job) -> None:
        del self.jobs[job]
        self.expected_s = self.expected_s - job.expected_s if self.jobs else 0.0

    def first(self) -> Job:
        return next(iter(self.jobs))


_NOBODY: OrderedDict[Hashable, _Waiting] = OrderedDict()


class Line:
    """The queue of one codec.

    Args:
        max_batch: most jobs of a batch.
        max_delay_s: how long the lead of a batch that is not full waits for others.
        instances: codec instances that take from it.
        clock: the event loop's.
    """

    def __init__(
        self, *, max_batch: int = 1, max_delay_s: float = 0.0, instances: int = 1, clock: Callable[[], float]
    ) -> None:
        self.max_batch = max_batch
        self._max_delay_s = max_delay_s
        self._instances = instances
        self._clock = clock
        # Both in the order in which streams were served, longest ago first.
        self._streams: OrderedDict[Hashable, _Waiting] = OrderedDict()
        self._keys: dict[Hashable, OrderedDict[Hashable, _Waiting]] = {}
        self._counts: dict[Hashable, int] = {}
        self._service_s: dict[Hashable, float] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return sum(self._counts.values())

    # ------------------------------------------------------------------------------------------------- waiting

    def join(self, job: Job) -> int:
        """Adds a job. Returns how many go before it when none joins."""
        job.queued_at = self._clock()
        job.expected_s = self._service_s.get(job.size_class, 0.0)
        own = self._streams.get(job.stream)
        if own is None:
            own = self._streams[job.stream] = _Waiting()
        own.add(job)
        streams = self._keys.get(job.key)
        if streams is None:
            streams = self._keys[job.key] = OrderedDict()
        if job.stream not in streams:
            streams[job.stream] = _Waiting()
        streams[job.stream].add(job)
        self._counts[job.key] = self._counts.get(job.key, 0) + 1
        self._wake.set()
        place = len(own.jobs) - 1
        return place + sum(min(len(other.jobs), place + 1) for other in self._streams.values() if other is not own)

    def leave(self, job: Job) -> bool:
        """Removes a job. False when it does not wait here."""
        own = self._streams.get(job.stream)
        if own is None or job not in own.jobs:
            return False
        own.remove(job)
        if not own.jobs:
            del self._streams[job.stream]
        streams = self._keys[job.key]
        streams[job.stream].remove(job)
        if not streams[job.stream].jobs:
            del streams[job.stream]
        self._counts[job.key] -= 1
        if not streams:
            del self._keys[job.key], self._counts[job.key]
        return True

    def in_order(self) -> Iterator[Job]:
        """The jobs as they will be taken, if none joins, none leaves and none shares a batch."""
        turns = [iter(own.jobs) for own in self._streams.values()]
        while turns:
            left = []
            for turn in turns:
                for job in turn:
                    yield job
                    left.append(turn)
                    break
            turns = left

    def drain(self) -> list[Job]:
        """Removes all jobs."""
        jobs = [job for own in self._streams.values() for job in own.jobs]
        for job in jobs:
            self.leave(job)
        return jobs

    # ------------------------------------------------------------------------------------------------- batches

    async def next_batch(self) -> list[Job]:
        """Removes the jobs of the next batch as soon as it is full or its lead has waited long enough."""
        while True:
            due = None
            for stream, own in self._streams.items():
                lead = own.first()
                at = lead.queued_at + self._max_delay_s
                if self._counts[lead.key] >= self.max_batch or at <= self._clock():
                    return self._take(stream, lead)
                due = at if due is None else min(due, at)
            self._wake.clear()
            if due is None:
                await self._wake.wait()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._wake.wait()

    def served(self, batch: Sequence[tuple[Hashable, Hashable]]) -> None:
        """The turn of these streams and keys is over: they are behind all that have come meanwhile."""
        for stream, key in batch:
            for turn in (self._streams, self._keys.get(key, _NOBODY)):
                if stream in turn:
                    turn.move_to_end(stream)

    def _take(self, stream: Hashable, lead: Job) -> list[Job]:
        batch = []
        streams, job = self._keys[lead.key], lead
        streams.move_to_end(stream, last=False)
        while True:
            batch.append(job)
            self.leave(job)
            self.served([(job.stream, lead.key)])
            if len(batch) >= self.max_batch or not streams:
                return batch
            job = next(iter(streams.values())).first()

    # ----------------------------------------------------------------------------------------------- estimates

    def observe(self, size_class: Hashable, seconds: float) -> None:
        """Learns how long a job of a class of sizes kept its codec."""
        known = self._service_s.get(size_class, seconds)
        self._service_s[size_class] = known + _NEWEST_WEIGHT * (seconds - known)

    def expected_s(self, stream: Hashable, size_class: Hashable) -> float:
        """Seconds until a job that joined now would be done; 0 when nothing waits.

        With nothing before it a job is never turned away: it is what corrects a wrong estimate. What is unknown counts
        as nothing, and so does what is running: only what cannot be in time is to be found out.
        """
        if not self._streams:
            return 0.0
        service_s = self._service_s.get(size_class, 0.0)
        own = self._streams.get(stream)
        own_s = own.expected_s if own else 0.0
        others_s = sum(
            min(other.expected_s, own_s + service_s) for key, other in self._streams.items() if key != stream
        )
        return (own_s + others_s) / self._instances + service_s
