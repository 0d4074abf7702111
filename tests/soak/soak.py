"""Soak: good and bad items of several codecs against a real server that is not left in peace; prints the ledger.

    python -m tests.soak.soak --seconds 600

While clients stream (two of them through a proxy that resets their connections, one that reads slowly), the server's
configuration is reloaded, good and bad; its worker and encoder processes are killed; client processes are killed in
mid-stream. Every item must end in the payload or tensor that this process codes for it, bit for bit, or in an error
that its input or its trouble explains. What the server holds is looked at after a warm-up with all of this, every
second from then on, and at the end: memory, descriptors, threads, processes and temporary files must be level.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

# Before numpy is imported, here and in the server: another number of threads may round products of float32 matrices
# otherwise, and what comes back is compared in every bit.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

from tests.soak.cases import Case, make_cases
from tests.soak.clients import Client
from tests.soak.own_process import Sampler, SoakedServer, Usage, soaked_server
from tests.soak.troubles import ResettingProxy, Trouble, killed_clients, process_kills, reloads, wait_until

# What an idle server may hold beyond what it held after the warm-up: idle threads of pools, a connection's descriptors.
SLACK: Usage = {"resident bytes": 24 << 20, "descriptors": 4, "threads": 8, "processes": 0, "temporary files": 0}
# Between the medians of the first and the last third under load.
LOAD_SLACK_BYTES = 32 << 20
# Level for this long: longer than the server's trimming of its heap takes turns.
_LEVEL_SAMPLES, _IDLE_S = 40, 60.0
# A soak without them would prove nothing.
TROUBLES = (
    "bad input refused",
    "damaged units refused",
    "streams dropped by the client",
    "reloads, configuration with another codec",
    "reloads, configuration with a mistake",
    "reloads, configuration as at the start",
    "worker and encoder processes killed",
    "clients killed",
    "connections reset",
)


def load(server: SoakedServer, seconds: float, count: int, cases: Mapping[str, Sequence[Case]]) -> Counter[str]:
    """Clients and troubles for some time; returns the ledger. Afterwards the server is as configured at the start."""
    done = threading.Event()
    proxy = ResettingProxy(server.address)
    until = time.monotonic() + seconds
    clients = [Client(server.address, seed, until, cases) for seed in range(1, count + 1)]
    clients += [Client(proxy.address, seed, until, cases, harmed=True) for seed in (101, 102)]
    clients.append(Client(server.address, 201, until, cases, pause_s=0.05))
    troubles = [
        Trouble(reloads(server), 2.0, done),
        Trouble(process_kills(server), 3.0, done),
        Trouble(killed_clients(server.address), 5.0, done),
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
    reload_once_more = reloads(server)
    while "as at the start" not in reload_once_more():
        continue
    ledger: Counter[str] = Counter()
    for thread in [*clients, *troubles]:
        ledger += thread.ledger
        if thread.error is not None:
            ledger[f"WRONG: {type(thread).__name__} died of {thread.error!r}"] += 1
    return ledger


def judge(ledger: Counter[str], samples: Sequence[Usage], before: Usage, after: Usage, codecs: Sequence[str]) -> None:
    """Adds a line that begins with WRONG for everything that is not as it must be."""
    for name in [*TROUBLES, *(f"{done}, {codec}" for codec in codecs for done in ("compressed", "decompressed"))]:
        if not ledger[name]:
            ledger[f"WRONG: never: {name}"] += 1
    for name, slack in SLACK.items():
        if after[name] - before[name] > slack:
            ledger[f"WRONG: {name} grew from {before[name]} to {after[name]}"] += 1
    if after["temporary files"]:
        ledger["WRONG: temporary files stayed"] += after["temporary files"]
    thirds = [_median(samples, third) for third in (0, 2)]
    if thirds[1] - thirds[0] > LOAD_SLACK_BYTES:
        ledger[f"WRONG: resident bytes under load grew from {thirds[0]} to {thirds[1]}"] += 1


def _median(samples: Sequence[Usage], third: int) -> int:
    part = [sample["resident bytes"] for sample in samples]
    return int(median(part[len(part) * third // 3 : len(part) * (third + 1) // 3] or [0]))


def idle(server: SoakedServer) -> Usage:
    """What a server holds that has nothing to do any more: retired codecs and killed workers need a moment."""
    seen = [server.usage()]

    def level() -> bool:
        seen.append(server.usage())
        latest = seen[-_LEVEL_SAMPLES:]
        same = {(usage["descriptors"], usage["threads"], usage["processes"]) for usage in latest}
        resident = [usage["resident bytes"] for usage in latest]
        return len(latest) == _LEVEL_SAMPLES and len(same) == 1 and max(resident) - min(resident) < 1 << 20

    wait_until(level, _IDLE_S)
    return seen[-1]


def report(ledger: Counter[str], samples: Sequence[Usage], before: Usage, after: Usage, seconds: float) -> None:
    """Prints the ledger."""
    for name, count in sorted(ledger.items()):
        print(f"{count:10d}  {name}")
    coded = sum(count for name, count in ledger.items() if name.startswith(("compressed", "decompressed")))
    wrong = sum(count for name, count in ledger.items() if name.startswith("WRONG"))
    print(f"{coded} results in {seconds:.0f} s, all compared; {wrong} things wrong")
    print("\nheld by the server      idle after warm-up    under load, least to most    idle at the end")
    for name in before:
        scale, unit = (1 << 20, " MiB") if name.endswith("bytes") else (1, "")
        seen = [sample[name] // scale for sample in samples] or [0]
        load = f"{min(seen)} to {max(seen)}{unit}"
        print(f"{name:<24}{before[name] // scale:>14}{unit:<8}{load:^28}{after[name] // scale:>12}{unit}")
    tenths = [samples[len(samples) * part // 10 : len(samples) * (part + 1) // 10] for part in range(10)]
    medians = [int(median([sample["resident bytes"] for sample in part])) >> 20 for part in tenths if part]
    print(f"resident MiB under load, medians of tenths of the time: {' '.join(map(str, medians))}")


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--warm-up", type=float, default=20, metavar="SECONDS")
    parser.add_argument("--clients", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mpcompress-soak-") as folder, soaked_server(Path(folder)) as server:
        server.config.write_text(server.configs["with another codec"])
        cases = make_cases(server.config)
        ledger = load(server, options.warm_up, options.clients, cases)
        before = idle(server)
        done = threading.Event()
        sampler = Sampler(server, done)
        sampler.start()
        ledger = Counter({name: count for name, count in ledger.items() if name.startswith("WRONG")})
        ledger += load(server, options.seconds, options.clients, cases)
        done.set()
        sampler.join()
        after = idle(server)
    judge(ledger, sampler.samples, before, after, list(cases))
    report(ledger, sampler.samples, before, after, options.seconds)
    return 1 if any(name.startswith("WRONG") for name in ledger) else 0


if __name__ == "__main__":
    sys.exit(main())
