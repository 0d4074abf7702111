"""Families `vit_union_exact` and `vit_union_ctx_exact`: the ViT codecs whose units decode on every machine.

Items, contexts and states are those of `vit_union`; a unit has one stream per sample. A context counts as the
fixed-point numbers it is rounded to: its hash is theirs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpcompress.codec import fingerprint_of
from mpcompress.neural.base import Loaded, load_network
from mpcompress.neural.vit_union import VitUnionFeatureCodec
from mpcompress.registry import CodecSpec

__all__ = ["ExactVitUnionFeatureCodec", "load"]


class ExactVitUnionFeatureCodec(VitUnionFeatureCodec):
    """Adapter of `ExactVitUnion`."""

    arithmetic = "exact"

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._lists = 0  # besides the one stream of each sample

    def _streams(self, strings: Any) -> list[bytes]:
        return list(strings)

    def _nested(self, rows: list[list[bytes]]) -> Any:
        return rows[0]

    def _context_hash(self, ctx: NDArray[np.float32]) -> bytes:
        return fingerprint_of([("ctx", self._net.quantise_ctx(torch.from_numpy(ctx)).numpy())])


def load(spec: CodecSpec) -> ExactVitUnionFeatureCodec:
    """Loads a codec of family `vit_union_exact` or `vit_union_ctx_exact`; see `load_network` for its options."""
    with torch.no_grad():
        return ExactVitUnionFeatureCodec(load_network(spec))
