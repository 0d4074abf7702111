"""Matrix products in which every row has its own bits, whatever rows are beside it and however many.

BLAS adds the products of an element in an order that depends on how many rows there are and, with the kernels of some
processors, on where among them the row lies: one product over the rows of several items is then not what each of them
gets alone. Here every element is one sum from the first column to the last, on any machine. Vectors run along the
outputs, for which the matrix is kept in panels of `PANEL` outputs that lie beside one another::

    panels (P, C, PANEL)     for each of a panel's C columns: PANEL outputs
    tile                     8 rows x PANEL sums, in registers while the C columns go by

On one thread this is as fast as BLAS for a row or two, and 1.2 to 6 times as fast for more (benchmarks/gemm_rows.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from mpcompress._numba import njit, types

__all__ = ["PANEL", "multiply", "multiply_rows", "new_tile", "to_panels"]

PANEL = 48
"""Outputs of a panel: three vectors of 16, six of 8 or twelve of 4."""

_TILE = 8
_FEW = 4
_VECTORS = 3

Array = Any
Int = Any
_cgutils: Any = cgutils
FloatArray = NDArray[np.float32]
u64: Any = np.uint64  # of an index: a signed one may be negative and count from the end, which takes time to find out

_F32_2 = types.Array(types.float32, 2, "C")
_F32_2R = types.Array(types.float32, 2, "C", readonly=True)
_F32_3R = types.Array(types.float32, 3, "C", readonly=True)
_I64_1R = types.Array(types.int64, 1, "C", readonly=True)


def to_panels(rows: FloatArray) -> FloatArray:
    """A matrix (K, C) as panels (P, C, PANEL), the last filled with zeros."""
    count, channels = rows.shape
    panels = np.zeros((-(-count // PANEL), channels, PANEL), np.float32)
    for number, panel in enumerate(panels):
        part = rows[number * PANEL : (number + 1) * PANEL]
        panel[:, : len(part)] = part.T
    return panels


def new_tile() -> FloatArray:
    """Room for the sums of a tile."""
    return np.empty((_TILE, PANEL), np.float32)


def multiply(x: FloatArray, panels: FloatArray, count: int) -> FloatArray:
    """Products (n, count) of rows (n, C) and a matrix (count, C) in panels."""
    y = np.empty((len(x), count), np.float32)
    multiply_rows(x, np.full(len(x), count), 0, panels, np.arange(count), y, new_tile())
    return y


def _registers(context: Any) -> tuple[int, int]:
    """Floats in a vector of the machine that is compiled for, and the rows whose sums its registers hold."""
    triple, _, features = context.codegen().magic_tuple()
    if "+avx512f" in features:
        return 16, 8
    if "+avx" in features:
        return 8, 4
    return 4, 4 if "86" in triple.split("-")[0] else 8


def _tile(rows: int) -> Any:
    """Compiled code that fills `sums` (rows, PANEL): of x[first + r], from column `start` on, times a panel's columns.

    Rows from `end` on are row end - 1 again: it comes to the same. Numba keeps arrays in memory and LLVM prefers
    vectors half as long as the machine has: neither would keep these sums in registers of their own accord.
    """

    @intrinsic
    def tile(typing: Any, x: Any, first: Any, end: Any, start: Any, panels: Any, number: Any, sums: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            x, panels, sums = (context.make_array(signature.args[n])(context, builder, args[n]) for n in (0, 4, 6))
            lanes, most = _registers(context)
            code = _Code(builder, lanes)
            columns = builder.extract_value(panels.shape, 1)
            panel = code.after(panels.data, builder.mul(args[5], builder.mul(columns, code.index(PANEL))))
            for top in range(0, rows, most):
                numbers = [builder.add(args[1], code.index(r)) for r in range(top, min(top + most, rows))]
                last = builder.sub(args[2], code.index(1))
                numbers = [builder.select(builder.icmp_signed("<", n, last), n, last) for n in numbers]
                width = builder.extract_value(x.shape, 1)
                tokens = [code.after(x.data, builder.add(builder.mul(n, width), args[3])) for n in numbers]
                for left in range(0, PANEL, lanes * _VECTORS):
                    found = code.sums(tokens, code.after(panel, code.index(left)), columns)
                    for r, vectors in enumerate(found, top):
                        for v, vector in enumerate(vectors):
                            to = code.after(sums.data, code.index(r * PANEL + left + v * lanes))
                            builder.store(vector, code.as_vector(to), align=4)
            return context.get_dummy_value()

        return types.void(x, types.int64, types.int64, types.int64, panels, types.int64, sums), generate

    return tile


class _Code:
    """Instructions on vectors of so many floats."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self._builder, self._lanes = builder, lanes
        self._vector = ir.VectorType(ir.FloatType(), lanes)
        self.index = ir.IntType(64)

    def after(self, pointer: Any, count: Any) -> Any:
        """The float that comes `count` after another."""
        return self._builder.gep(pointer, [count])

    def as_vector(self, pointer: Any) -> Any:
        """The vector that begins with a float."""
        return self._builder.bitcast(pointer, self._vector.as_pointer())

    def sums(self, tokens: list[Any], panel: Any, columns: Any) -> list[list[Any]]:
        """For each token _VECTORS vectors: the sum of each of its `columns` numbers times those of a panel's row."""
        builder, zero = self._builder, ir.Constant(self._vector, None)
        kept = [[_cgutils.alloca_once_value(builder, zero) for _ in range(_VECTORS)] for _ in tokens]
        with _cgutils.for_range(builder, columns) as loop:
            row = self.after(panel, builder.mul(loop.index, self.index(PANEL)))
            places = [self.after(row, self.index(v * self._lanes)) for v in range(_VECTORS)]
            outputs = [builder.load(self.as_vector(place), align=4) for place in places]
            for token, totals in zip(tokens, kept, strict=True):
                value = self._everywhere(builder.load(self.after(token, loop.index)))
                for total, output in zip(totals, outputs, strict=True):
                    # Contracted: one instruction where there is one.
                    product = builder.fmul(value, output, flags=("contract",))
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        return [[builder.load(total) for total in totals] for totals in kept]

    def _everywhere(self, value: Any) -> Any:
        unknown = ir.Constant(self._vector, ir.Undefined)
        first = self._builder.insert_element(unknown, value, ir.IntType(32)(0))
        return self._builder.shuffle_vector(
            first, unknown, ir.Constant(ir.VectorType(ir.IntType(32), self._lanes), None)
        )


