"""What a Prometheus scrape finds; docs/metrics.md explains every name.

Events in the lives of items are counted where they happen; what is a state (queues, budgets, readiness) is read in
the event loop at the time of the scrape. Labels are bounded: codec ids come from the settings, never from clients.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from mpcompress_server.counters import Counters
from mpcompress_server.fleet import Fleet
from mpcompress_server.reservation import ByteBudget
from mpcompress_server.settings import SettingsError

_STAGE_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_BPFP = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0, 32.0)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# What the server turned away by itself; other errors are the item's own.
_REJECTED = (
    *("NO_ROOM", "DEADLINE_UNREACHABLE", "ITEM_TOO_LARGE", "SERVER_DRAINING", "OUT_OF_MEMORY"),
    *("PERMISSION_DENIED", "UNKNOWN_CODEC", "CODEC_UNAVAILABLE"),
)
_SCRAPE_S = 5.0


class Metrics:
    """The metrics of one server, in a registry of their own.

    Args:
        counters: of the server; its hooks are set to this object's.
        fleet: of the server.
    """

    def __init__(self, counters: Counters, fleet: Fleet) -> None:
        self.registry = CollectorRegistry()
        self.port = 0
        self._http: Any = None
        self._stage = Histogram(
            "mpcompress_stage_seconds",
            "Time that an item spent in a stage.",
            ("operation", "codec", "stage"),
            buckets=_STAGE_S,
            registry=self.registry,
        )
        self._bpfp = Histogram(
            "mpcompress_bpfp", "Bits of the .mpc file per element.", ("codec",), buckets=_BPFP, registry=self.registry
        )
        self._input = self._counter("mpcompress_input_bytes", "Bytes of items that were coded.", "operation", "codec")
        self._output = self._counter("mpcompress_output_bytes", "Bytes that they became.", "operation", "codec")
        # `labels` costs as much as counting itself.
        self._child: Callable[..., Any] = lru_cache(maxsize=4096)(lambda metric, *labels: metric.labels(*labels))
        counters.on_stage = self._observe_stage
        counters.on_result = self._observe_result
        self._state = _State(counters, fleet)
        self.registry.register(self._state)

    def watch(self, budget: ByteBudget) -> None:
        """From now on scrapes tell of this budget."""
        self._state.budget = budget

    def serve(self, listen: str) -> None:
        """Answers scrapes at HOST:PORT or :PORT, in a thread. Raises SettingsError."""
        host, _, port = listen.rpartition(":")
        try:
            self._http, _ = start_http_server(int(port), host.strip("[]") or "0.0.0.0", self.registry)  # noqa: S104
        except OSError as error:
            raise SettingsError(f"metrics.listen: cannot listen on {listen}: {error.strerror or error}") from error
        self.port = int(self._http.server_address[1])

    async def close(self) -> None:
        """Ends the thread of `serve`."""
        if self._http is not None:
            await asyncio.to_thread(self._http.shutdown)
            self._http.server_close()
            self._http = None

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _observe_stage(self, operation: str, codec_id: str, stage: str, seconds: float, _item: int) -> None:
        self._child(self._stage, operation, codec_id, stage).observe(seconds)

    def _observe_result(self, operation: str, codec_id: str, came: int, went: int, bpfp: float | None) -> None:
        self._child(self._input, operation, codec_id).inc(came)
        self._child(self._output, operation, codec_id).inc(went)
        if bpfp is not None:
            self._child(self._bpfp, codec_id).observe(bpfp)


class _State(Collector):
    """Reads counters and states in the event loop, which alone changes them."""

    def __init__(self, counters: Counters, fleet: Fleet) -> None:
        self.budget: ByteBudget | None = None
        self._counters = counters
        self._fleet = fleet
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def collect(self) -> Iterable[Metric]:
        """Called by the exporter's thread."""
        if threading.get_ident() == self._thread:
            return self._read()
        found: Future[list[Metric]] = Future()

        def read() -> None:
            try:
                found.set_result(self._read())
            except Exception as error:
                found.set_exception(error)

        try:
            self._loop.call_soon_threadsafe(read)
            return found.result(_SCRAPE_S)
        except (RuntimeError, TimeoutError):  # the loop has ended, or hangs: the other metrics still tell something
            return []

    def _read(self) -> list[Metric]:
        counters, fleet = self._counters, self._fleet
        rejected = {key: count for key, count in counters.items.items() if key[1] in _REJECTED}
        ready = {(loaded.id,): float(fleet.ready(loaded)) for loaded in fleet.codecs}
        metrics: list[Metric] = [
            _count("mpcompress_items", "Items by result: ok, or the reason.", ("operation", "result"), counters.items),
            _count("mpcompress_items_rejected", "Items turned away.", ("operation", "reason"), rejected),
            _count("mpcompress_items_cancelled", "Items given up.", ("cause", "stage"), counters.cancelled),
            _count("mpcompress_batch_items_dropped", "Items given up in a call.", ("codec",), _one(counters.dropped)),
            _count("mpcompress_batches_shrunk", "Calls too large for a device.", ("codec",), _one(counters.shrunk)),
            _count("mpcompress_worker_restarts", "Worker processes ended.", ("codec",), _one(fleet.restarts())),
            _gauge("mpcompress_queue_items", "Items that wait for their codec.", ("codec",), _one(fleet.waiting())),
            _gauge("mpcompress_codec_ready", "1: items can be coded.", ("codec",), ready),
            _batches(counters.batches),
        ]
        if fleet.slots is not None:
            metrics += [
                _gauge("mpcompress_slots", "Encoders that may run at a time.", (), {(): fleet.slots.count}),
                _gauge("mpcompress_slots_busy", "Those that do.", (), {(): len(fleet.slots.running)}),
            ]
        if self.budget is not None:
            budget = self.budget
            metrics += [
                _gauge("mpcompress_inflight_bytes", "Bytes reserved by unfinished items.", (), {(): budget.used}),
                _gauge("mpcompress_inflight_bytes_limit", "The most of them.", (), {(): budget.limit}),
                _gauge("mpcompress_inflight_items", "Items that hold a reservation.", (), {(): budget.items}),
            ]
        return [*metrics, *_gpu()]


