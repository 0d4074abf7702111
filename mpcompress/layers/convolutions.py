"""Convolutions of the hyperprior codecs, and the padding that lets them take any grid."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from mpcompress.layers._compressai import CheckerboardMaskedConv2d, conv, deconv

__all__ = ["CheckerboardConv2d", "conv", "crop", "deconv", "pad_to_even"]


class CheckerboardConv2d(CheckerboardMaskedConv2d):
    """CompressAI's checkerboard convolution (He 2021, arXiv 2103.15306) without writing to its weights.

    The parent multiplies `weight` by the mask in place at every call: a race between threads, and an inference tensor
    left in the parameter after `torch.inference_mode`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H, W); a position sees only those of the other colour."""
        return functional.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def pad_to_even(x: Tensor) -> Tensor:
    """Zero-pad (..., H, W) at the bottom and right to even sides."""
    H, W = x.shape[-2:]
    return functional.pad(x, (0, W % 2, 0, H % 2)) if H % 2 or W % 2 else x


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The top left `size` of (..., H, W)."""
    return x[..., : size[0], : size[1]]