_tile_of_eight, _tile_of_four = _tile(_TILE), _tile(_FEW)


@njit(types.void(_F32_2R, _I64_1R, types.int64, _F32_3R, _I64_1R, _F32_2, _F32_2))
def multiply_rows(x: Array, depths: Array, start: Int, panels: Array, members: Array, y: Array, sums: Array) -> None:
    """Products of columns of x (n, C), from `start` on, and a matrix in panels.

    `members` (m,), rising, says which column of y (n, ...) each of its first m rows makes. `depths` (n,), falling, says
    which columns each row of y needs: those below; others may be left as they are. `sums` is a `new_tile`.
    """
    rows = x.shape[0]
    for number in range(-(-members.size // PANEL)):
        begin = number * PANEL
        left = members.size - begin
        columns = u64(left if left < PANEL else PANEL)
        leftmost = members[u64(begin)]
        dense = members[u64(begin) + columns - u64(1)] - leftmost + 1 == columns
        while rows > 0 and depths[u64(rows - 1)] <= leftmost:
            rows -= 1
        for i in range(0, rows, _TILE):
            below = rows - i
            if below > _FEW:
                _tile_of_eight(x, i, rows, start, panels, number, sums)
            else:
                _tile_of_four(x, i, rows, start, panels, number, sums)
            for r in range(u64(below if below < _TILE else _TILE)):
                if dense:
                    for k in range(columns):
                        y[u64(i) + r, u64(leftmost) + k] = sums[r, k]
                else:
                    for k in range(columns):
                        y[u64(i) + r, u64(members[u64(begin) + k])] = sums[r, k]
