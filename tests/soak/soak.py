"""Soak: good and bad items of several codecs against a real server that is not left in peace; prints the ledger.

    python -m tests.soak.soak --seconds 600

While clients stream (two of them through a proxy that resets their connections, one that reads slowly), the server's
configuration is reloaded, good and bad; its workers are killed; client processes are killed in mid-stream. Every item
must end in the payload that this process codes for it, or in an error that its input or its trouble explains; and at
the end the server must hold no more than at the start: memory, descriptors, threads, processes, temporary files.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np

from mpcompress_client.local import EdgeCodec
from tests.soak.clients import DATA, QPS, Client, Expected
from tests.soak.own_process import CODEC, CONFIG, EXTRA, ISOLATED, SoakedServer, soaked_server
from tests.soak.troubles import ResettingProxy, Trouble, killed_clients, reloads, wait_until, worker_kills

# What a run may end with beyond its start: allocator slack and idle threads of pools, not a leak per item.
SLACK = {"rss_bytes": 96 << 20, "descriptors": 8, "threads": 24, "processes": 0, "temporary files": 0}


def expected_payloads() -> Expected:
    """What the same codec gives in this process."""
    features = list(enumerate(np.load(DATA)))
    found = {(ISOLATED, i, qp): tensor.tobytes() for i, tensor in features for qp in QPS}
    for codec in (CODEC, EXTRA):
        local = EdgeCodec.load(codec)
        found |= {(codec, i, qp): local.compress(tensor, qp=qp).payload for i, tensor in features for qp in QPS}
    return found


def soak(server: SoakedServer, seconds: float, count: int) -> tuple[Counter[str], list[dict[str, int]]]:
    """Runs everything; returns the ledger and the server's usage at start and end."""
    expected = expected_payloads()
    warm = Client(server.address, 0, time.monotonic() + min(10.0, seconds / 4), expected)
    warm.start()
    warm.join()
    before = server.usage()
    done = threading.Event()
    proxy = ResettingProxy(server.address)
    until = time.monotonic() + seconds
    clients = [Client(server.address, seed, until, expected) for seed in range(1, count + 1)]
    clients += [Client(proxy.address, seed, until, expected, harmed=True) for seed in (101, 102)]
    clients.append(Client(server.address, 201, until, expected, pause_s=0.05))
    troubles = [
        Trouble(reloads(server), 2.0, done),
        Trouble(worker_kills(server), 3.0, done),
        Trouble(killed_clients(server.address, str(DATA)), 5.0, done),
        Trouble(proxy.reset, 1.5, done),
    ]
    for thread in [*clients, *troubles]:
        thread.start()
    for client in clients:
        client.join()
    done.set()
    for trouble in troubles:
        trouble.join()
    proxy.close()
    server.config.write_text(CONFIG)
    reloads_now = reloads(server)
    while "as at the start" not in reloads_now():
        continue
    # Retired codecs and killed workers need a moment; what does not go then is a leak.
    wait_until(lambda: _within(before, server.usage()), 30.0)
    ledger: Counter[str] = Counter()
    for thread in [warm, *clients, *troubles]:
        ledger += thread.ledger
        if thread.error is not None:
            ledger[f"WRONG: {type(thread).__name__} died of {thread.error!r}"] += 1
    return ledger, [before, server.usage()]


def _within(before: dict[str, int], after: dict[str, int]) -> bool:
    return all(after[name] - before[name] <= slack for name, slack in SLACK.items())


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpcompress-soak-") as folder, soaked_server(Path(folder)) as server:
        ledger, (before, after) = soak(server, options.seconds, options.clients)
    for name, count in sorted(ledger.items()):
        print(f"{count:10d}  {name}")
    for name in before:
        print(f"server {name}: {before[name]} -> {after[name]}")
    return 1 if not _within(before, after) or any(name.startswith("WRONG") for name in ledger) else 0


if __name__ == "__main__":
    sys.exit(main())
