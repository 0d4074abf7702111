"""Small codecs, and the settings under which arithmetic in floating point changes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mpcompress.exact.engines import ConvEngine, GemmEngine, LimbEngine
from mpcompress.latent_codecs import VitUnionLatentCodec, VitUnionLatentCodecWithCtx

SIZES: dict[str, Any] = {"h_dim": 64, "y_dim": 32, "z_dim": 24, "groups": [4, 12, 16]}


def small_codec(*, ctx: bool = False, brittle: bool = False, seed: int = 0, **changes: Any) -> Any:
    """A documented codec whose latents and scales are spread like those of trained ones.

    Args:
        ctx: with a context of 16 channels.
        brittle: a table of so many scales that a small unit meets as many of its steps as a large one those of the
            default table.
        seed: of its weights.
        **changes: of its sizes.
    """
    torch.manual_seed(seed)
    sizes = {**SIZES, **changes}
    codec = VitUnionLatentCodecWithCtx(ctx_dim=16, **sizes) if ctx else VitUnionLatentCodec(**sizes)
    codec.eval()
    codec.update(torch.logspace(-0.5, 0.6, 2000) if brittle else None)
    with torch.no_grad():
        codec.f_a[2].weight *= 20
        (codec.hyper_lc.h_a.h_a if ctx else codec.hyper_lc.h_a)[4].weight *= 40
        for k, size in enumerate(codec.groups):
            last = codec.y_lc[f"y{k}"].entropy_parameters[4]
            last.weight *= 3
            last.bias[:size] = torch.logspace(-0.9, 0.5, size)
    return codec


def features(codec: Any, grid: tuple[int, int], batch: int = 1, seed: int = 1) -> tuple[Any, ...]:
    """(h,) or (h, ctx) for a codec."""
    random = torch.Generator().manual_seed(seed)
    tokens = codec.num_prefix_tokens + grid[0] * grid[1]
    h = torch.randn(batch, tokens, codec.h_dim, generator=random)
    if not getattr(codec, "ctx_dim", 0):
        return (h,)
    return h, torch.randn(batch, codec.ctx_dim, *grid, generator=random)


@dataclass(frozen=True)
class Setting:
    """How torch computes: none of it may matter."""

    threads: int = 1
    onednn: bool = True
    channels_last: bool = False
    together: int = 1
    engine: str = "limbs"

    @contextlib.contextmanager
    def applied(self, codec: Any) -> Iterator[None]:
        """Applies it to torch and to a codec, exact or not."""
        engines = {
            "limbs": LimbEngine,
            "gemm": GemmEngine,
            "conv": lambda: ConvEngine(channels_last=self.channels_last),
            "chosen": lambda: None,
        }
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        codec.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)
        codec.engine = engines[self.engine]()
        try:
            with torch.backends.mkldnn.flags(enabled=self.onednn):
                yield
        finally:
            torch.set_num_threads(threads)
            codec.to(memory_format=torch.contiguous_format)
            codec.engine = None


SETTINGS = (
    Setting(),
    Setting(threads=2, together=4),
    Setting(onednn=False, engine="gemm"),
    Setting(engine="gemm", threads=2, together=4),
    Setting(engine="conv", together=4),
    Setting(engine="conv", channels_last=True, onednn=False),
    Setting(engine="chosen", channels_last=True, threads=2),
    Setting(engine="chosen", onednn=False, together=4, threads=2),
)
