"""Matrix products of few rows, in which every row has its own bits whatever rows are beside it.

BLAS adds the products of an element in an order that depends on how many rows there are and, with the kernels of some
processors, on where among them the row lies: one product over the rows of several items is then not what each of them
gets alone. Here two rows meet five basis vectors at a time, and every element is added in the one order of one loop.
Beside BLAS this is faster for few rows, two to five times for four, and slower for many (benchmarks/gemm_rows.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpcompress._numba import njit, types

__all__ = ["FEW_ROWS", "multiply_rows"]

FEW_ROWS = 64
"""Rows of a group that are multiplied here; more are BLAS's. What an encoder sends depends on it, so it is fixed."""

Array = Any
Int = Any
u64: Any = np.uint64  # of an index: a signed one may be negative and count from the end, which takes time to find out

_F32_2 = types.Array(types.float32, 2, "C")
_F32_2R = types.Array(types.float32, 2, "C", readonly=True)
_I64_1R = types.Array(types.int64, 1, "C", readonly=True)


@njit(
    types.void(_F32_2R, _I64_1R, types.int64, types.int64, _F32_2R, types.int64, _I64_1R, _F32_2),
    fastmath={"reassoc", "nsz", "contract"},
)
def multiply_rows(
    x: Array, depths: Array, start: Int, width: Int, basis: Array, first: Int, members: Array, y: Array
) -> None:
    """Products of `width` columns of x (n, C), from `start` on, and rows of a basis: `first` and those that follow.

    `members` (m,), rising, says which column of y each of the m rows makes. `depths` (n,), falling, says which columns
    each row of y needs: those below; others may be left as they are. y has room for n rows, one more where n is odd.
    """
    last = x.shape[0] - 1
    top = members.size - 1
    begin = u64(start)
    none = np.float32(0)
    rows = x.shape[0]
    for k in range(0, members.size, 5):
        # Beyond the last row or member, the last again: it comes to the same.
        k1 = min(k + 1, top)
        k2 = min(k + 2, top)
        k3 = min(k + 3, top)
        k4 = min(k + 4, top)
        b0 = u64(first + k)
        b1 = u64(first + k1)
        b2 = u64(first + k2)
        b3 = u64(first + k3)
        b4 = u64(first + k4)
        c0 = u64(members[u64(k)])
        c1 = u64(members[u64(k1)])
        c2 = u64(members[u64(k2)])
        c3 = u64(members[u64(k3)])
        c4 = u64(members[u64(k4)])
        while rows > 0 and depths[u64(rows - 1)] <= members[u64(k)]:
            rows -= 1
        for i in range(0, rows, 2):
            i0 = u64(i)
            i1 = u64(min(i + 1, last))
            s0 = s1 = s2 = s3 = s4 = none
            t0 = t1 = t2 = t3 = t4 = none
            for c in range(u64(width)):
                p = x[i0, begin + c]
                q = x[i1, begin + c]
                v = basis[b0, c]
                s0 += p * v
                t0 += q * v
                v = basis[b1, c]
                s1 += p * v
                t1 += q * v
                v = basis[b2, c]
                s2 += p * v
                t2 += q * v
                v = basis[b3, c]
                s3 += p * v
                t3 += q * v
                v = basis[b4, c]
                s4 += p * v
                t4 += q * v
            y[i0, c0] = s0
            y[i0, c1] = s1
            y[i0, c2] = s2
            y[i0, c3] = s3
            y[i0, c4] = s4
            below = i0 + u64(1)
            y[below, c0] = t0
            y[below, c1] = t1
            y[below, c2] = t2
            y[below, c3] = t3
            y[below, c4] = t4