def _one(values: Any) -> dict[tuple[str], float]:
    return {(key,): value for key, value in values.items()}


def _count(name: str, text: str, labels: tuple[str, ...], values: Any) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Any) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _batches(counts: Tally[tuple[str, int]]) -> Metric:
    family = HistogramMetricFamily("mpcompress_batch_items", "Items of one codec call.", labels=("codec",))
    for codec_id in sorted({codec_id for codec_id, _ in counts}):
        sizes = {size: count for (codec, size), count in counts.items() if codec == codec_id}
        buckets: list[Any] = [(f"{bound}.0", _up_to(sizes, bound)) for bound in _BATCH]
        buckets.append(("+Inf", sum(sizes.values())))
        family.add_metric((codec_id,), buckets, sum(size * count for size, count in sizes.items()))
    return family


def _up_to(sizes: dict[int, int], bound: int) -> int:
    return sum(count for size, count in sizes.items() if size <= bound)


def _gpu() -> list[Metric]:
    """Memory of the devices that a codec of this process has used already; asking must not wake one up."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return []
    values: dict[tuple[str, str], float] = {}
    readers: dict[str, Callable[[int], int]] = {
        "allocated": torch.cuda.memory_allocated,
        "reserved": torch.cuda.memory_reserved,
    }
    for device in range(torch.cuda.device_count()):
        for kind, read in readers.items():
            values[f"cuda:{device}", kind] = read(device)
    return [_gauge("mpcompress_gpu_memory_bytes", "GPU memory of this process.", ("device", "kind"), values)]
