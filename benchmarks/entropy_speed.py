"""CPU time of our entropy coders: CompressAI's format against compressai.ans, and the own format against the ideal.

    python benchmarks/entropy_speed.py [--repeats 15]

The first table codes a 256 x 8 x 8 latent in 32 calls (8 channel slices, 4 sub-grids) with a Gaussian table of 64 rows
and 3133 columns, as `VitUnionLatentCodec` does. CompressAI's coder takes lists, and its `EntropyModel` makes them from
tensors at every call, which is part of "as called" and not of "lists kept". Without CompressAI only our figures are
printed. Ratios are within one run, so they survive a busy machine better than the times do.
"""

from __future__ import annotations

import argparse
import importlib
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from mpcompress.entropy import CdfTables, IndexedTables, decode, encode, quantize_pmf
from mpcompress.entropy.compressai_format import decode_many, decode_with_indexes, encode_many, encode_with_indexes

CALLS = 32
LATENT = 256 * 8 * 8


def cpu_ms(call: Callable[[], Any], repeats: int) -> float:
    """Median CPU milliseconds of this thread per call, after one call to warm up."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.thread_time()
        call()
        times.append((time.thread_time() - begin) * 1e3)
    return statistics.median(times)


def gaussian_arrays() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """64 Gaussian tables, scales 0.11 ... 256 spaced by a constant ratio, as CompressAI builds them: (64, 3133)."""
    scales = np.exp(np.linspace(math.log(0.11), math.log(256), 64))
    centers = np.ceil(scales * 6.1094).astype(int)  # the normal quantile of half the tail mass 1e-9
    cdfs = np.zeros((64, 3133), np.int32)
    erf = np.vectorize(math.erf)
    for row, scale, center in zip(cdfs, scales, centers, strict=True):
        edges = (np.arange(-center, center + 2) - 0.5) / (scale * math.sqrt(2))
        pmf = np.diff(erf(edges)) / 2
        freqs = quantize_pmf(np.append(pmf, 1e-9), 16)
        row[1 : freqs.size + 1] = np.cumsum(freqs, dtype=np.int64)
    return cdfs, (2 * centers + 3).astype(np.int32), (-centers).astype(np.int32)


def load_compressai() -> Any:
    """CompressAI's coder, or None."""
    try:
        importlib.import_module("mpcompress.layers._compressai")
        return importlib.import_module("compressai.ans")
    except ImportError:
        return None


