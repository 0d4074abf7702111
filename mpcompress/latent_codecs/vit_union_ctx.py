"""The ViT feature codec with a context map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mpcompress.latent_codecs._alone import Run, together
from mpcompress.latent_codecs._checks import check_finite, check_same, check_tensor
from mpcompress.latent_codecs._entropy_models import StreamEntropyBottleneck
from mpcompress.latent_codecs._hyper import ContextAnalysis, ContextSynthesis
from mpcompress.latent_codecs._vit_base import VitCodecBase, VitGeometry
from mpcompress.latent_codecs.hyperprior_ctx import HyperLatentCodecWithCtx
from mpcompress.layers import conv, crop


class VitUnionLatentCodecWithCtx(VitCodecBase):
    """Codec of ViT tokens given a feature map that sender and receiver both have.

    As `VitUnionLatentCodec`, the context joining at four places::

        h ── pre blocks ── cond_enc(., ctx) ── f_a ── y ── [y_lc] ── y_hat ── f_s ── h_hat_share
                                                 │       │ params                    │
                                                 └─ [hyper_lc(., ctx/2)]       cond_dec(., ctx) ── post blocks ── h_hat

    Args:
        h_dim: Channels of a token; heads have 64 of them.
        y_dim: Channels of y.
        z_dim: Channels of z.
        ctx_dim: Channels of the context map.
        groups: Channels per group for an int that divides `y_dim`, or the channels of each group, which sum to `y_dim`.
        num_prefix_tokens: Tokens in front of the patches.
        **kwargs: Accepted and ignored.

    Raises:
        InvalidInputError: `groups` or `h_dim` does not divide up.
    """

    hyper_lc: HyperLatentCodecWithCtx

    def __init__(
        self,
        h_dim: int = 384,
        y_dim: int = 256,
        z_dim: int = 192,
        ctx_dim: int = 256,
        groups: int | Sequence[int] = 16,
        num_prefix_tokens: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(h_dim=h_dim, y_dim=y_dim, z_dim=z_dim, groups=groups, num_prefix_tokens=num_prefix_tokens)
        self.ctx_dim = ctx_dim
        self.cond_enc = _condition(h_dim, ctx_dim)
        self.cond_dec = _condition(h_dim, ctx_dim)
        self.f_ctx_down = conv(ctx_dim, ctx_dim, kernel_size=3, stride=2)
        self.hyper_lc = HyperLatentCodecWithCtx(
            StreamEntropyBottleneck(z_dim),
            ContextAnalysis(y_dim, z_dim, ctx_dim),
            ContextSynthesis(z_dim, ctx_dim),
            quantizer="ste",
        )

    def forward(self, h: Tensor, ctx: Tensor, token_res: Sequence[int], **kwargs: Any) -> dict[str, Any]:
        """Rate-distortion forward pass.

        Args:
            h: (B, P + H*W, C).
            ctx: (B, ctx_dim, H, W).
            token_res: (H, W).
            **kwargs: Accepted and ignored.

        Returns:
            ``h_hat`` (B, P + H*W, C), ``h_hat_share`` (B, C, H, W) and ``likelihoods`` of ``y`` and ``z``.
        """
        geometry = self._check(h, token_res)
        self._check_ctx(ctx, h.shape[0], geometry)
        return self._forward(h, token_res, ctx)

    def compress(self, h: Tensor, ctx: Tensor, token_res: Sequence[int], **kwargs: Any) -> dict[str, Any]:
        """Code a batch.

        Args:
            h: (B, P + H*W, C), finite.
            ctx: (B, ctx_dim, H, W), finite.
            token_res: (H, W).
            **kwargs: Accepted and ignored.

        Returns:
            ``strings``: ``y``, per channel group two lists of one string per sample, and ``z``, one such list.
            ``pstate``: ``y_shape`` (C, H, W) per group, ``z_shape`` (H, W), ``token_res``.

        Raises:
            InvalidInputError: Wrong shapes, or values that are not finite or too large to code.
            CodecUnavailableError: `update()` was never called.
        """
        geometry = self._check(h, token_res)
        self._check_ctx(ctx, h.shape[0], geometry)
        check_finite(ctx, "ctx")
        return self._compress(h, token_res, ctx)

    def decompress(
        self, strings: Mapping[str, Any], pstate: Mapping[str, Any], ctx: Tensor, **kwargs: Any
    ) -> dict[str, Any]:
        """Decode what `compress` gave, with the same `ctx`: another one gives noise or an error.

        Returns:
            ``h_hat`` (B, P + H*W, C) and ``h_hat_share`` (B, C, H, W), the map before ctx is joined to it.

        Raises:
            InvalidInputError: Strings or pstate of another kind, a ctx of another shape, or more than `max_tokens`.
            CorruptBitstreamError: Strings or pstate that no encoder of this codec writes.
        """
        samples, geometry = self._open(strings, pstate)
        self._check_ctx(ctx, samples, geometry)
        check_finite(ctx, "ctx")
        return self._decompress(strings, geometry, ctx)

    def _analysis(self, patches: Tensor, *ctx: Tensor, run: Run = together) -> Tensor:
        joined = torch.cat((patches, ctx[0].to(patches.dtype)), dim=1)
        return run(self.f_a, run(self.cond_enc, joined))

    def _side(self, *ctx: Tensor, run: Run = together) -> tuple[Tensor, ...]:
        return (run(self.f_ctx_down, ctx[0]),)

    def _synthesis(self, y_hat: Tensor, geometry: VitGeometry, *ctx: Tensor) -> dict[str, Any]:
        share = crop(self.f_s(y_hat), geometry.token_res)
        joined = self.cond_dec(torch.cat((share, ctx[0].to(share.dtype)), dim=1))
        return {"h_hat": self._to_h_hat(joined, geometry), "h_hat_share": share}

    def _check_ctx(self, ctx: Tensor, samples: int, geometry: VitGeometry) -> None:
        check_tensor(ctx, "ctx", 4)
        check_same(ctx.shape, (samples, self.ctx_dim, *geometry.token_res), "ctx", "batch, ctx_dim and token grid")


def _condition(h_dim: int, ctx_dim: int) -> nn.Sequential:
    return nn.Sequential(
        conv(h_dim + ctx_dim, h_dim, kernel_size=3, stride=1),
        nn.ReLU(inplace=True),
        conv(h_dim, h_dim, kernel_size=3, stride=1),
    )
