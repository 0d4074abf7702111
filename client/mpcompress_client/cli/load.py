"""Load on a codec: closed loops of workers, or arrivals at a rate. Measures; prints nothing.

Latencies of an open loop count from when an item was due, not from when a worker was free to send it: a server that
falls behind cannot hide its queue.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mpcompress_client.errors import MPCompressError

# Workers of an open loop: more unfinished items than this, and the rest waits here, which its latency shows.
_MOST_WORKERS = 128


@dataclass(frozen=True, kw_only=True)
class Load:
    """How items come.

    Args:
        concurrency: workers of a closed loop, or None.
        rate: items per second of an open loop, or None.
        seconds: for how long items are started.
    """

    concurrency: int | None = None
    rate: float | None = None
    seconds: float


@dataclass
class Samples:
    """What one load gave: seconds of each item, errors by name, wall and CPU seconds (`server_cpu_s` None: unknown)."""

    latencies_s: list[float] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    server_cpu_s: float | None = None


def run_load(load: Load, item: Callable[[], None], tick: Callable[[float], None], server_pid: int | None) -> Samples:
    """Runs `item` under a load.

    Args:
        load: how items come.
        item: does one item; called by several threads; an MPCompressError counts as an error.
        tick: told the seconds that passed, from time to time.
        server_pid: process whose CPU time, with that of its children, is measured too.

    Raises:
        Exception: what `item` raised that is no MPCompressError.
    """
    samples = Samples()
    due: queue.SimpleQueue[float | None] = queue.SimpleQueue()
    lock = threading.Lock()
    crashes: list[BaseException] = []
    server_before = None if server_pid is None else process_cpu_s(server_pid)
    go, stop = threading.Event(), threading.Event()
    ends = 0.0

    def one(since: float) -> None:
        try:
            item()
        except MPCompressError as error:
            name = type(error).__name__
            with lock:
                samples.errors[name] = samples.errors.get(name, 0) + 1
        else:
            with lock:
                samples.latencies_s.append(time.perf_counter() - since)

    def worker() -> None:
        go.wait()
        try:
            if load.rate is None:
                while time.perf_counter() < ends and not stop.is_set():
                    one(time.perf_counter())
            else:
                while (since := due.get()) is not None and not stop.is_set():
                    one(since)
        except BaseException as error:
            crashes.append(error)
            stop.set()

    count = load.concurrency or _MOST_WORKERS
    threads = [threading.Thread(target=worker, name="mpcompress-bench", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    cpu, started = time.process_time(), time.perf_counter()
    ends = started + load.seconds
    go.set()
    index, told = 0, started

    def arrive(now: float) -> None:
        """Hands out the items that are due by now: all of them in the end, however late this thread comes."""
        nonlocal index
        while load.rate is not None and index / load.rate < min(load.seconds, now - started):
            due.put(started + index / load.rate)
            index += 1

    try:
        while (now := time.perf_counter()) < ends and not stop.is_set():
            tick(now - told)
            told = now
            next_at = min(now + 0.1, ends)
            arrive(now)
            if load.rate is not None:
                next_at = min(next_at, started + index / load.rate)
            stop.wait(max(0.0, next_at - time.perf_counter()))
        arrive(ends)
        tick(time.perf_counter() - told)
    except BaseException:
        stop.set()
        raise
    finally:
        for _ in threads:
            due.put(None)
    for thread in threads:
        thread.join()
    if crashes:
        raise crashes[0]
    samples.wall_s, samples.cpu_s = time.perf_counter() - started, time.process_time() - cpu
    if server_pid is not None:
        after = process_cpu_s(server_pid)
        if after is not None and server_before is not None:
            samples.server_cpu_s = after - server_before
    return samples


def process_cpu_s(pid: int) -> float | None:
    """CPU seconds of a process and its children, Linux only; None where that cannot be read."""
    total, waiting = 0.0, [pid]
    try:
        per_second = os.sysconf("SC_CLK_TCK")
        while waiting:
            process = waiting.pop()
            # The name in brackets may hold blanks; utime, stime, cutime and cstime are fields 14 to 17.
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in fields[11:15]) / per_second
            children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            waiting += [int(child) for child in children]
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return total
