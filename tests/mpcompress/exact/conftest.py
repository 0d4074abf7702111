"""Converted codecs; without torch and compressai no test of this folder is collected."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_NEEDED = ("torch", "compressai", "numba")
if any(importlib.util.find_spec(name) is None for name in _NEEDED):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py")]


@pytest.fixture(scope="session")
def exact_codecs() -> dict[str, Any]:
    """Converted codecs, without and with context."""
    from exact_settings import small_codec

    from mpcompress.exact.convert import exact_from

    return {"plain": exact_from(small_codec()), "ctx": exact_from(small_codec(ctx=True))}
