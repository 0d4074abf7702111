"""What one core of a server codes: CPU milliseconds, items a second and jobs an hour of each kind of codec.

    VTM_HOME=/path/to/vtm python benchmarks/sizing.py     # minutes; without VTM its codecs are left out

One server with every shipped codec, the real features of tests/data, (257, 384) float16, one stream at a time. What
counts is the CPU time of the server and its encoders, not the client's; medians of rounds. Numerical libraries get one
thread.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from service_overhead import measure, started, wait_for

from mpcompress_client import CodecUnavailableError, CompressionClient

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
# Codec, features, parameter, how often each of the six tensors is coded in a round.
CODECS = (
    ("klt-imgfocus-vits14-final", "final", 24, 20),
    ("klt-imgfocus-vits14-block6", "block6", 24, 20),
    ("x265-dinov2-cls-tiles", "final", 27, 1),
    ("vvenc-dinov2-cls-tiles", "final", 27, 1),
    ("vtm-dinov2-cls-tiles", "final", 27, 1),
)
CONFIG = """
listen = "127.0.0.1:0"
[executors]
numeric_threads = 1
[limits]
default_timeout_s = 3600.0
"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="of calibrated codecs; picture codecs get one")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| codec | encode: CPU ms | a core | decode: CPU ms | a core | bytes |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        port_file, config = Path(folder) / "port", Path(folder) / "server.toml"
        config.write_text(CONFIG)
        serve = ["-m", "mpcompress_server", "serve", "--config", str(config), "--port-file", str(port_file)]
        with started(serve) as server, CompressionClient(wait_for(port_file, server), timeout_s=3600) as client:
            for row in rows(client, server, args.rounds):
                print(row, flush=True)


def rows(client: CompressionClient, server: Any, rounds: int) -> Iterator[str]:
    """A line for each codec that this server can run."""
    for codec, tap, qp, repeats in CODECS:
        items = list(np.load(DATA / f"features_{tap}.npy")) * repeats
        try:
            units = list(client.compress_many(items[:6], codec=codec, qp=qp))
        except CodecUnavailableError:
            yield f"| `{codec}` | not here | | | | |"
            continue
        again = units * repeats

        def encode(items: list[Any] = items, codec: str = codec, qp: float = qp) -> None:
            for _unit in client.compress_many(items, codec=codec, qp=qp):
                pass

        def decode(units: list[Any] = again) -> None:
            for _tensor in client.decompress_many(units):
                pass

        times = rounds if repeats > 1 else 1
        figures = [cpu_ms(run, server, len(items), times) for run in (encode, decode)]
        size = statistics.median(unit.nbytes for unit in units)
        yield f"| `{codec}`, QP {qp} | " + " | ".join(f"{ms:.3g} | {rate(ms)}" for ms in figures) + f" | {size:.0f} |"


def cpu_ms(run: Callable[[], None], server: Any, items: int, rounds: int) -> float:
    """Of the server, for an item."""
    return statistics.median(measure(run, server).there_s for _ in range(rounds)) / items * 1e3


def rate(ms: float) -> str:
    """Items of this cost that a core does."""
    return f"{1e3 / ms:.0f}/s" if ms < 100 else f"{3.6e6 / ms:.0f}/h"


if __name__ == "__main__":
    main()
