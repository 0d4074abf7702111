"""Without torch and compressai the tests of this folder are not collected."""

import importlib.util
from pathlib import Path

import pytest

_NEEDED = ("torch", "compressai", "numba", "safetensors")
if any(importlib.util.find_spec(name) is None for name in _NEEDED):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py")]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    if all(importlib.util.find_spec(name) for name in _NEEDED):
        import torch

        torch.set_num_threads(1)
