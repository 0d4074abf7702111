"""What metrics cost: CPU time of a server per item, with and without them, in turns within one run.

    python benchmarks/metrics_overhead.py            # a minute

Small items of a codec that stores, so that there is nothing else to see. The server with metrics is scraped every
second, which is 15 times as often as Prometheus does by default.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry
from service_costs import measure, started, wait_for

from mpcompress_client import CompressionClient
from mpcompress_server.counters import Counters
from mpcompress_server.fleet import Fleet
from mpcompress_server.grpc_metrics import GrpcMetrics
from mpcompress_server.metrics import Metrics

CONFIG = """
listen = "127.0.0.1:0"
plugins = ["store_codec"]
[executors]
numeric_threads = 1
[[codecs]]
id = "store"
family = "store"
"""
METRICS = '[metrics]\nlisten = "127.0.0.1:{port}"\n'


@contextmanager
def scraped(url: str) -> Iterator[list[float]]:
    """Scrapes every second; gives the seconds that scrapes took."""
    done, seconds = threading.Event(), list[float]()

    def scrape() -> None:
        while not done.wait(1.0):
            start = time.perf_counter()
            with urllib.request.urlopen(url, timeout=30) as answer:
                answer.read()
            seconds.append(time.perf_counter() - start)

    thread = threading.Thread(target=scrape)
    thread.start()
    yield seconds
    done.set()
    thread.join()


async def counting_us(items: int = 20_000) -> float:
    """What the counting of one item takes by itself: four stages and a result, and two messages."""
    counters = Counters()
    Metrics(counters, Fleet(counters))
    grpc_metrics = GrpcMetrics(CollectorRegistry())
    messages = [metric.labels("bidi_stream", "s", "m") for metric in (grpc_metrics.received, grpc_metrics.sent)]
    start = time.process_time()
    for number in range(items):
        for stage in ("receive", "queue", "codec", "send"):
            counters.on_stage("compress", "store", stage, 0.001, number)
        counters.on_result("compress", "store", 1024, 1100, 16.0)
        for metric in messages:
            metric.inc()
    return 1e6 * (time.process_time() - start) / items


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--items", type=int, default=2000, help="of one round")
    parser.add_argument("--port", type=int, default=19464, help="for the metrics")
    options = parser.parse_args()
    item = np.arange(512, dtype=np.float16)
    found: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in found:
            (folder / kind).write_text(CONFIG + (METRICS.format(port=options.port) if kind == "with" else ""))
        commands = {}
        for kind in found:
            commands[kind] = ["-m", "mpcompress_server", "serve", "--log-level", "warning"]
            commands[kind] += ["--config", str(folder / kind), "--port-file", str(folder / f"{kind}.port")]
        with started(commands["without"]) as plain, started(commands["with"]) as counted:
            servers = {"without": plain, "with": counted}
            clients = {
                kind: CompressionClient(wait_for(folder / f"{kind}.port", server)) for kind, server in servers.items()
            }
            with scraped(f"http://127.0.0.1:{options.port}/metrics") as scrapes:
                for turn in range(options.rounds + 1):
                    for kind, client in clients.items():

                        def run(client: CompressionClient = client) -> None:
                            for _ in client.compress_many((item for _ in range(options.items)), codec="store"):
                                pass

                        cost = measure(run, servers[kind])
                        if turn:  # the first warms up
                            found[kind].append(1e6 * cost.there_s / options.items)
    medians = {kind: statistics.median(costs) for kind, costs in found.items()}
    for kind, costs in found.items():
        print(f"{kind:>8} metrics: {medians[kind]:.0f} us of CPU per item ({min(costs):.0f} to {max(costs):.0f})")
    pairs = [there - here for here, there in zip(found["without"], found["with"], strict=True)]
    cost = statistics.median(pairs)
    print(f"metrics cost {cost:.0f} us per item (median of differences between neighbours),")
    print(f"{100 * cost / medians['without']:.0f} % of an item that is only stored")
    print(f"counting alone: {asyncio.run(counting_us()):.0f} us per item")
    print(f"a scrape takes {1e3 * statistics.median(scrapes):.1f} ms")


if __name__ == "__main__":
    main()
