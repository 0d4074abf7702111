"""From float32 networks to integer ones: formats, rounding, tables.

Formats need the range of every activation. The codec itself tells: drawing symbols from its own distributions gives
latents like those it was trained for, without any features; measured ones of real features may be added. Activations
beyond four times the largest seen are clamped: that costs bits, never correctness.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mpcompress.entropy.indexed_tables import IndexedTables
from mpcompress.errors import CodecFileError, CodecUnavailableError, InvalidInputError
from mpcompress.exact.fixed import ACTIVATION_LIMIT, LATENT_BITS, WEIGHT_LIMIT, FixedConv
from mpcompress.exact.networks import ExactNetworks
from mpcompress.exact.vit_union import ExactVitUnion
from mpcompress.latent_codecs import VitUnionLatentCodec, VitUnionLatentCodecWithCtx
from mpcompress.latent_codecs._alone import single_samples
from mpcompress.latent_codecs._gaussian import CheckerboardCodec
from mpcompress.latent_codecs._module import EntropyCodedModule
from mpcompress.latent_codecs._vit_base import VitCodecBase, VitGeometry
from mpcompress.layers import crop, pad_to_even

__all__ = ["Latents", "exact_from", "walk"]

_MARGIN = 4.0
_MOST_BITS = LATENT_BITS
_SAMPLED_GRID = (24, 24)
_SAMPLED_CTX_BITS = 8

Choose = Callable[[Tensor, Tensor, Tensor, slice], Tensor]
"""(scales, means, squares, channels) of one step, (B, C, 1, n) each, to y_hat of it."""


class Latents:
    """Largest magnitude of what went into and came out of each convolution while being watched."""

    def __init__(self) -> None:
        self.inputs: dict[nn.Module, float] = {}
        self.outputs: dict[nn.Module, float] = {}

    @contextmanager
    def watch(self, module: nn.Module) -> Iterator[None]:
        """Watches all convolutions inside `module`."""
        with ExitStack() as stack:
            for layer in module.modules():
                if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                    handle = layer.register_forward_hook(self._see)
                    stack.callback(handle.remove)
            yield

    def _see(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for seen, tensor in ((self.inputs, inputs[0]), (self.outputs, output)):
            largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
            if not math.isfinite(largest):
                raise CodecFileError("the networks give NaN or infinity for latents of their own", field="weights")
            seen[layer] = max(seen.get(layer, 0.0), largest)


@torch.no_grad()
def exact_from(
    module: EntropyCodedModule, *, features: Sequence[tuple[Tensor, ...]] = (), token_res: tuple[int, int] | None = None
) -> ExactVitUnion:
    """Convert a trained codec.

    Args:
        module: a `VitUnionLatentCodec` or `VitUnionLatentCodecWithCtx` with tables. Its transforms are shared.
        features: batches (h,) or (h, ctx) whose activations count too, of the grid `token_res`.
        token_res: their (H, W).

    Raises:
        InvalidInputError: a codec of another class.
        CodecUnavailableError: a codec without tables.
        CodecFileError: weights that fixed point cannot hold, or an accumulator that could round.
    """
    if not isinstance(module, (VitUnionLatentCodec, VitUnionLatentCodecWithCtx)):
        raise InvalidInputError(f"no exact form of a {type(module).__name__}", field="module")
    gaussian = cast(CheckerboardCodec, module.y_lc["y0"]).gaussian.gaussian_conditional
    bottleneck = module.hyper_lc.entropy_bottleneck
    if not gaussian._quantized_cdf.numel() or not bottleneck._quantized_cdf.numel():
        raise CodecUnavailableError("the codec has no tables: call update() first")
    ctx_dim = getattr(module, "ctx_dim", 0)
    seen = Latents()
    with seen.watch(module):
        ctx_bits = _measure(module, features, token_res, ctx_dim)
    tables = [_table_arrays(model) for model in (bottleneck, gaussian)]
    freqs, lengths, offsets = (np.concatenate(parts) for parts in zip(*tables, strict=True))
    exact = ExactNetworks(
        y_dim=module.y_dim,
        z_dim=module.z_dim,
        groups=module.groups,
        ctx_dim=ctx_dim,
        scales=gaussian.scale_table.numel(),
        freqs=freqs.size,
    )
    for name, values in (("freqs", freqs), ("lengths", lengths), ("offsets", offsets)):
        getattr(exact, name).copy_(torch.from_numpy(values.astype(np.int32)))
    steps = gaussian.scale_table[:-1].double().cpu() * 2.0**LATENT_BITS
    exact.thresholds.copy_((torch.floor(steps) + 1).clamp(max=2**31 - 1).to(torch.int32))
    medians = bottleneck._get_medians().detach().flatten().double().cpu()
    exact.medians.copy_(torch.round(medians * 2.0**LATENT_BITS).to(torch.int32))
    exact.ctx_bits.fill_(ctx_bits)
    _convert_layers(module, exact, seen, ctx_bits)
    exact.prove()
    return ExactVitUnion(module, exact).eval()


def walk(module: VitCodecBase, z_hat: Tensor, geometry: VitGeometry, ctx: tuple[Tensor, ...], choose: Choose) -> Tensor:
    """Go through a float codec's symbols as its decoder does, with y_hat of each step from `choose`; returns y_hat."""
    side = [pad_to_even(x) for x in module._side(*ctx)]
    params = crop(module.hyper_lc.h_s(z_hat, *side), geometry.y)
    y_hat = z_hat.new_zeros(len(z_hat), module.y_dim, *geometry.y)
    parts = torch.split(y_hat, module.groups, dim=1)
    first = 0
    for k, part in enumerate(parts):
        codec = cast(CheckerboardCodec, module.y_lc[f"y{k}"])
        inputs = module.y_lc._get_ctx_params(k, params, parts)
        channels = slice(first, first + module.groups[k])
        for step, squares in enumerate(codec.steps(part)):
            if len(squares):
                scales, means = codec.gaussian._chunk(_params(codec, step, squares, part, inputs))
                part.flatten(2)[:, :, squares] = choose(scales, means, squares, channels)[:, :, 0]
        first += module.groups[k]
    return y_hat


