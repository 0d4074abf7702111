"""The ViT feature codec without context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mpcompress.latent_codecs._alone import Run, together
from mpcompress.latent_codecs._entropy_models import StreamEntropyBottleneck
from mpcompress.latent_codecs._hyper import HyperCodec, hyper_analysis, hyper_synthesis
from mpcompress.latent_codecs._vit_base import VitCodecBase, VitGeometry


class VitUnionLatentCodec(VitCodecBase):
    """Codec of ViT tokens, class and patch tokens together; only what the patches hold of them is coded.

    Hyperprior (Balle 2018, arXiv 1802.01436) with a space-channel context model (He 2022, ELIC, arXiv 2203.10886)::

        h ── pre blocks ── patch tokens ── f_a ── y ── [y_lc] ── y_hat ── f_s ── prefix + tokens ── post blocks ── h_hat
                                                  │       │ params
                                                  └── [hyper_lc]

    Args:
        h_dim: Channels of a token; heads have 64 of them.
        y_dim: Channels of y.
        z_dim: Channels of z.
        groups: Channels per group for an int that divides `y_dim`, or the channels of each group, which sum to `y_dim`.
        num_prefix_tokens: Tokens in front of the patches (class, registers). They take part in the first blocks, are
            dropped, and come back from learned tokens through the last blocks.
        **kwargs: Accepted and ignored.

    Raises:
        InvalidInputError: `groups` or `h_dim` does not divide up.
    """

    def __init__(
        self,
        h_dim: int = 384,
        y_dim: int = 256,
        z_dim: int = 192,
        groups: int | Sequence[int] = 16,
        num_prefix_tokens: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(h_dim=h_dim, y_dim=y_dim, z_dim=z_dim, groups=groups, num_prefix_tokens=num_prefix_tokens)
        self.hyper_lc = HyperCodec(
            StreamEntropyBottleneck(z_dim), hyper_analysis(y_dim, z_dim), hyper_synthesis(z_dim), quantizer="ste"
        )

    def forward(self, h: Tensor, token_res: Sequence[int], **kwargs: Any) -> dict[str, Any]:
        """Rate-distortion forward pass.

        Args:
            h: (B, P + H*W, C).
            token_res: (H, W).
            **kwargs: Accepted and ignored.

        Returns:
            ``h_hat`` (B, P + H*W, C) and ``likelihoods`` of ``y`` and ``z``.
        """
        return self._forward(h, token_res)

    def compress(self, h: Tensor, token_res: Sequence[int], **kwargs: Any) -> dict[str, Any]:
        """Code a batch.

        Args:
            h: (B, P + H*W, C), finite.
            token_res: (H, W).
            **kwargs: Accepted and ignored.

        Returns:
            ``strings``: ``y``, per channel group two lists of one string per sample, and ``z``, one such list.
            ``pstate``: ``y_shape`` (C, H, W) per group, ``z_shape`` (H, W), ``y_pad`` the (H, W) of y, ``token_res``.

        Raises:
            InvalidInputError: Wrong shapes, or values that are not finite or too large to code.
            CodecUnavailableError: `update()` was never called.
        """
        out = self._compress(h, token_res)
        out["pstate"]["y_pad"] = VitGeometry(token_res=out["pstate"]["token_res"]).y
        return out

    def decompress(self, strings: Mapping[str, Any], pstate: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Decode what `compress` gave; without ``token_res`` in `pstate` the grid has the sides of y times two.

        Returns:
            ``h_hat`` (B, P + H*W, C).

        Raises:
            InvalidInputError: Strings or pstate of another kind, or more tokens than `max_tokens`.
            CorruptBitstreamError: Strings or pstate that no encoder of this codec writes.
        """
        _, geometry = self._open(strings, pstate)
        return self._decompress(strings, geometry)

    def _analysis(self, patches: Tensor, *ctx: Tensor, run: Run = together) -> Tensor:
        return run(self.f_a, patches)

    def _side(self, *ctx: Tensor, run: Run = together) -> tuple[Tensor, ...]:
        return ()

    def _synthesis(self, y_hat: Tensor, geometry: VitGeometry, *ctx: Tensor) -> dict[str, Any]:
        return {"h_hat": self._to_h_hat(self.f_s(y_hat), geometry)}
