"""Whether one matrix product over the tokens of several items gives each item the bits of its own product.

    python benchmarks/gemm_rows.py

Rows of items (n, 384) times a basis (384, 384), float32, as numpy's BLAS multiplies them with the kernels of several
processors that this one can run. Three arrangements: the rows of 16 items after one another; each item padded with
zeros to a block of 64 rows, and the blocks multiplied after one another in one product; blocks of 64 rows filled with
rows of several items, one product for each block. Then the time of one product for all against one for each item, and
the same for a kernel of our own that adds in one order whatever a row's neighbours are.
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

import numba
import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float32]

KERNELS = ("Haswell", "Zen", "SkylakeX", "Cooperlake", "Sapphirerapids")
CHANNELS, ITEMS, BLOCK = 384, 16, 64
# Tokens of one item that share a basis: the details of a 16 x 16 grid's levels, and one odd number.
ROWS = (1, 4, 16, 41, 64, 192)


@numba.njit(fastmath={"contract"}, error_model="numpy")
def one_order(x: Matrix, basis: Matrix, out: Matrix) -> None:
    """X @ basis for a multiple of 4 rows: every element's products are added in the same order, whatever is around."""
    columns = basis.shape[1]
    out[:] = 0
    for row in range(0, x.shape[0], 4):
        t0, t1, t2, t3 = out[row], out[row + 1], out[row + 2], out[row + 3]
        for k in range(0, x.shape[1], 2):
            p, q = basis[k], basis[k + 1]
            p0, p1, p2, p3 = x[row, k], x[row + 1, k], x[row + 2, k], x[row + 3, k]
            q0, q1, q2, q3 = x[row, k + 1], x[row + 1, k + 1], x[row + 2, k + 1], x[row + 3, k + 1]
            for column in range(columns):
                t0[column] = t0[column] + p0 * p[column] + q0 * q[column]
                t1[column] = t1[column] + p1 * p[column] + q1 * q[column]
                t2[column] = t2[column] + p2 * p[column] + q2 * q[column]
                t3[column] = t3[column] + p3 * p[column] + q3 * q[column]


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
    transposed = np.ascontiguousarray(basis.T)
    rows = np.concatenate([joined, np.zeros((-len(joined) % 4, CHANNELS), np.float32)])
    padded = [np.concatenate([item, np.zeros((-len(item) % 4, CHANNELS), np.float32)]) for item in items]
    out, outs = np.empty_like(rows), [np.empty_like(item) for item in padded]

    def each() -> None:
        for item, own in zip(padded, outs, strict=True):
            one_order(item, transposed, own)

    one_order(rows, transposed, out)
    each()
    alone = np.concatenate([own[: len(item)] for own, item in zip(outs, items, strict=True)])
    if not np.array_equal(alone, out[: len(joined)]):
        raise SystemExit("an order that depends on neighbours")
    ways: tuple[Callable[[], object], ...] = (
        lambda: [item @ basis.T for item in items],
        lambda: joined @ basis.T,
        each,
        lambda: one_order(rows, transposed, out),
    )
    spent: list[list[float]] = [[], [], [], []]
    for _ in range(7):
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