def _params(codec: CheckerboardCodec, step: int, squares: Tensor, y_hat: Tensor, side: Tensor) -> Tensor:
    """Parameters (B, 2C, 1, n) of the n squares of a step, by the modules themselves: these are watched."""
    if step:
        context = codec.context_prediction(y_hat).flatten(2)[:, :, None, squares]
    else:
        context = y_hat.new_zeros((y_hat.shape[0], codec.context_prediction.out_channels, 1, len(squares)))
    params: Tensor = codec.entropy_parameters(codec.merge(context, side.flatten(2)[:, :, None, squares]))
    return params


def _measure(
    module: VitCodecBase, features: Sequence[tuple[Tensor, ...]], token_res: tuple[int, int] | None, ctx_dim: int
) -> int:
    """Run the codec's networks over drawn and given latents; returns the fractional bits of the context."""
    random = torch.Generator().manual_seed(0)
    geometry = VitGeometry(token_res=_SAMPLED_GRID)
    bottleneck = module.hyper_lc.entropy_bottleneck
    like = module.post_reg_tokens
    low, middle, high = bottleneck.quantiles[:, 0].detach().double().cpu().unbind(1)
    # The quantiles are those of a probability of 1e-9: six standard deviations of a Gaussian.
    spread = torch.maximum(high - middle, middle - low) / 6
    shape = (1, module.z_dim, *geometry.z)
    z = torch.randn(shape, generator=random, dtype=torch.float64) * spread[:, None, None]
    z_hat = (torch.round(z) + middle[:, None, None]).to(like)
    ctx = (torch.randn(1, ctx_dim, *_SAMPLED_GRID, generator=random).to(like),) if ctx_dim else ()

    def draw(scales: Tensor, means: Tensor, squares: Tensor, channels: slice) -> Tensor:
        noise = torch.randn(scales.shape, generator=random).to(scales) * scales.clamp(min=0)
        return torch.round(noise) + means

    walk(module, z_hat, geometry, ctx, draw)
    ctx_bits = _SAMPLED_CTX_BITS if ctx_dim else 0
    for batch in features:
        if token_res is None:
            raise InvalidInputError("features need their token_res", field="token_res")
        geometry = VitGeometry(token_res=token_res)
        for h, *context in single_samples(*(x.to(like) for x in batch)):
            ctx_bits = min([ctx_bits, *(_bits_for(float(x.abs().max())) for x in context)])
            _measure_one(module, h, geometry, tuple(context))
    return ctx_bits


def _measure_one(module: VitCodecBase, h: Tensor, geometry: VitGeometry, ctx: tuple[Tensor, ...]) -> None:
    y = module._analyse(h, geometry, *ctx)
    side = [pad_to_even(x) for x in module._side(*ctx)]
    medians = module.hyper_lc.entropy_bottleneck._get_medians().detach().reshape(1, -1, 1, 1)
    z_hat = torch.round(module.hyper_lc.h_a(pad_to_even(y), *side) - medians) + medians

    def code(scales: Tensor, means: Tensor, squares: Tensor, channels: slice) -> Tensor:
        return torch.round(y[:, channels].flatten(2)[:, :, None, squares] - means) + means

    walk(module, z_hat, geometry, ctx, code)