def compare_with_compressai(repeats: int) -> None:
    """Print the first table."""
    rng = np.random.default_rng(0)
    cdfs, lengths, offsets = gaussian_arrays()
    tables = IndexedTables(cdfs, lengths, offsets)
    indexes = rng.integers(0, 45, (CALLS, LATENT // CALLS)).astype(np.int32)
    scales = np.exp(np.linspace(math.log(0.11), math.log(256), 64))
    symbols = np.rint(rng.normal(0, scales[indexes])).astype(np.int32)
    strings = encode_many(symbols, indexes, tables)

    def ours() -> list[bytes]:
        return [encode_with_indexes(s, i, tables) for s, i in zip(symbols, indexes, strict=True)]

    rows: list[tuple[str, int, float, float]] = [
        (
            "mpcompress, 32 calls",
            repeats,
            cpu_ms(ours, repeats),
            cpu_ms(
                lambda: [decode_with_indexes(s, i, tables) for s, i in zip(strings, indexes, strict=True)],
                repeats,
            ),
        ),
        (
            "mpcompress, encode_many / decode_many",
            repeats,
            cpu_ms(lambda: encode_many(symbols, indexes, tables), repeats),
            cpu_ms(lambda: decode_many(strings, indexes, tables), repeats),
        ),
    ]
    ans = load_compressai()
    if ans is not None:

        def as_lists() -> tuple[Any, Any, Any]:
            return cdfs.tolist(), lengths.tolist(), offsets.tolist()

        def theirs(kept: tuple[Any, Any, Any] | None) -> list[bytes]:
            return [
                ans.RansEncoder().encode_with_indexes(s.tolist(), i.tolist(), *(kept or as_lists()))
                for s, i in zip(symbols, indexes, strict=True)
            ]

        def theirs_back(kept: tuple[Any, Any, Any] | None) -> list[Any]:
            return [
                ans.RansDecoder().decode_with_indexes(s, i.tolist(), *(kept or as_lists()))
                for s, i in zip(strings, indexes, strict=True)
            ]

        if theirs(None) != strings or not np.array_equal(theirs_back(None), symbols):
            raise SystemExit("the two coders disagree")
        kept = as_lists()
        few = max(3, repeats // 4)
        rows.append(
            (
                "compressai.ans, lists kept",
                few,
                cpu_ms(lambda: theirs(kept), few),
                cpu_ms(lambda: theirs_back(kept), few),
            )
        )
        rows.append(
            (
                "compressai.ans, as called",
                few,
                cpu_ms(lambda: theirs(None), few),
                cpu_ms(lambda: theirs_back(None), few),
            )
        )
    size = sum(map(len, strings))
    print(f"CompressAI's format: {LATENT} symbols, {CALLS} strings, {size} bytes; CPU ms, medians of n; to the first")
    print(f"{'coder':<40}{'n':>4}{'encode':>9}{'decode':>9}{'encode':>9}{'decode':>9}")
    for name, n, encoding, decoding in rows:
        ratios = f"{encoding / rows[0][2]:8.1f}x{decoding / rows[0][3]:8.1f}x"
        print(f"{name:<40}{n:4}{encoding:9.2f}{decoding:9.2f}{ratios}")


def own_format(repeats: int) -> None:
    """Print the second table."""
    scales = 2.0 ** (np.arange(64) / 8 - 3)
    reaches = np.ceil(scales * 8).astype(int) + 1
    pmfs = [np.exp(-np.abs(np.arange(-r, r + 1)) / s) for r, s in zip(reaches, scales, strict=True)]
    tables = CdfTables.from_pmfs(pmfs, -reaches, precision=16, escape_mass=2.0**-12)
    print(f"\nown format, 64 Laplace tables; CPU, medians of {repeats}")
    print(f"{'symbols':>9}{'bits/sym':>10}{'ideal B':>10}{'bytes':>9}{'excess':>9}{'enc Msym/s':>12}{'dec Msym/s':>12}")
    for n, top in ((98_688, 24), (98_688, 40), (98_688, 8), (4096, 24), (512, 24), (64, 24)):
        rng = np.random.default_rng(n)
        rows = rng.integers(0, top, n).astype(np.uint8)
        symbols = np.rint(rng.laplace(0, scales[rows])).astype(np.int32)
        symbols = np.clip(symbols, -reaches[rows], reaches[rows]).astype(np.int32)
        begins = np.cumsum(tables.lengths) - tables.lengths
        freqs = tables.freqs[begins[rows] + symbols + reaches[rows]]
        ideal = float((tables.precision - np.log2(freqs)).sum()) / 8
        data = encode(symbols, rows, tables)
        speeds = [
            n / cpu_ms(call, repeats) / 1e3
            for call in (
                lambda s=symbols, r=rows: encode(s, r, tables),
                lambda d=data, r=rows: decode(d, r, tables),
            )
        ]
        print(
            f"{n:9}{8 * ideal / n:10.3f}{ideal:10.1f}{len(data):9}{len(data) / ideal - 1:9.2%}"
            f"{speeds[0]:12.1f}{speeds[1]:12.1f}"
        )


def main() -> None:
    """Parse the command line and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="calls per median (default %(default)s)")
    repeats = max(1, parser.parse_args().repeats)
    compare_with_compressai(repeats)
    own_format(repeats)


if __name__ == "__main__":
    main()
