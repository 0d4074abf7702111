"""CPU time of an item in a batch of 16 against that of one which comes alone, for calibrated codecs.

    python benchmarks/klt_batches.py --codec klt-imgfocus-vits14-final --features tests/data/features_final.npy
    python benchmarks/klt_batches.py --codec klt-minilm-last --features features/last/test

Tensors as they are and, for a codec with a grid, parts of them from 2 x 2 to 16 x 16 tokens; sequences of all lengths,
and those of fewer than 50 tokens. Both ways give equal units, which is checked. Medians of 15 rounds, in turns, at the
codec's default qp, of milliseconds per item: transform and quantiser, and with entropy coding. One thread.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np

from mpcompress.codec import Array, CodingParams, TensorSpec
from mpcompress.feature_files import open_features
from mpcompress.registry import load, preset

BATCH, ROUNDS = 16, 15
Items = list[tuple[Array, tuple[int, int] | None]]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=Path, required=True, help="folders or files, one per codec")
    parser.add_argument("--codec", nargs="+", required=True, help="preset ids")
    args = parser.parse_args()
    print("| codec | items | tokens, mean | transform alone | in a batch | with entropy coding, alone | in a batch |")
    print("|---|---|---|---|---|---|---|")
    for name, folder in zip(args.codec, args.features, strict=True):
        codec = load(preset(name))
        codec.warm_up()
        for label, items in _sets(codec, folder):
            times = _measure(codec, items)
            tokens = statistics.fmean(len(h) for h, _ in items)
            print(f"| {name} | {label} | {tokens:.0f} | {' | '.join(f'{ms:.2f}' for ms in times)} |", flush=True)


def _sets(codec: Any, folder: Path) -> list[tuple[str, Items]]:
    tensors: list[Array] = []
    for tensor in open_features(folder):
        h = tensor.read().astype(np.float16)
        tensors += [h] if h.ndim == 2 else list(h)
    if codec.token_res is None:
        short = [h for h in tensors if len(h) < 50]
        return [("all lengths", _items(tensors)), ("below 50 tokens", _items(short))]
    prefix, (height, width) = codec.prefix_tokens, codec.token_res
    random = np.random.default_rng(1)
    parts: Items = []
    for h, _ in _items(tensors):
        h1, w1 = (int(random.integers(2, side + 1)) for side in (height, width))
        grid = h[prefix:].reshape(height, width, -1)[:h1, :w1]
        parts.append((np.concatenate([h[:prefix], grid.reshape(h1 * w1, -1)]), (h1, w1)))
    return [("whole", _items(tensors)), ("parts", parts)]


def _items(tensors: list[Array]) -> Items:
    return [(tensors[number % len(tensors)], None) for number in range(BATCH)]


def _measure(codec: Any, items: Items) -> list[float]:
    params = [
        codec.resolve([TensorSpec(name="h", dtype="float16", shape=h.shape)], CodingParams(token_res=grid))
        for h, grid in items
    ]
    batch, tokens = [{"h": h} for h, _ in items], [threading.Event() for _ in items]

    def alone() -> list[Callable[[], Any]]:
        calls = zip(batch, params, tokens, strict=True)
        return [codec.begin_compress_mixed([item], [own], [token])[0] for item, own, token in calls]

    def together() -> list[Callable[[], Any]]:
        return list(codec.begin_compress_mixed(batch, params, tokens))

    spent: list[list[float]] = [[], [], [], []]
    for _ in range(ROUNDS):
        units = []
        for way, (first, whole) in ((alone, spent[:2]), (together, spent[2:])):
            start = time.thread_time()
            stages = way()
            middle = time.thread_time()
            units.append([stage() for stage in stages])
            first.append(middle - start)
            whole.append(time.thread_time() - start)
        if units[0] != units[1]:
            raise SystemExit("a batch that is not its items")
    medians = [1000 * statistics.median(times) / len(items) for times in spent]
    return [medians[0], medians[2], medians[1], medians[3]]


if __name__ == "__main__":
    main()
