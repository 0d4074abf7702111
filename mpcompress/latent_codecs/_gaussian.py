"""The latent y of one channel group: Gaussian codec, checkerboard in space (He 2022, ELIC, arXiv 2203.10886)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from mpcompress.errors import CorruptBitstreamError
from mpcompress.latent_codecs._alone import run_alone, single_samples
from mpcompress.latent_codecs._checks import shape_text
from mpcompress.latent_codecs._entropy_models import StreamGaussianConditional
from mpcompress.latent_codecs._module import check_quantizer
from mpcompress.layers._compressai import CheckerboardLatentCodec, GaussianConditionalLatentCodec


class GaussianLatentCodec(GaussianConditionalLatentCodec):
    """CompressAI's Gaussian latent codec; y_hat comes from the symbols instead of from decoding the new strings."""

    def __init__(self, entropy_parameters: nn.Module | None = None, quantizer: str = "noise") -> None:
        super().__init__(
            gaussian_conditional=StreamGaussianConditional(None),
            entropy_parameters=entropy_parameters,
            quantizer=check_quantizer(quantizer),
        )

    def compress(self, y: Tensor, ctx_params: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Y (B, C, H, W) and the parameters of its distribution to one string per sample, and y_hat."""
        strings, y_hat = self.encode(y, self.entropy_parameters(ctx_params))
        return {"strings": [strings], "shape": y.shape[2:4], "y_hat": y_hat}

    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], ctx_params: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """One string per sample and the same parameters to y_hat (B, C, H, W).

        Raises:
            CorruptBitstreamError: `shape` is not the parameters' (H, W), or a string is not for this shape.
        """
        if tuple(shape) != tuple(ctx_params.shape[2:4]):
            raise CorruptBitstreamError(f"y of {shape_text(shape)} with parameters of {tuple(ctx_params.shape[2:4])}")
        return {"y_hat": self.decode(strings[0], self.entropy_parameters(ctx_params))}

    def encode(self, y: Tensor, params: Tensor) -> tuple[list[bytes], Tensor]:
        """Y (B, C, ...) with its scales and means (B, 2C, ...) to one string per sample, and y_hat."""
        scales, means = self._chunk(params)
        return self._coder.encode_scaled(y, scales, means)

    def decode(self, strings: Sequence[bytes], params: Tensor) -> Tensor:
        """One string per sample with its scales and means (B, 2C, ...) to y_hat (B, C, ...)."""
        scales, means = self._chunk(params)
        return self._coder.decode_scaled(strings, scales, means)

    @property
    def _coder(self) -> StreamGaussianConditional:
        return cast(StreamGaussianConditional, self.gaussian_conditional)


@functools.lru_cache(maxsize=64)
def _colours(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Flat positions of the even and of the odd squares of a board, each in raster order."""
    row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
    odd = ((row + column) % 2).flatten()
    return (odd == 0).nonzero()[:, 0].to(device), odd.nonzero()[:, 0].to(device)


class CheckerboardCodec(CheckerboardLatentCodec):
    """CompressAI's two-pass checkerboard codec (He 2021, arXiv 2103.15306) for boards of any size.

    The strings hold the squares of each colour in raster order: for even widths CompressAI's own order. Parameters are
    computed for the squares of one colour at a time, and the context only where it is used.
    """

    @property
    def gaussian(self) -> GaussianLatentCodec:
        """Codes the squares of one colour."""
        return cast(GaussianLatentCodec, self.latent_codec["y"])

    def steps(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Flat positions of the squares of y (..., H, W), first those that are coded without a context."""
        even, odd = _colours(y.shape[-2], y.shape[-1], y.device)
        return (even, odd) if self.anchor_parity == "even" else (odd, even)

    def distribution(self, step: int, squares: Tensor, y_hat: Tensor, sides: Sequence[Tensor]) -> Tensor:
        """Scales and means of the squares of a step.

        Args:
            step: 0 or 1.
            squares: (n,), what `steps` gives for it.
            y_hat: (B, C, H, W), of which the squares before are known.
            sides: side parameters (B, S, n) of these squares.

        Returns:
            (B, 2C, n), each sample's as of a call of its own.
        """
        contexts = self._contexts(squares, y_hat) if step else self._no_contexts(squares, y_hat)
        inputs = [
            (torch.cat((context, *parts), dim=1)[:, :, None],)
            for context, *parts in zip(contexts, *(torch.split(side, 1) for side in sides), strict=True)
        ]
        return torch.cat(run_alone(self.entropy_parameters, inputs))[:, :, 0]

    def _contexts(self, squares: Tensor, y_hat: Tensor) -> list[Tensor]:
        layer = self.context_prediction
        weight = layer.weight * layer.mask
        maps = [conv2d(x, weight, layer.bias, padding=layer.padding) for (x,) in single_samples(y_hat)]
        return [x.flatten(2).index_select(2, squares) for x in maps]

    def _no_contexts(self, squares: Tensor, y_hat: Tensor) -> list[Tensor]:
        """Anchors have none yet, not even its bias."""
        return [y_hat.new_zeros((1, self.context_prediction.out_channels, len(squares)))] * y_hat.shape[0]
