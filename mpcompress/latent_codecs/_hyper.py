"""The hyper latent z: one codec with or without context, and the transforms around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpcompress.errors import InvalidInputError
from mpcompress.latent_codecs._alone import each_alone
from mpcompress.latent_codecs._checks import shape_text
from mpcompress.latent_codecs._entropy_models import StreamEntropyBottleneck, use_stream_coder
from mpcompress.latent_codecs._module import EntropyCodedModule, check_quantizer
from mpcompress.layers import conv, crop, deconv
from mpcompress.layers._compressai import EntropyBottleneck, HyperLatentCodec, quantize_ste


class HyperCodec(EntropyCodedModule, HyperLatentCodec):
    """CompressAI's hyper latent codec; `ctx`, none or one map, goes to both transforms.

    z_hat comes from the symbols instead of from decoding the new strings, and in coding the transforms take one sample
    at a time.
    """

    def __init__(
        self,
        entropy_bottleneck: EntropyBottleneck,
        h_a: nn.Module,
        h_s: nn.Module,
        quantizer: str = "noise",
        **kwargs: Any,
    ) -> None:
        super().__init__(entropy_bottleneck, h_a, h_s, check_quantizer(quantizer), **kwargs)
        use_stream_coder(self)

    def forward(self, y: Tensor, *ctx: Tensor) -> dict[str, Any]:
        """Y (B, C, H, W) to ``likelihoods`` of ``z`` and ``params``."""
        z = self.h_a(y, *ctx)
        z_hat, z_likelihoods = self.entropy_bottleneck(z)
        if self.quantizer == "ste":
            medians = self.entropy_bottleneck._get_medians()
            z_hat = quantize_ste(z - medians) + medians
        return {"likelihoods": {"z": z_likelihoods}, "params": self.h_s(z_hat, *ctx)}

    def compress(self, y: Tensor, *ctx: Tensor) -> dict[str, Any]:
        """Y (B, C, H, W) to ``strings`` [z_strings], ``shape`` (H, W) of z, and the decoder's ``params``."""
        z = self.analyse(y, *ctx)
        strings, z_hat = self._bottleneck.encode(z)
        return {"strings": [strings], "shape": z.shape[-2:], "params": each_alone(self.h_s, z_hat, *ctx)}

    def decompress(self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], *ctx: Tensor) -> dict[str, Any]:
        """[z_strings] and the (H, W) of z to ``params``."""
        z_hat = self._bottleneck.decompress(strings[0], shape)
        return {"params": each_alone(self.h_s, z_hat, *ctx)}

    def analyse(self, y: Tensor, *ctx: Tensor) -> Tensor:
        """Y (B, C, H, W) to z, sample by sample."""
        return each_alone(self.h_a, y, *ctx)

    @property
    def _bottleneck(self) -> StreamEntropyBottleneck:
        return cast(StreamEntropyBottleneck, self.entropy_bottleneck)


def hyper_analysis(in_channels: int, z_dim: int) -> nn.Sequential:
    """(B, in, H, W) to z (B, z, ceil(H/4), ceil(W/4))."""
    return nn.Sequential(
        conv(in_channels, z_dim, kernel_size=3, stride=1),
        nn.ReLU(inplace=True),
        conv(z_dim, z_dim, kernel_size=5, stride=2),
        nn.ReLU(inplace=True),
        conv(z_dim, z_dim, kernel_size=5, stride=2),
    )


def hyper_synthesis(z_dim: int) -> nn.Sequential:
    """z_hat (B, z, H, W) to (B, 2z, 4H, 4W)."""
    return nn.Sequential(
        deconv(z_dim, z_dim, kernel_size=5, stride=2),
        nn.ReLU(inplace=True),
        deconv(z_dim, z_dim * 3 // 2, kernel_size=5, stride=2),
        nn.ReLU(inplace=True),
        deconv(z_dim * 3 // 2, z_dim * 2, kernel_size=3, stride=1),
    )


class ContextAnalysis(nn.Module):
    """Hyper analysis of (y, ctx), concatenated: the transform of `VitUnionLatentCodecWithCtx`."""

    def __init__(self, y_dim: int, z_dim: int, ctx_dim: int) -> None:
        super().__init__()
        self.h_a = hyper_analysis(y_dim + ctx_dim, z_dim)

    def forward(self, y: Tensor, ctx: Tensor) -> Tensor:
        """(B, y, H, W) and (B, ctx, H, W) to z."""
        z: Tensor = self.h_a(_join(y, ctx))
        return z


class ContextSynthesis(nn.Module):
    """Hyper synthesis of z_hat, then fused with ctx: the transform of `VitUnionLatentCodecWithCtx`."""

    def __init__(self, z_dim: int, ctx_dim: int) -> None:
        super().__init__()
        self.h_s = hyper_synthesis(z_dim)
        self.fusion = _fusion(2 * z_dim, ctx_dim, 2 * z_dim)

    def forward(self, z_hat: Tensor, ctx: Tensor) -> Tensor:
        """z_hat and (B, ctx, H, W) to params (B, 2z, H, W)."""
        params: Tensor = self.fusion(_join(crop(self.h_s(z_hat), (ctx.shape[-2], ctx.shape[-1])), ctx))
        return params


class SmallContextAnalysis(nn.Module):
    """Hyper analysis of (y, ctx) to half their size: the default of `HyperpriorLatentCodecWithCtx`."""

    def __init__(self, y_dim: int, z_dim: int, ctx_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            conv(y_dim + ctx_dim, z_dim, kernel_size=3, stride=1), nn.ReLU(inplace=True), conv(z_dim, z_dim)
        )

    def forward(self, y: Tensor, ctx: Tensor) -> Tensor:
        """(B, y, H, W) and (B, ctx, H, W) to z (B, z, ceil(H/2), ceil(W/2))."""
        z: Tensor = self.net(_join(y, ctx))
        return z


class SmallContextSynthesis(nn.Module):
    """Hyper synthesis of z_hat with ctx to twice its size: the default of `HyperpriorLatentCodecWithCtx`."""

    def __init__(self, z_dim: int, ctx_dim: int) -> None:
        super().__init__()
        self.up = nn.Sequential(deconv(z_dim, z_dim), nn.ReLU(inplace=True))
        self.fuse = _fusion(z_dim, ctx_dim, 2 * z_dim)

    def forward(self, z_hat: Tensor, ctx: Tensor) -> Tensor:
        """z_hat and (B, ctx, H, W) to params (B, 2z, H, W)."""
        params: Tensor = self.fuse(_join(crop(self.up(z_hat), (ctx.shape[-2], ctx.shape[-1])), ctx))
        return params


def _fusion(in_channels: int, ctx_dim: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        conv(in_channels + ctx_dim, out_channels, kernel_size=3, stride=1),
        nn.ReLU(inplace=True),
        conv(out_channels, out_channels, kernel_size=3, stride=1),
    )


def _join(x: Tensor, ctx: Tensor) -> Tensor:
    if x.shape[-2:] != ctx.shape[-2:]:
        raise InvalidInputError(
            f"ctx of shape {shape_text(ctx.shape)} does not cover a latent of shape {shape_text(x.shape)}", field="ctx"
        )
    return torch.cat((x, ctx), dim=1)
