"""Tables and streams that several entropy-coding tests share."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from mpcompress.entropy import CdfTables, IndexedTables


@pytest.fixture(scope="session")
def laplace_tables() -> CdfTables:
    """40 zero-mean Laplace tables, scales 2^-2 ... 2^2.9, cut where 2^-9 or so remains for the escape."""
    return _laplace(15)


@pytest.fixture(scope="session")
def fine_tables() -> CdfTables:
    """The same with the precision of short endings."""
    return _laplace(16)


def _laplace(precision: int) -> CdfTables:
    scales = 2.0 ** (np.arange(40) / 8 - 2)
    reaches = np.ceil(scales * 6).astype(int)
    pmfs = [np.exp(-np.abs(np.arange(-r, r + 1)) / s) for r, s in zip(reaches, scales, strict=True)]
    return CdfTables.from_pmfs(pmfs, -reaches, precision=precision, escape_mass=2.0**-9)


@pytest.fixture(scope="session")
def indexed_tables() -> IndexedTables:
    """Twelve CompressAI tables of random shapes and offsets, narrow to wide, with padding."""
    rng = np.random.default_rng(5)
    sizes = np.array([2, 3, 4, 7, 12, 20, 33, 60, 100, 170, 290, 500])
    cdfs = np.full((12, 503), -7, np.int32)
    for row, size in zip(cdfs, sizes, strict=True):
        inner = np.sort(rng.choice(np.arange(1, 1 << 16), size - 1, replace=False))
        row[: size + 1] = [0, *inner, 1 << 16]
    return IndexedTables(cdfs, sizes + 1, -(sizes // 2) + rng.integers(-3, 4, 12))


@pytest.fixture(scope="session")
def compressai_ans() -> Any:
    """CompressAI's own coder; skips where it is not installed."""
    pytest.importorskip("torch")
    try:
        importlib.import_module("mpcompress.layers._compressai")  # makes `import compressai` work with a CPU torch
        return importlib.import_module("compressai.ans")
    except ImportError as error:
        pytest.skip(f"no compressai: {error}")
