"""The latent y: Gaussian codec, checkerboard in space, groups in channels (He 2022, ELIC, arXiv 2203.10886)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs._checks import shape_text
from mpcompress.latent_codecs._entropy_models import StreamGaussianConditional
from mpcompress.latent_codecs._module import check_quantizer
from mpcompress.layers import CheckerboardConv2d
from mpcompress.layers._compressai import (
    ChannelGroupsLatentCodec,
    CheckerboardLatentCodec,
    GaussianConditionalLatentCodec,
    conv,
    sequential_channel_ramp,
)


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
        indexes, means = self._indexes_and_means(ctx_params)
        strings, y_hat = self._coder.encode(y, indexes, means)
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
        indexes, means = self._indexes_and_means(ctx_params)
        return {"y_hat": self._coder.decompress(strings[0], indexes, means=means)}

    @property
    def _coder(self) -> StreamGaussianConditional:
        return cast(StreamGaussianConditional, self.gaussian_conditional)

    def _indexes_and_means(self, ctx_params: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = self._chunk(self.entropy_parameters(ctx_params))
        return self._coder.build_indexes(scales), means


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

    def compress(self, y: Tensor, side_params: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Y (B, C, H, W) and side parameters to the strings of the anchors and of the others, and y_hat."""
        y_hat = torch.zeros_like(y, memory_format=torch.contiguous_format)
        strings: list[list[bytes]] = []
        for step, squares in enumerate(self._steps(y)):
            if not len(squares):
                strings.append([b""] * y.shape[0])
                continue
            params = self._params(step, squares, y_hat, side_params)
            out = self.latent_codec["y"].compress(y.flatten(2)[:, :, None, squares], params)
            strings += out["strings"]
            y_hat.flatten(2)[..., squares] = out["y_hat"][:, :, 0]
        return {"strings": strings, "shape": y.shape[1:], "y_hat": y_hat}

    def decompress(
        self, strings: Sequence[Sequence[bytes]], shape: Sequence[int], side_params: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Both lists of strings and the same side parameters to y_hat (B, C, H, W).

        Raises:
            CorruptBitstreamError: `shape` does not fit the side parameters, or a string is not for this shape.
        """
        _check_shape(shape, self.context_prediction.in_channels, side_params)
        y_hat = side_params.new_zeros((side_params.shape[0], *shape))
        for step, squares in enumerate(self._steps(y_hat)):
            if not len(squares):
                if any(strings[step]):
                    raise CorruptBitstreamError(f"a string for the squares that a {shape_text(shape[1:])} board lacks")
                continue
            params = self._params(step, squares, y_hat, side_params)
            out = self.latent_codec["y"].decompress([strings[step]], (1, len(squares)), params)
            y_hat.flatten(2)[..., squares] = out["y_hat"][:, :, 0]
        return {"y_hat": y_hat}

    def _steps(self, y: Tensor) -> tuple[Tensor, Tensor]:
        even, odd = _colours(y.shape[-2], y.shape[-1], y.device)
        return (even, odd) if self.anchor_parity == "even" else (odd, even)

    def _params(self, step: int, squares: Tensor, y_hat: Tensor, side_params: Tensor) -> Tensor:
        """Parameters (B, 2C, 1, n) of the n squares of a step; anchors have no context yet."""
        side = side_params.flatten(2)[:, :, None, squares]
        if step == 0:
            channels = self.context_prediction.out_channels
            context = side.new_zeros((side.shape[0], channels, 1, len(squares)))
        else:
            context = self.context_prediction(y_hat).flatten(2)[:, :, None, squares]
        params: Tensor = self.entropy_parameters(self.merge(context, side))
        return params


class ChannelGroupsCodec(ChannelGroupsLatentCodec):
    """CompressAI's channel-conditional codec (Minnen 2020, arXiv 2007.08739), with its shapes as (C, H, W)."""

    def compress(self, y: Tensor, side_params: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Y (B, C, H, W) and side parameters to the strings of each group in turn, and y_hat."""
        y_hat = torch.zeros_like(y, memory_format=torch.contiguous_format)
        parts = torch.split(y_hat, self.groups, dim=1)
        strings: list[list[bytes]] = []
        shapes = []
        for k, y_k in enumerate(torch.split(y, self.groups, dim=1)):
            params = self._get_ctx_params(k, side_params, parts)
            out = self._codec(k).compress(y_k, params)
            parts[k].copy_(out["y_hat"])
            strings += out["strings"]
            shapes.append(out["shape"])
        return {"strings": strings, "shape": shapes, "y_hat": y_hat}

    def decompress(
        self,
        strings: Sequence[Sequence[bytes]],
        shape: Sequence[Sequence[int]],
        side_params: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Two lists of strings per group and the same side parameters to y_hat (B, C, H, W).

        Raises:
            CorruptBitstreamError: `shape` does not fit the groups or the side parameters, or a string its shape.
        """
        if len(shape) != len(self.groups) or len(strings) != 2 * len(self.groups):
            raise CorruptBitstreamError(
                f"{len(shape)} shapes and {len(strings)} lists of strings for {len(self.groups)} groups"
            )
        for channels, size in zip(self.groups, shape, strict=True):
            _check_shape(size, channels, side_params)
        y_hat = side_params.new_zeros((side_params.shape[0], self.groups_acc[-1], *shape[0][1:]))
        parts = torch.split(y_hat, self.groups, dim=1)
        for k, part in enumerate(parts):
            params = self._get_ctx_params(k, side_params, parts)
            out = self._codec(k).decompress(strings[2 * k : 2 * k + 2], shape[k], params)
            part.copy_(out["y_hat"])
        return {"y_hat": y_hat}

    def _codec(self, k: int) -> CheckerboardCodec:
        return cast(CheckerboardCodec, self[f"y{k}"])


def _check_shape(shape: Sequence[int], channels: int, side_params: Tensor) -> None:
    expected = (channels, *side_params.shape[2:])
    if tuple(shape) != expected:
        raise CorruptBitstreamError(f"y of {shape_text(shape)} with side parameters for {expected}")


def split_groups(groups: int | Sequence[int], channels: int) -> list[int]:
    """Channels of each group: an int is the size of equal groups, a sequence gives every size.

    Raises:
        InvalidInputError: The sizes do not add up to `channels`.
    """
    if isinstance(groups, int):
        if groups < 1 or channels % groups:
            raise InvalidInputError(f"groups={groups} does not divide y_dim={channels}", field="groups")
        return [groups] * (channels // groups)
    sizes = [int(size) for size in groups]
    if not sizes or min(sizes) < 1 or sum(sizes) != channels:
        raise InvalidInputError(f"groups={sizes} must be positive and sum to y_dim={channels}", field="groups")
    return sizes


def space_channel_codec(groups: Sequence[int], z_dim: int) -> ChannelGroupsCodec:
    """The y codec of the ViT codecs: channel groups, in each a checkerboard, in each a Gaussian.

    Args:
        groups: Channels of each group.
        z_dim: Channels of z; the side parameters have 2 * z_dim.
    """
    channel_context: Mapping[str, nn.Module] = {
        f"y{k}": nn.Sequential(
            conv(sum(groups[:k]), z_dim, kernel_size=5, stride=1),
            nn.ReLU(inplace=True),
            conv(z_dim, z_dim, kernel_size=5, stride=1),
            nn.ReLU(inplace=True),
            conv(z_dim, 2 * size, kernel_size=5, stride=1),
        )
        for k, size in enumerate(groups)
        if k > 0
    }
    codecs = {
        f"y{k}": CheckerboardCodec(
            latent_codec={"y": GaussianLatentCodec(quantizer="ste")},
            context_prediction=CheckerboardConv2d(size, 2 * size, kernel_size=5, stride=1, padding=2),
            entropy_parameters=sequential_channel_ramp(
                2 * size + (2 * size if k > 0 else 0) + 2 * z_dim,
                2 * size,
                min_ch=2 * z_dim,
                num_layers=3,
                interp="linear",
                make_layer=nn.Conv2d,
                make_act=nn.ReLU,
                kernel_size=1,
                stride=1,
                padding=0,
            ),
        )
        for k, size in enumerate(groups)
    }
    return ChannelGroupsCodec(latent_codec=codecs, channel_context=channel_context, groups=list(groups))
