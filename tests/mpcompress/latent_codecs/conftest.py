"""Golden models and cases; without torch and compressai the tests of this folder that need them are not collected."""

from __future__ import annotations

import base64
import importlib.util
import json
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

_NEEDED = ("torch", "compressai", "numba", "safetensors")
if any(importlib.util.find_spec(name) is None for name in _NEEDED):
    collect_ignore = [
        path.name for path in Path(__file__).parent.glob("test_*.py") if path.name != "test_lazy_package.py"
    ]

GOLDEN = Path(__file__).parents[2] / "golden"


def _leaves(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _leaves(item) for key, item in value.items()}
    return [_leaves(item) for item in value] if isinstance(value, list) else base64.b64decode(value)


@dataclass(frozen=True)
class Case:
    """Arrays as float32 tensors, strings as bytes, everything else as the file has it."""

    arrays: dict[str, Any]
    strings: Any
    facts: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.arrays[key] if key in self.arrays else self.facts[key]

    @property
    def ctx(self) -> tuple[Any, ...]:
        return (self.arrays["ctx"],) if "ctx" in self.arrays else ()


class Golden:
    """Reads one folder of tests/golden."""

    def __init__(self, name: str) -> None:
        self.folder = GOLDEN / name
        self.config = json.loads((self.folder / "config.json").read_text())

    def weights(self) -> dict[str, Any]:
        from safetensors.torch import load

        return load(lzma.decompress((self.folder / "weights.safetensors.xz").read_bytes()))

    def case(self, name: str) -> Case:
        import torch

        facts = json.loads((self.folder / f"{name}.json").read_text())
        with np.load(self.folder / f"{name}.npz") as arrays:
            tensors = {key: torch.from_numpy(arrays[key].astype(np.float32)) for key in arrays}
        return Case(tensors, _leaves(facts.pop("strings")), facts)

    def model(self, **changes: Any) -> Any:
        """The codec with its weights, in eval mode; `changes` override constructor arguments."""
        from mpcompress import latent_codecs

        cls = getattr(latent_codecs, self.config["class"])
        codec = cls(*self.config.get("args", ()), **{**self.config.get("kwargs", {}), **changes})
        weights = self.weights()
        tokens = weights.get("post_reg_tokens")
        if tokens is not None and tokens.shape != codec.post_reg_tokens.shape:
            weights["post_reg_tokens"] = tokens[:1].expand(codec.post_reg_tokens.shape).clone()
        codec.load_state_dict(weights)
        return codec.eval()


@pytest.fixture(scope="session")
def golden() -> Any:
    """`golden(name)`: a folder of tests/golden."""
    return Golden


@pytest.fixture(scope="session")
def vit_union() -> Any:
    """A small codec without context whose latents are not all zero."""
    return Golden("vit_union_b").model()


@pytest.fixture(scope="session")
def vit_union_ctx() -> Any:
    """A small codec with context, three prefix tokens."""
    return Golden("vit_union_ctx").model(num_prefix_tokens=3)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    if all(importlib.util.find_spec(name) for name in _NEEDED):
        import torch

        torch.set_num_threads(1)
