"""The networks that give each symbol its distribution, in fixed point, and the order in which symbols follow.

                       z symbols ── + medians ── hyper synthesis ──────────────┐ (fused with ctx)
    per channel group: y decoded so far ── channel context ──┐                 │
      squares of one colour, then of the other:              ├── parameters ───┘── scale ── row of the tables
                       y of the first colour ── spatial ─────┘                  └── mean ── y = symbol + mean

He 2022, ELIC, arXiv 2203.10886, as `VitUnionLatentCodec` has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from mpcompress.entropy.tables import CdfTables
from mpcompress.errors import CodecFileError
from mpcompress.exact.board import CONTEXT_KERNEL, Squares
from mpcompress.exact.engines import Engine
from mpcompress.exact.fixed import LATENT_BITS, Chain, FixedConv
from mpcompress.exact.groups import Fusion, GroupNetworks, check_chain, to_context

__all__ = ["ExactNetworks", "LatentCoder"]

_PRECISION = 16


class LatentCoder(Protocol):
    """What is done with the distribution of symbols: writing them, or reading them."""

    def step(self, rows: Tensor, means: Tensor, squares: Tensor, channels: slice) -> Tensor:
        """One step of all samples.

        Args:
            rows: (B, n, C) rows of the tables, int32.
            means: (B, n, C), int64 with `LATENT_BITS`.
            squares: (n,) flat positions in y.
            channels: those of y, C of them.

        Returns:
            y_hat (B, n, C), int64 with `LATENT_BITS`.
        """


class ExactNetworks(nn.Module):
    """The integer networks of one codec. All that decoding symbols depends on is in its buffers.

    Besides those of the layers: `medians` int32 (z_dim,) with `LATENT_BITS`; `thresholds` int32 (S,), ascending: a
    scale has the row of as many thresholds as are at most it; `freqs`, `lengths`, `offsets` int32, the `CdfTables` of
    z's channels, then of the S + 1 scales; `ctx_bits` int32 (1,), fractional bits of the context.

    Args:
        y_dim: channels of y.
        z_dim: channels of z.
        groups: channels of each group.
        ctx_dim: channels of the context; 0: none.
        table_sizes: numbers of scales and of all frequencies.
    """

    medians: Tensor
    thresholds: Tensor
    freqs: Tensor
    lengths: Tensor
    offsets: Tensor
    ctx_bits: Tensor

    def __init__(
        self, *, y_dim: int, z_dim: int, groups: Sequence[int], ctx_dim: int = 0, scales: int = 64, freqs: int = 0
    ) -> None:
        super().__init__()
        self.y_dim, self.z_dim, self.groups, self.ctx_dim = y_dim, z_dim, list(groups), ctx_dim
        side, wide = 2 * z_dim, z_dim * 3 // 2
        self.synthesis = Chain(
            FixedConv(z_dim, 4 * z_dim, kernel=3, relu=True, shuffle=True),
            FixedConv(z_dim, 4 * wide, kernel=3, relu=True, shuffle=True),
            FixedConv(wide, side, kernel=3),
        )
        self.fusion = Fusion(side, ctx_dim) if ctx_dim else None
        befores = [sum(groups[:k]) for k in range(len(groups))]
        self.y = nn.ModuleList(GroupNetworks(size, before, z_dim) for size, before in zip(groups, befores, strict=True))
        for name, length in (
            ("medians", z_dim),
            ("thresholds", scales - 1),
            ("freqs", freqs),
            ("lengths", z_dim + scales),
            ("offsets", z_dim + scales),
            ("ctx_bits", 1),
        ):
            self.register_buffer(name, torch.zeros(length, dtype=torch.int32))
        self.bound = 0
        """Largest accumulator of any layer for any input."""
        self._tables: CdfTables | None = None

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        for name in ("thresholds", "freqs", "lengths", "offsets"):  # their sizes are those of the tables to come
            value, buffer = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(value, Tensor) and value.ndim == 1 and value.shape != buffer.shape:
                setattr(self, name, torch.empty(value.shape, dtype=buffer.dtype, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def prove(self) -> None:
        """Check every buffer, bound every accumulator, pack the tables. Call it after every change of a buffer.

        Raises:
            CodecFileError: numbers that no conversion gives, or with which an accumulator could round.
        """
        self.bound = max(layer.prove(name) for name, layer in self.layers())
        last = self.synthesis.leave
        if self.fusion:
            if last.out_bits != self.fusion.enter.in_bits or self.fusion.down.in_bits != int(self.ctx_bits[0]):
                raise CodecFileError("the fusion reads another format than it is given", field="exact.fusion")
            self.fusion.check()
            last = self.fusion.leave
        check_chain(self.synthesis, "exact.synthesis")
        for number, group in enumerate(self.each_group()):
            group.check(f"exact.y.{number}", side_bits=last.out_bits, y_bits=next(self.each_group()).spatial.in_bits)
        if self.synthesis.enter.in_bits > LATENT_BITS:
            raise CodecFileError(f"z has more than {LATENT_BITS} bits", field="exact.synthesis")
        if bool((self.thresholds.diff() < 0).any()):
            raise CodecFileError("the thresholds of the scale do not ascend", field="exact.thresholds")
        arrays = (self.freqs.cpu().numpy(), self.lengths.cpu().numpy(), self.offsets.cpu().numpy())
        self._tables = CdfTables(*arrays, _PRECISION)
        if self._tables.count != self.z_dim + len(self.thresholds) + 1:
            raise CodecFileError("tables for another number of channels and scales", field="exact.lengths")

    @property
    def tables(self) -> CdfTables:
        """Tables of z's channels, then of the scales."""
        if self._tables is None:
            self.prove()
        assert self._tables is not None
        return self._tables

    def layers(self) -> Iterator[tuple[str, FixedConv]]:
        """Every layer with its name."""
        for name, module in self.named_modules():
            if isinstance(module, FixedConv):
                yield name, module

    def each_group(self) -> Iterator[GroupNetworks]:
        """The networks of each channel group in turn."""
        return iter(cast(Iterable[GroupNetworks], self.y))

    def side(self, engine: Engine, z_symbols: Tensor, size: tuple[int, int], ctx: Tensor | None) -> Tensor:
        """Hyper synthesis.

        Args:
            engine: evaluates the layers.
            z_symbols: (B, h, w, z_dim), int64.
            size: (H, W) of y.
            ctx: (B, H', W', ctx_dim) activations with `ctx_bits`, of the token grid.

        Returns:
            Activations (B, H, W, 2 z_dim).
        """
        z_hat = (z_symbols << LATENT_BITS) + self.medians.to(z_symbols.device, torch.int64)
        x = to_context(z_hat, self.synthesis.enter.in_bits).to(engine.device, engine.dtype)
        for layer in self.synthesis:
            x = engine.conv(x, layer)
        if self.fusion is not None and ctx is not None:
            x = self.fusion(engine, x, ctx)
        return x[:, : size[0], : size[1]]

    def code(self, engine: Engine, side: Tensor, coder: LatentCoder) -> Tensor:
        """Go through all symbols of y in their order.

        Args:
            engine: evaluates the layers.
            side: what `side` gave.
            coder: writes or reads the symbols.

        Returns:
            y_hat (B, H, W, y_dim), int64 with `LATENT_BITS`, on the CPU.
        """
        B, H, W, S = side.shape
        M, pad = B * H * W, CONTEXT_KERNEL // 2
        squares = Squares.of(H, W)
        thresholds = self.thresholds.to(engine.device, engine.wide_dtype)
        y_hat = torch.zeros(B, H * W, self.y_dim, dtype=torch.int64)
        seen = engine.padded(B, (H, W), self.y_dim, pad)
        flat = seen.view(engine.limbs, B, -1, self.y_dim)
        side_planes = engine.split(side.reshape(M, S))
        first = 0
        for group in self.each_group():
            channels = slice(first, first + group.size)
            spatial, layers = group.spatial, group.parameters_of
            inputs = side_planes
            if group.channel is not None:
                context = group.channel_context(engine, seen[..., :first])
                inputs = engine.empty(M, context.shape[-1] + S)
                inputs[..., :-S] = engine.split(context)
                inputs[..., -S:] = side_planes
            # What the parameters make of side and channel context is the same for both colours: added up once.
            acc = engine.product(inputs, layers.enter, spatial.outputs).view(B, H * W, -1)
            for step, chosen in enumerate(squares.colours):
                if not len(chosen):
                    continue
                on_device = chosen.to(engine.device)
                part = acc.index_select(1, on_device).flatten(0, 1)
                if step:
                    context = engine.taps(seen[..., channels], spatial, on_device)
                    part += engine.product(engine.split(context), layers.enter)
                x = engine.rows(engine.finish(part, layers.enter), layers.middle)
                x = engine.rows(x, layers.leave).view(B, len(chosen), 2 * group.size)
                scales, means = x[..., : group.size], x[..., group.size :]
                rows = torch.bucketize(scales.contiguous(), thresholds, right=True, out_int32=True).add_(self.z_dim)
                values = coder.step(rows.cpu(), means.cpu().to(torch.int64), chosen, channels)
                y_hat[:, chosen, channels] = values
                latest = to_context(values, spatial.in_bits).to(engine.device, engine.dtype)
                flat[:, :, squares.padded[step].to(engine.device), channels] = engine.split(latest)
            first += group.size
        return y_hat.view(B, H, W, self.y_dim)
