"""Whether one matrix product over the tokens of several items gives each item the bits of its own product.

    python benchmarks/gemm_rows.py

Rows of items (n, 384) times a basis (384, 384), float32, as numpy's BLAS multiplies them with the kernels of several
processors that this one can run. Three arrangements: the rows of 16 items after one another; each item padded with
zeros to a block of 64 rows, and the blocks multiplied after one another in one product; blocks of 64 rows filled with
rows of several items, one product for each block. Then the time of one product for all against one for each item, and
the same for the kernel of calibrated codecs that adds in one order whatever a row's neighbours are (`klt_products`).
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import numpy as np
from numpy.typing import NDArray

from mpcompress.transforms.klt_products import multiply_rows, new_tile, to_panels

Matrix = NDArray[np.float32]

KERNELS = ("Prescott", "Haswell", "Zen", "SkylakeX", "Cooperlake", "Sapphirerapids")
CHANNELS, ITEMS, BLOCK = 384, 16, 64
# Tokens of one item that share a basis: the details of a 16 x 16 grid's levels, and some odd numbers.
ROWS = (1, 2, 4, 8, 16, 41, 64, 192)
MEMBERS = np.arange(CHANNELS)
TILE = new_tile()


def one_order(x: Matrix, panels: Matrix, out: Matrix) -> None:
    """Products x @ basis.T."""
    multiply_rows(x, np.full(len(x), CHANNELS), 0, panels, MEMBERS, out, TILE)


def measure(kernel: str) -> None:
    """Prints the rows of the table for the kernel that this process runs."""
    random = np.random.default_rng(0)
    basis = random.standard_normal((CHANNELS, CHANNELS)).astype(np.float32)
    for count in ROWS:
        items = [random.standard_normal((count, CHANNELS)).astype(np.float32) for _ in range(ITEMS)]
        alone = np.concatenate([item @ basis.T for item in items])
        joined = np.concatenate(items)
        differ = [_share(joined @ basis.T, alone)]
        padded = np.zeros((ITEMS, -(-count // BLOCK) * BLOCK, CHANNELS), np.float32)
        for place, item in zip(padded, items, strict=True):
            place[:count] = item
        own = np.concatenate([(block @ basis.T)[:count] for block in padded])
        whole = (padded.reshape(-1, CHANNELS) @ basis.T).reshape(padded.shape)
        differ.append(_share(np.concatenate([block[:count] for block in whole]), own))
        spare = np.zeros((-len(joined) % BLOCK, CHANNELS), np.float32)
        blocks = np.concatenate([joined, spare]).reshape(-1, BLOCK, CHANNELS)
        filled = np.concatenate([block @ basis.T for block in blocks])[: len(joined)]
        differ.append(_share(filled, own))
        shares = " | ".join("none" if not share else f"{100 * share:.1f} %" for share in differ)
        print(f"| {kernel} | {count} | {shares} | {_times(items, joined, basis)} |", flush=True)


def _share(found: Matrix, expected: Matrix) -> float:
    return float(np.mean(found != expected))


def _times(items: list[Matrix], joined: Matrix, basis: Matrix) -> str:
    """Microseconds per item: a product each and one for all, by BLAS and by the kernel of one order."""
    out, outs = (np.empty((len(rows), CHANNELS), np.float32) for rows in (joined, items[0]))
    panels = to_panels(basis)

    def each() -> None:
        for item in items:
            one_order(item, panels, outs)

    one_order(joined, panels, out)
    for place, item in enumerate(items):
        one_order(item, panels, outs)
        if not np.array_equal(outs, out[place * len(item) : (place + 1) * len(item)]):
            raise SystemExit("an order that depends on neighbours")
    ways: tuple[Callable[[], object], ...] = (
        lambda: [item @ basis.T for item in items],
        lambda: joined @ basis.T,
        each,
        lambda: one_order(joined, panels, out),
    )
    spent: list[list[float]] = [[], [], [], []]
    for _ in range(15):
        for way, times in zip(ways, spent, strict=True):
            start = time.thread_time()
            way()
            times.append(time.thread_time() - start)
    return " | ".join(f"{1e6 * statistics.median(times) / ITEMS:.0f}" for times in spent)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", help=argparse.SUPPRESS)
    kernel = parser.parse_args().kernel
    if kernel is not None:
        measure(kernel)
        return
    print(
        "| kernel | tokens | after one another | padded | filled blocks | each us | all us | own each us | own all us |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for kernel in KERNELS:
        environment = {**os.environ, "OPENBLAS_CORETYPE": kernel}
        subprocess.run([sys.executable, __file__, "--kernel", kernel], env=environment, check=True)


if __name__ == "__main__":
    main()
