"""The fuzz targets on healthy, damaged and arbitrary input; `make fuzz` runs them for as long as you like."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_targets import TARGETS
from seeds import seeds


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_seeds(name: str) -> None:
    chooser = random.Random(7)
    for seed in seeds()[name]:
        TARGETS[name](seed)
        for _ in range(150):
            mutated = bytearray(seed)
            for _ in range(chooser.randint(1, 4)):
                mutated[chooser.randrange(len(mutated))] = chooser.randrange(256)
            TARGETS[name](bytes(mutated[: chooser.randint(1, len(mutated))] if chooser.random() < 0.3 else mutated))


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400))
def test_arbitrary_bytes(name: str, data: bytes) -> None:
    TARGETS[name](data)
