"""The networks of one channel group, the fusion with a context, and how latents become their inputs."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from mpcompress.errors import CodecFileError
from mpcompress.exact.board import CONTEXT_KERNEL, checkerboard_taps, ramp
from mpcompress.exact.engines import Engine
from mpcompress.exact.fixed import ACTIVATION_LIMIT, LATENT_BITS, Chain, FixedConv, round_shift

__all__ = ["Fusion", "GroupNetworks", "check_chain", "to_context"]


class GroupNetworks(nn.Module):
    """The networks of one channel group.

    Args:
        size: channels of the group.
        before: channels of the groups before it.
        z_dim: channels of z; the side parameters have twice as many.
    """

    def __init__(self, size: int, before: int, z_dim: int) -> None:
        super().__init__()
        self.size = size
        self.channel: Chain | None = None
        if before:
            self.channel = Chain(
                FixedConv(before, z_dim, kernel=CONTEXT_KERNEL, relu=True),
                FixedConv(z_dim, z_dim, kernel=CONTEXT_KERNEL, relu=True),
                FixedConv(z_dim, 2 * size, kernel=CONTEXT_KERNEL),
            )
        self.spatial = FixedConv(size, 2 * size, kernel=CONTEXT_KERNEL, taps=checkerboard_taps())
        first, second, third, last = ramp(2 * size * (2 if before else 1) + 2 * z_dim, 2 * size, 2 * z_dim)
        self.parameters_of = Chain(
            FixedConv(first, second, relu=True), FixedConv(second, third, relu=True), FixedConv(third, last, wide=True)
        )

    def channel_context(self, engine: Engine, seen: Tensor) -> Tensor:
        """Padded planes of the channels before to activations (B * H * W, 2 size)."""
        assert self.channel is not None
        x = engine.conv_planes(seen, self.channel.enter)
        return engine.conv(engine.conv(x, self.channel.middle), self.channel.leave).flatten(0, 2)

    def check(self, name: str, *, side_bits: int, y_bits: int) -> None:
        """Refuse formats that do not meet. Raises CodecFileError."""
        readers, writers = [self.spatial], [self.spatial]
        if self.channel is not None:
            check_chain(self.channel, f"{name}.channel")
            readers.append(self.channel.enter)
            writers.append(self.channel.leave)
        check_chain(self.parameters_of, f"{name}.parameters_of")
        if any(layer.in_bits != y_bits for layer in readers) or y_bits > LATENT_BITS:
            raise CodecFileError(f"{name}: the contexts read y in different formats", field=name)
        if {self.parameters_of.enter.in_bits, *(layer.out_bits for layer in writers)} != {side_bits}:
            raise CodecFileError(f"{name}: what the parameters are made of differs in format", field=name)
        if self.parameters_of.leave.out_bits != LATENT_BITS:
            raise CodecFileError(f"{name}: means and scales do not have {LATENT_BITS} bits", field=name)


class Fusion(nn.Module):
    """Joins the context, at half its size, to the side parameters.

    Args:
        side: channels of the side parameters.
        ctx_dim: channels of the context.
    """

    def __init__(self, side: int, ctx_dim: int) -> None:
        super().__init__()
        self.down = FixedConv(ctx_dim, ctx_dim, kernel=3, stride=2)
        self.enter = FixedConv(side + ctx_dim, side, kernel=3, relu=True)
        self.leave = FixedConv(side, side, kernel=3)

    def forward(self, engine: Engine, x: Tensor, ctx: Tensor) -> Tensor:
        """Side parameters (B, H, W, S), H and W even, and ctx of the token grid to side parameters."""
        down = engine.conv(ctx, self.down)
        B, H, W, _ = down.shape
        # The hyper transforms see latents that are padded with zeros to even sides.
        shape = (B, H + H % 2, W + W % 2, x.shape[-1] + down.shape[-1])
        joined = torch.zeros(shape, dtype=engine.dtype, device=engine.device)
        joined[..., : x.shape[-1]] = x[:, : shape[1], : shape[2]]
        joined[:, :H, :W, x.shape[-1] :] = down
        return engine.conv(engine.conv(joined, self.enter), self.leave)

    def check(self) -> None:
        """Refuse formats that do not meet. Raises CodecFileError."""
        if self.down.out_bits != self.enter.in_bits or self.enter.out_bits != self.leave.in_bits:
            raise CodecFileError("the layers of the fusion differ in format", field="exact.fusion")


def to_context(values: Tensor, bits: int) -> Tensor:
    """Latents with `LATENT_BITS` to activations with `bits`, clamped."""
    return round_shift(values, LATENT_BITS - bits).clamp(-ACTIVATION_LIMIT, ACTIVATION_LIMIT)


def check_chain(chain: Chain, name: str) -> None:
    """Refuse formats that do not meet. Raises CodecFileError."""
    for before, after in itertools.pairwise(chain):
        if before.out_bits != after.in_bits:
            raise CodecFileError(f"{name}: a layer reads another format than the one before it writes", field=name)