def _convert_layers(module: VitCodecBase, exact: ExactNetworks, seen: Latents, ctx_bits: int) -> None:
    h_s: Any = module.hyper_lc.h_s
    up = _three(h_s.h_s if exact.fusion else h_s)
    contexts: Any = module.y_lc.channel_context
    codecs = [cast(CheckerboardCodec, module.y_lc[f"y{k}"]) for k in range(len(module.groups))]
    channel = [_three(contexts[f"y{k}"]) if k else None for k in range(len(codecs))]
    spatial = [codec.context_prediction for codec in codecs]
    parameters = [_three(codec.entropy_parameters) for codec in codecs]

    # Layers that read one tensor, or the parts of a concatenation, share a format.
    y_bits = _bits_for(*(seen.inputs[layers[0]] for layers in channel if layers), seen.inputs[spatial[-1]])
    side_bits = _bits_for(*(seen.inputs[layers[0]] for layers in parameters))
    z_bits = _bits_for(seen.inputs[up[0]])

    def convert(layers: Sequence[nn.Module], targets: Iterable[FixedConv], first: int, last: int) -> None:
        bits = [first, *(_bits_for(seen.outputs[layer]) for layer in layers[:-1]), last]
        for layer, target, (before, after) in zip(layers, targets, pairwise(bits), strict=True):
            _convert(layer, target, before, after)

    if exact.fusion:
        joined = _bits_for(seen.inputs[h_s.fusion[0]])
        convert(up, exact.synthesis, z_bits, joined)
        convert([cast(nn.Module, module.f_ctx_down)], [exact.fusion.down], ctx_bits, joined)
        convert([h_s.fusion[0], h_s.fusion[2]], [exact.fusion.enter, exact.fusion.leave], joined, side_bits)
    else:
        convert(up, exact.synthesis, z_bits, side_bits)
    for group, before, beside, after in zip(exact.each_group(), channel, spatial, parameters, strict=True):
        if before and group.channel:
            convert(before, group.channel, y_bits, side_bits)
        convert([beside], [group.spatial], y_bits, side_bits)
        convert(after, group.parameters_of, side_bits, LATENT_BITS)


def _three(layers: Any) -> list[nn.Module]:
    """The convolutions of a network of three, with ReLU between them."""
    return [layers[0], layers[2], layers[4]]


def _convert(layer: nn.Module, target: FixedConv, in_bits: int, out_bits: int) -> None:
    """Round a layer's weights to as many bits as weights and bias have room for."""
    weight = _lowered(layer, target)
    bias = cast(Tensor, layer.bias).detach().double().cpu().repeat(4 if target.shuffle else 1)
    largest, offset = float(weight.abs().max()), float(bias.abs().max())
    bits = 24
    while bits and (largest * 2.0**bits > WEIGHT_LIMIT - 1 or offset * 2.0 ** (in_bits + bits) >= 2**31 - 1):
        bits -= 1
    if largest > WEIGHT_LIMIT - 1 or in_bits + bits < out_bits:
        raise CodecFileError(f"weights of up to {largest:g} with biases of up to {offset:g}", field="weights")
    target.weight.copy_(torch.round(weight * 2.0**bits).to(torch.int16))
    target.bias.copy_(torch.round(bias * 2.0 ** (in_bits + bits)).to(torch.int32))
    target.format.copy_(torch.tensor([in_bits, bits, out_bits], dtype=torch.int32))


def _lowered(layer: nn.Module, target: FixedConv) -> Tensor:
    """Weights (N, T, C), float64, of a convolution that does what `layer` does."""
    weight = cast(Tensor, layer.weight).detach().double().cpu()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = _phases(weight) if target.shuffle else weight.flip(2, 3).transpose(0, 1)
    return torch.stack([weight[:, :, row, column] for row, column in target.taps], dim=1)


def _phases(weight: Tensor) -> Tensor:
    """(C, N, 5, 5) of a transposed convolution of stride 2, padding 2, output padding 1, to (4N, C, 3, 3).

    Output 2 i + r sums input i + d times tap r + 2 - 2 d: the r-th phase is a convolution over d = -1, 0, 1.
    """
    C, N, _, _ = weight.shape
    phases = weight.new_zeros(2, 2, N, C, 3, 3)
    taps = [[(d, r + 2 - 2 * d) for d in (-1, 0, 1) if 0 <= r + 2 - 2 * d < 5] for r in (0, 1)]
    for r, rows in enumerate(taps):
        for s, columns in enumerate(taps):
            for d, i in rows:
                for e, j in columns:
                    phases[r, s, :, :, d + 1, e + 1] = weight[:, :, i, j].t()
    return phases.reshape(4 * N, C, 3, 3)


def _bits_for(*largest: float) -> int:
    """Fractional bits with which `_MARGIN` times the largest of these magnitudes is an activation."""
    most = max(largest, default=0.0) * _MARGIN
    if most * 2.0**_MOST_BITS <= ACTIVATION_LIMIT:
        return _MOST_BITS
    bits = math.floor(math.log2(ACTIVATION_LIMIT / most))
    if bits < 0:
        raise CodecFileError(f"an activation of {most / _MARGIN:g}", field="weights")
    return bits


def _table_arrays(model: Any) -> tuple[np.ndarray[Any, Any], ...]:
    """Frequencies, lengths and offsets of an entropy model's tables."""
    cdfs, lengths, offsets = (x.cpu().numpy() for x in (model._quantized_cdf, model._cdf_length, model._offset))
    IndexedTables(cdfs, lengths, offsets)  # checks them
    freqs = np.concatenate([np.diff(row[:length]) for row, length in zip(cdfs, lengths, strict=True)])
    return freqs, lengths - 1, offsets
