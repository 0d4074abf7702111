"""The board of latents: its two colours, the kernel that sees the other one, the widths of parameter networks."""

from __future__ import annotations

import functools

import torch
from torch import nn

from mpcompress.layers._compressai import CheckerboardMaskedConv2d, sequential_channel_ramp

__all__ = ["CONTEXT_KERNEL", "Squares", "checkerboard_taps", "ramp"]

CONTEXT_KERNEL = 5
"""Sides of the kernels of the channel and the spatial context."""


class Squares:
    """Flat positions of the squares of a board: `colours` even and odd ones, `padded` the same in the padded board."""

    def __init__(self, height: int, width: int) -> None:
        row, column = torch.arange(height)[:, None], torch.arange(width)[None, :]
        odd = ((row + column) % 2).flatten()
        inside = ((row + CONTEXT_KERNEL // 2) * (width + CONTEXT_KERNEL - 1) + column + CONTEXT_KERNEL // 2).flatten()
        self.colours = (odd == 0).nonzero()[:, 0], odd.nonzero()[:, 0]
        self.padded = inside[self.colours[0]], inside[self.colours[1]]

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(height: int, width: int) -> Squares:
        """Those of a board, made once."""
        return Squares(height, width)


@functools.cache
def checkerboard_taps() -> tuple[tuple[int, int], ...]:
    """The taps of a checkerboard kernel that see squares of the other colour."""
    mask = CheckerboardMaskedConv2d(1, 1, kernel_size=CONTEXT_KERNEL).mask[0, 0]
    return tuple((int(row), int(column)) for row, column in mask.nonzero())


@functools.cache
def ramp(inputs: int, outputs: int, least: int) -> tuple[int, ...]:
    """Channels before, between and after the layers of a parameter network, by CompressAI's rule."""
    layers = sequential_channel_ramp(
        inputs,
        outputs,
        min_ch=least,
        num_layers=3,
        interp="linear",
        make_layer=functools.partial(nn.Conv2d, device="meta"),
        make_act=nn.ReLU,
        kernel_size=1,
        stride=1,
        padding=0,
    )
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    return (inputs, *(layer.out_channels for layer in convolutions))
