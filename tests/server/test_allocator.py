"""What takes memory gives it back: to the operating system, not to a free list."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from mpcompress_server import allocator

pytestmark = pytest.mark.skipif(allocator._function("malloc_trim") is None, reason="needs glibc")

# Blocks of many sizes, freed in an order that leaves holes, with small ones between them that stay.
_CHURN = """
import random, sys
from pathlib import Path
from mpcompress_server import allocator
told = allocator.return_freed_memory()

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS:"))

chooser, kept, blocks = random.Random(1), [], []
before = resident()
for _ in range(400):
    blocks.append(bytearray(chooser.randrange(1 << 14, 1 << 20)))
    kept.append(bytearray(600))
full = resident()
chooser.shuffle(blocks)
blocks.clear()
freed = resident()
allocator.trim()
print(told, full - before, freed - before, resident() - before)
"""


def _churn(**environment: str) -> tuple[bool, int, int, int]:
    result = subprocess.run(
        [sys.executable, "-c", _CHURN], capture_output=True, text=True, check=True, timeout=120, env=environment
    )
    told, *sizes = result.stdout.split()
    full, freed, trimmed = map(int, sizes)
    return told == "True", full, freed, trimmed


def test_freed_memory_goes_back():
    told, full, freed, trimmed = _churn()
    assert told
    assert full > 100 << 20
    assert freed > 32 << 20  # in holes that only trimming finds
    assert trimmed < 4 << 20


@pytest.mark.parametrize(
    "setting", [("MALLOC_ARENA_MAX", "2"), ("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")], ids=["old", "new"]
)
def test_the_users_settings_win(setting):
    assert not _churn(**dict([setting]))[0]


async def test_a_server_trims(start_server, monkeypatch):
    trimmed = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(allocator, "trim", lambda: loop.call_soon_threadsafe(trimmed.set))
    keep_trimmed = allocator.keep_trimmed
    monkeypatch.setattr(allocator, "keep_trimmed", lambda: keep_trimmed(0.01))
    server = await start_server()
    await asyncio.wait_for(trimmed.wait(), 30)
    await server.stop(grace_s=0.0)
    assert server._trimming.cancelled() or server._trimming.cancelling()
