"""The latent y: channel groups, in each a checkerboard, in each a Gaussian (He 2022, ELIC, arXiv 2203.10886)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs._alone import each_alone
from mpcompress.latent_codecs._checks import shape_text
from mpcompress.latent_codecs._gaussian import CheckerboardCodec, GaussianLatentCodec
from mpcompress.layers import CheckerboardConv2d
from mpcompress.layers._compressai import ChannelGroupsLatentCodec, conv, sequential_channel_ramp

Step = Callable[[CheckerboardCodec, Tensor, slice, Tensor], Tensor]
"""(codec, squares, channels, scales and means) of one step to y_hat (B, C, n) of it."""


class ChannelGroupsCodec(ChannelGroupsLatentCodec):
    """CompressAI's channel-conditional codec (Minnen 2020, arXiv 2007.08739), with its shapes as (C, H, W).

    A batch goes through together, step by step, and every network sees its samples one at a time.
    """

    def compress(self, y: Tensor, side_params: Tensor, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Y (B, C, H, W) and side parameters to the strings of each group in turn, and y_hat."""
        flat = y.flatten(2)
        strings: list[list[bytes]] = []

        def encode(codec: CheckerboardCodec, squares: Tensor, channels: slice, params: Tensor) -> Tensor:
            new, values = codec.gaussian.encode(flat[:, channels].index_select(2, squares), params)
            strings.append(new)
            return values

        def skip() -> None:
            strings.append([b""] * y.shape[0])

        y_hat = self._walk(side_params, encode, skip)
        return {"strings": strings, "shape": [torch.Size((size, *y.shape[2:])) for size in self.groups], "y_hat": y_hat}

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
        rows = iter(strings)

        def decode(codec: CheckerboardCodec, squares: Tensor, channels: slice, params: Tensor) -> Tensor:
            return codec.gaussian.decode(next(rows), params)

        def skip() -> None:
            if any(next(rows)):
                raise CorruptBitstreamError(f"a string for squares that a {shape_text(shape[0][1:])} board lacks")

        return {"y_hat": self._walk(side_params, decode, skip)}

    def _walk(self, side_params: Tensor, code: Step, skip: Callable[[], None]) -> Tensor:
        """Go through the steps in their order, those without squares too; returns y_hat (B, C, H, W)."""
        B, _, H, W = side_params.shape
        y_hat = side_params.new_zeros((B, self.groups_acc[-1], H, W))
        by_step = self._codec(0).steps(y_hat)
        sides = _at(side_params, by_step)
        for k, (first, last) in enumerate(pairwise(self.groups_acc)):
            codec, channels = self._codec(k), slice(first, last)
            befores = _at(each_alone(self.channel_context[f"y{k}"], y_hat[:, :first]), by_step) if k else None
            for step, squares in enumerate(by_step):
                if not len(squares):
                    skip()
                    continue
                parts = (befores[step], sides[step]) if befores else (sides[step],)
                params = codec.distribution(step, squares, y_hat[:, channels], parts)
                values = code(codec, squares, channels, params)
                y_hat[:, channels].flatten(2).index_copy_(2, squares, values)
        return y_hat

    def _codec(self, k: int) -> CheckerboardCodec:
        return cast(CheckerboardCodec, self[f"y{k}"])


def _at(maps: Tensor, by_step: Sequence[Tensor]) -> list[Tensor]:
    """Maps (B, S, H, W) at the squares of each step: (B, S, n)."""
    flat = maps.flatten(2)
    return [flat.index_select(2, squares) for squares in by_step]


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
