"""Soak: mixed good and bad items from several clients against a real server, for a while; prints the ledger.

    python tests/soak/soak.py --seconds 600

Every item must end in a result equal to the one coded in this process, or in the error that its input asks for, and the
server must not grow: resident memory, file descriptors and threads are read from /proc at the start and at the end.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from demo.server_process import running_server
from mpcompress_client import CodedUnit, CompressionClient, InvalidRequestError, MPCompressError
from mpcompress_client.local import EdgeCodec

CODEC = "klt-imgfocus-vits14-final"
DATA = Path(__file__).parents[1] / "data" / "features_final.npy"
# Growth of the server's resident memory that a run may end with: allocator slack, not a leak per item.
SLACK_BYTES = 96 << 20


def server_pid() -> int:
    """The process that `running_server` started: this process's only child."""
    children = [pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()]
    (pid,) = children
    return int(pid)


def usage(pid: int) -> dict[str, int]:
    """Resident bytes, file descriptors and threads of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "rss_bytes": int(status["VmRSS"].split()[0]) << 10,
        "descriptors": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "threads": int(status["Threads"]),
    }


class Client(threading.Thread):
    """One client: streams of random items until the deadline, each checked."""

    def __init__(self, address: str, seed: int, until: float, expected: dict[tuple[int, int], bytes]) -> None:
        super().__init__(daemon=True)
        self.ledger: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._address, self._random, self._until, self._expected = address, random.Random(seed), until, expected
        self._features = np.load(DATA)

    def run(self) -> None:
        try:
            with CompressionClient(self._address) as client:
                while time.monotonic() < self._until:
                    self._stream(client)
        except BaseException as error:  # handed to the main thread, which reports it
            self.error = error

    def _stream(self, client: CompressionClient) -> None:
        """Twenty tensors over one stream; now and then it is dropped half-way."""
        qp = self._random.choice([16, 24, 32])
        picks = [self._random.randrange(len(self._features) + 1) for _ in range(20)]

        def items() -> Iterator[np.ndarray]:
            for pick in picks:
                bad = np.full((257, 384), np.nan, np.float16)
                yield self._features[pick] if pick < len(self._features) else bad

        leave_at = self._random.randrange(20) if self._random.random() < 0.1 else None
        units: list[CodedUnit] = []
        results = client.compress_many(items(), codec=CODEC, qp=qp, errors="return")
        for index, (pick, result) in enumerate(zip(picks, results, strict=False)):
            if index == leave_at:
                results.close()
                self.ledger["streams dropped by the client"] += 1
                return
            if isinstance(result, MPCompressError):
                right = isinstance(result, InvalidRequestError) and pick == len(self._features)
                self.ledger["bad input refused" if right else f"WRONG: {result!r}"] += 1
            else:
                right = self._expected.get((pick, qp)) == result.to_bytes()
                self.ledger["compressed" if right else "WRONG: unit differs"] += 1
                units.append(result)
        damaged = bytearray(units[0].to_bytes())
        damaged[-1] ^= 1
        try:
            client.decompress(bytes(damaged))
            self.ledger["WRONG: damaged unit decoded"] += 1
        except MPCompressError:
            self.ledger["damaged unit refused"] += 1
        for tensor in client.decompress_many(units):
            self.ledger["decompressed" if np.isfinite(tensor).all() else "WRONG: not finite"] += 1


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=4)
    options = parser.parse_args()
    features = np.load(DATA)
    local = EdgeCodec.load(CODEC)
    expected = {
        (index, qp): local.compress(tensor, qp=qp).to_bytes()
        for index, tensor in enumerate(features)
        for qp in (16, 24, 32)
    }
    ledger: Counter[str] = Counter()
    with running_server() as address:
        pid = server_pid()
        warm = Client(address, 0, time.monotonic() + min(10, options.seconds / 4), expected)
        warm.start()
        warm.join()
        before = usage(pid)
        until = time.monotonic() + options.seconds
        clients = [Client(address, seed, until, expected) for seed in range(1, options.clients + 1)]
        for client in clients:
            client.start()
        for client in [warm, *clients]:
            client.join()
            ledger += client.ledger
            if client.error is not None:
                ledger[f"WRONG: client died of {client.error!r}"] += 1
        after = usage(pid)
    for name, count in sorted(ledger.items()):
        print(f"{count:10d}  {name}")
    for name in before:
        print(f"server {name}: {before[name]} -> {after[name]}")
    grown = after["rss_bytes"] - before["rss_bytes"] > SLACK_BYTES or after["descriptors"] > before["descriptors"] + 8
    return 1 if grown or any(name.startswith("WRONG") for name in ledger) else 0


if __name__ == "__main__":
    sys.exit(main())
