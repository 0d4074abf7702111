"""Layers in fixed point: integers in, integers out, and the proof that no accumulator of theirs can round.

A number x with f fractional bits is the integer x * 2^f. Per layer, for integer inputs a and integer weights w::

    acc = sum of w * a, + bias          exact: |acc| < 2^53 whatever the inputs are
    out = clamp(floor(acc * 2^-shift + 1/2)), ReLU       shift = in_bits + weight_bits - out_bits

Integers below 2^53 are exact in float64, in any order of summation and with any fused step, so every library, thread
count and device gives the same `out`. (Balle, Johnston, Minnen 2019, "Integer Networks for Data Compression with
Latent-Variable Models"; He et al. 2022, arXiv 2202.07513.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from mpcompress.errors import CodecFileError

__all__ = [
    "ACTIVATION_LIMIT",
    "LATENT_BITS",
    "WEIGHT_LIMIT",
    "WIDE_LIMIT",
    "Chain",
    "FixedConv",
    "Tap",
    "full_kernel",
    "round_shift",
]

LATENT_BITS: Final = 12
"""Fractional bits of latents, medians, means and scales."""

ACTIVATION_LIMIT: Final = (1 << 15) - (1 << 7) - 1
"""Largest magnitude of an activation: two signed bytes, 256 * high + low, hold it."""

WEIGHT_LIMIT: Final = (1 << 13) - (1 << 6) - 1
"""Largest magnitude of a weight: 128 * high + low with both in [-64, 64). Products of such a byte and a signed one add
up in pairs below 2^15, which the 8-bit instructions of processors without VNNI need."""

WIDE_LIMIT: Final = 1 << 26
"""Largest magnitude of a mean or scale: 2^14 with `LATENT_BITS`."""

ACCUMULATOR_LIMIT: Final = 1 << 53
_LIMB_ACCUMULATOR_LIMIT: Final = 1 << 31
_MAX_BITS: Final = 40

Tap = tuple[int, int]


def full_kernel(size: int) -> tuple[Tap, ...]:
    """All (row, column) of a square kernel in raster order."""
    return tuple(itertools.product(range(size), range(size)))


def round_shift(x: Tensor, bits: int) -> Tensor:
    """floor(x * 2^-bits + 1/2) of an integer tensor."""
    return x if bits == 0 else (x + (1 << (bits - 1))) >> bits


class FixedConv(nn.Module):
    """A convolution with integer weights; a kernel may leave taps out, and the output may be twice the size.

    Buffers, all integers and all of what the layer computes: `weight` int16 (N, T, C) for T taps, `bias` int32 (N,)
    with in_bits + weight_bits fractional bits, `format` int32 (in_bits, weight_bits, out_bits).

    Args:
        channels: C of the input.
        outputs: N.
        kernel: sides of the square kernel, odd; the padding is half of it.
        taps: the (row, column) of the kernel that have weights; None: all.
        stride: 1 or 2.
        relu: negative outputs become 0.
        wide: outputs are clamped to `WIDE_LIMIT` instead of `ACTIVATION_LIMIT`.
        shuffle: the N outputs are 4 phases of N / 4 channels of an output of twice the sides, row phase first.
    """

    weight: Tensor
    bias: Tensor
    format: Tensor

    def __init__(
        self,
        channels: int,
        outputs: int,
        *,
        kernel: int = 1,
        taps: Sequence[Tap] | None = None,
        stride: int = 1,
        relu: bool = False,
        wide: bool = False,
        shuffle: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.outputs, self.kernel, self.stride = channels, outputs, kernel, stride
        self.taps = full_kernel(kernel) if taps is None else tuple(taps)
        self.relu, self.wide, self.shuffle = relu, wide, shuffle
        self.register_buffer("weight", torch.zeros(outputs, len(self.taps), channels, dtype=torch.int16))
        self.register_buffer("bias", torch.zeros(outputs, dtype=torch.int32))
        self.register_buffer("format", torch.zeros(3, dtype=torch.int32))
        self.in_bits = self.weight_bits = self.out_bits = 0
        self.packed: dict[str, Tensor] = {}
        """Forms of the weights that engines made, by their own keys; emptied by `prove`."""

    @property
    def limit(self) -> int:
        """Largest magnitude of an output."""
        return WIDE_LIMIT if self.wide else ACTIVATION_LIMIT

    @property
    def lowest(self) -> int:
        """Smallest output."""
        return 0 if self.relu else -self.limit

    @property
    def shift(self) -> int:
        """Bits that an accumulator loses."""
        return self.in_bits + self.weight_bits - self.out_bits

    def prove(self, name: str) -> int:
        """Check the buffers, read the format, and bound the accumulator. Call it after every change of a buffer.

        Returns:
            The largest magnitude that an accumulator, rounding included, can have for any input.

        Raises:
            CodecFileError: a weight, a format or a bound outside its limits.
        """
        self.packed.clear()
        in_bits, weight_bits, out_bits = (int(bits) for bits in self.format)
        if not all(0 <= bits <= _MAX_BITS for bits in (in_bits, weight_bits, out_bits)):
            raise CodecFileError(
                f"{name}: a format of {in_bits}, {weight_bits}, {out_bits} bits", field=f"{name}.format"
            )
        if not 0 <= in_bits + weight_bits - out_bits <= _MAX_BITS:
            raise CodecFileError(f"{name}: {in_bits} + {weight_bits} bits to {out_bits}", field=f"{name}.format")
        self.in_bits, self.weight_bits, self.out_bits = in_bits, weight_bits, out_bits
        magnitudes = self.weight.to(torch.int64).abs()
        if int(magnitudes.max()) > WEIGHT_LIMIT:
            raise CodecFileError(f"{name}: a weight is beyond +-{WEIGHT_LIMIT}", field=f"{name}.weight")
        products = magnitudes.flatten(1).sum(1) * ACTIVATION_LIMIT
        bound = int((products + self.bias.to(torch.int64).abs()).max()) + (1 << self.shift)
        if bound >= ACCUMULATOR_LIMIT or (1 << 13) * len(self.taps) * self.channels >= _LIMB_ACCUMULATOR_LIMIT:
            raise CodecFileError(f"{name}: an accumulator may reach {bound}: it would round", field=f"{name}.weight")
        return bound


class Chain(nn.Module):
    """Three layers, each reading the one before."""

    def __init__(self, enter: FixedConv, middle: FixedConv, leave: FixedConv) -> None:
        super().__init__()
        self.enter, self.middle, self.leave = enter, middle, leave

    def __iter__(self) -> Iterator[FixedConv]:
        return iter((self.enter, self.middle, self.leave))
