"""The scale hyperprior for pictures of features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs._alone import single_samples
from mpcompress.latent_codecs._checks import (
    check_finite,
    check_mapping,
    check_same,
    check_strings,
    check_tensor,
    positive_ints,
)
from mpcompress.latent_codecs._entropy_models import (
    StreamEntropyBottleneck,
    StreamGaussianConditional,
    use_stream_coder,
)
from mpcompress.latent_codecs._module import EntropyCodedModule, coding_arithmetic, full_precision
from mpcompress.layers import conv, crop, deconv
from mpcompress.layers._compressai import ScaleHyperprior


class FeatureScaleHyperprior(EntropyCodedModule, ScaleHyperprior):
    """Scale hyperprior for one-channel pictures of features, of any height and width.

    Balle, Minnen, Singh, Hwang, Johnston 2018, "Variational image compression with a scale hyperprior", arXiv
    1802.01436. Boxes code, arrows carry tensors::

        x ─ g_a ─ y ──┬───────────────── [GC] ─ y_hat ─ g_s ─ x_hat
                      └ |.| h_a ─ z ─ [EB] ─ z_hat ─ h_s ─ scales_hat ┘

    g_a divides the sides by 16, h_a by another 4. Sides that this does not divide are continued by repeating their
    last row and column, and cropped again.

    Args:
        N: Channels of the inner layers and of z.
        M: Channels of y.
        **kwargs: Passed to CompressAI's `ScaleHyperprior`.
    """

    max_positions: ClassVar[int] = 2**24
    """Largest B * H * W of a picture batch that `decompress` makes room for."""

    def __init__(self, N: int, M: int, **kwargs: Any) -> None:
        super().__init__(N, M, **kwargs)
        self.g_a[0] = conv(1, N)
        self.g_s[6] = deconv(N, 1)
        use_stream_coder(self)

    @property
    def downsampling_factor(self) -> int:
        """Side of the square of x that one position of z stands for: 64."""
        return 64

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Tensor]) -> FeatureScaleHyperprior:
        """A codec of the size that `state_dict` has, with its weights; either naming of the entropy bottleneck.

        Raises:
            InvalidInputError: The keys that give N and M are missing.
        """
        check_mapping(state_dict, ("g_a.0.weight", "g_a.6.weight"), "state_dict")
        codec = cls(state_dict["g_a.0.weight"].shape[0], state_dict["g_a.6.weight"].shape[0])
        codec.load_state_dict(state_dict)
        return codec

    def forward(self, x: Tensor) -> dict[str, Any]:
        """Rate-distortion forward pass; noise stands for rounding in training mode.

        Args:
            x: (B, 1, H, W).

        Returns:
            ``x_hat`` (B, 1, H, W), not clamped, and ``likelihoods`` of ``y`` and ``z``.
        """
        self._check(x)
        y = self.g_a(self._pad(x.to(self._weight)))
        with full_precision(y):
            y = y.to(self._weight)
            z_hat, z_likelihoods = self.entropy_bottleneck(self.h_a(torch.abs(y)))
            y_hat, y_likelihoods = self.gaussian_conditional(y, self.h_s(z_hat))
        x_hat = crop(self.g_s(y_hat), (x.shape[-2], x.shape[-1]))
        return {"x_hat": x_hat, "likelihoods": {"y": y_likelihoods, "z": z_likelihoods}}

    @torch.no_grad()
    def compress(self, x: Tensor) -> dict[str, Any]:
        """Strings of a batch; each sample's are those of a call of its own.

        Args:
            x: (B, 1, H, W), finite.

        Returns:
            ``strings`` [y_strings, z_strings], one string per sample in each; ``shape``, the (H, W) of z; and
            ``size``, the (H, W) of x, which `decompress` crops to.

        Raises:
            InvalidInputError: Another shape or dtype, or a value that is not finite or too large to code.
        """
        self._check(x)
        check_finite(x, "x")
        size = (x.shape[-2], x.shape[-1])
        x = self._pad(x.to(self._weight))
        strings: list[list[bytes]] = [[], []]
        shape: Sequence[int] = ()
        with coding_arithmetic(x):
            for (sample,) in single_samples(x):
                y = self.g_a(sample)
                z = self.h_a(torch.abs(y))
                shape = z.shape[-2:]
                z_strings, z_hat = self._bottleneck.encode(z)
                y_strings, _ = self._conditional.encode_scaled(y, self.h_s(z_hat), None)
                strings[0] += y_strings
                strings[1] += z_strings
        return {"strings": strings, "shape": shape, "size": size}

    @torch.no_grad()
    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], size: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Pictures from strings.

        Args:
            strings: [y_strings, z_strings] as from `compress`.
            shape: (H, W) of z.
            size: (H, W) of x; without it x_hat has the sides of z times 64.

        Returns:
            ``x_hat`` (B, 1, H, W), clamped to [0, 1].

        Raises:
            InvalidInputError: A shape or a nesting that no unit has, or more positions than `max_positions`.
            CorruptBitstreamError: Strings that no encoder writes for this shape.
        """
        samples = check_strings(strings, 2, "strings")
        factor = self.downsampling_factor
        height, width = positive_ints(shape, 2, "shape")
        if samples * height * width * factor**2 > self.max_positions:
            raise InvalidInputError(
                f"{samples} pictures of {height * factor}x{width * factor} exceed {self.max_positions} positions",
                field="shape",
            )
        crop_to = (height * factor, width * factor)
        if size is not None:
            H, W = positive_ints(size, 2, "size")
            if (-(-H // factor), -(-W // factor)) != (height, width):
                raise CorruptBitstreamError(f"size {(H, W)} does not give z of {(height, width)}", field="size")
            crop_to = (H, W)
        x_hats = []
        with coding_arithmetic(self._weight):
            for y_string, z_string in zip(*strings, strict=True):
                z_hat = self._bottleneck.decompress([z_string], (height, width))
                y_hat = self._conditional.decode_scaled([y_string], self.h_s(z_hat), None)
                x_hats.append(crop(self.g_s(y_hat), crop_to).clamp(0, 1))
        return {"x_hat": torch.cat(x_hats)}

    @property
    def _weight(self) -> Tensor:
        """Bears the type and device of the arithmetic."""
        return self.entropy_bottleneck.quantiles

    @property
    def _bottleneck(self) -> StreamEntropyBottleneck:
        return cast(StreamEntropyBottleneck, self.entropy_bottleneck)

    @property
    def _conditional(self) -> StreamGaussianConditional:
        return cast(StreamGaussianConditional, self.gaussian_conditional)

    def _check(self, x: Tensor) -> None:
        check_tensor(x, "x", 4)
        check_same(x.shape, (x.shape[0], 1, *x.shape[2:]), "x", "one channel")

    def _pad(self, x: Tensor) -> Tensor:
        """Continue a side to a multiple of 64 unless its y already divides by 4: those go through as they are."""
        pads = [0 if -(-side // 16) % 4 == 0 else -side % self.downsampling_factor for side in x.shape[-2:]]
        return functional.pad(x, (0, pads[1], 0, pads[0]), mode="replicate") if any(pads) else x
