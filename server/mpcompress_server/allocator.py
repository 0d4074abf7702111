"""How this process asks the operating system for memory, so that what items took goes back when they are gone."""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Any

# Numbers from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
# Above this a block is a mapping of its own, which is gone when it is freed: a tensor. Chunks, 1 MiB, small items and
# the weights that a convolution puts into another order for each call, up to some 10 MB, come from the heap: a mapping
# for each takes a page fault for every 4 KiB.
_MAPPED_BYTES = 16 << 20
# What is kept free at the heap's top. With less, each chunk's pages are given back and fetched again, zeroed, for the
# next: more than half of a streaming server's CPU time (`benchmarks/service_overhead.py --only streaming`).
_KEPT_BYTES = 64 << 20
# Fetching 64 MiB again takes some ten milliseconds.
_TRIM_EVERY_S = 5.0


def return_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Tells glibc to use one arena and to give freed blocks back; whether it was told.

    By default each thread has an arena that keeps what it frees, and blocks of up to 32 MiB come from arenas once one
    of their size was freed: after hours of items of mixed sizes a server holds several times what it uses.
    Settings of the user (MALLOC_..., or glibc.malloc in GLIBC_TUNABLES) win. Call it before the first thread starts.
    """
    chosen = any(name.startswith("MALLOC_") for name in environment)
    mallopt = _function("mallopt")
    if chosen or "glibc.malloc" in environment.get("GLIBC_TUNABLES", "") or mallopt is None:
        return False
    settings = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, _MAPPED_BYTES), (_TRIM_THRESHOLD, _KEPT_BYTES))
    told = [mallopt(name, value) for name, value in settings]
    return all(told)


def trim() -> bool:
    """Gives back every free page in the middle of the heap, where glibc does it never; whether there were any."""
    malloc_trim = _function("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(ctypes.c_size_t(0)))


async def keep_trimmed(every_s: float = _TRIM_EVERY_S) -> None:
    """Trims again and again, in a thread, until it is cancelled."""
    while True:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(trim)


def _function(name: str) -> Any:
    """A function of the C library, or None where it is not glibc."""
    if sys.platform != "linux":
        return None
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
