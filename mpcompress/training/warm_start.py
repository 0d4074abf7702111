"""Starts a ViT codec as a linear transform codec instead of from noise, fitted to the features in seconds.

    tokens ── KLT over channels ── KLT over 2x2 tokens ── step for lmbda ── y    (f_a; f_s is its inverse)

The transformer blocks start near the identity, the rectifiers in their linear range, the distribution of each channel
of y at its measured scale. Every parameter stays free: training goes on from a codec that codes, where random weights
spend their first tens of thousands of steps on finding one. KLT: Goyal 2001, "Theoretical foundations of transform
coding".
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["warm_start"]

Float = NDArray[np.float64]
_NEAR_IDENTITY = 0.02
_KEPT_LINEAR = 0.999
"""Share of the samples that the lift keeps in the linear range of a rectifier."""
_MAX_SAMPLES = 1 << 16
_MIN_SCALE = 0.11
"""The first entry of the scale table."""


@torch.no_grad()
def warm_start(net: Any, tensors: NDArray[np.float32], grid: tuple[int, int], lmbda: float) -> None:
    """Sets the weights of a `VitUnionLatentCodec` or `VitUnionLatentCodecWithCtx`, in place, on the CPU.

    Args:
        net: the codec.
        tensors: (N, L, C) features, L = prefix tokens + H * W.
        grid: (H, W) of the patches.
        lmbda: as in the loss bpfp + lmbda * NMSE: it fixes the quantiser's step.
    """
    prefix, (H, W) = net.num_prefix_tokens, grid
    net.post_reg_tokens.copy_(torch.from_numpy(tensors[:, :prefix].mean(axis=0)))
    for block in (*net.pre_vit_blocks, *net.post_vit_blocks):
        for layer in (block.attn.proj, block.mlp.fc2):
            layer.weight.mul_(_NEAR_IDENTITY)
            layer.bias.zero_()
    maps = tensors[:, prefix:].reshape(-1, H, W, tensors.shape[-1]).astype(np.float64)
    blocks = maps[:, : H - H % 2, : W - W % 2]
    if blocks.size == 0:
        return
    for name in ("cond_enc", "cond_dec"):
        if hasattr(net, name):
            _pass_through(getattr(net, name), float(_lift(maps.reshape(-1, 1))[0]))
    N, h, w, C = blocks.shape
    mean, channel = _klt(blocks.reshape(-1, C), net.y_dim)
    coefficients = (blocks - mean) @ channel.T
    squares = coefficients.reshape(N, h // 2, 2, w // 2, 2, -1).transpose(0, 1, 3, 2, 4, 5)
    _, spatial = _klt(squares.reshape(-1, 4 * net.y_dim), net.y_dim, centre=False)
    # The step at which one more bit stops paying: d(bpfp)/d(step) = lmbda d(NMSE)/d(step) of a uniform quantiser.
    step = math.sqrt(6 * float(tensors.var(dtype=np.float64)) / (lmbda * math.log(2)))
    y = squares.reshape(-1, 4 * net.y_dim) @ spatial.T / step
    kernel = spatial.reshape(net.y_dim, 2, 2, net.y_dim).transpose(0, 3, 1, 2)
    _analysis(net.f_a, mean, channel, kernel / step, _lift(coefficients.reshape(-1, net.y_dim)))
    bound = _lift((y @ spatial * step).reshape(-1, net.y_dim)) + step
    _synthesis(net.f_s, mean, channel, kernel * step, bound)
    _scales(net, np.maximum(y.std(axis=0), _MIN_SCALE))


def _klt(x: Float, components: int, *, centre: bool = True) -> tuple[Float, Float]:
    """Mean (C,) and orthonormal rows (components, C) by falling variance; rows beyond C are zero."""
    x = x[:: max(1, len(x) // _MAX_SAMPLES)]
    mean = x.mean(axis=0) if centre else np.zeros(x.shape[1])
    centred = x - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    rows = np.zeros((components, x.shape[1]))
    kept = min(components, x.shape[1])
    rows[:kept] = vectors[:, ::-1][:, :kept].T
    return mean, rows


def _lift(x: Float) -> Float:
    """What to add to each column so that a rectifier passes nearly all of it."""
    lift: Float = np.quantile(np.abs(x[:: max(1, len(x) // _MAX_SAMPLES)]), _KEPT_LINEAR, axis=0)
    return lift


def _analysis(f_a: nn.Sequential, mean: Float, channel: Float, kernel: Float, bound: Float) -> None:
    """Conv 3x3 as the KLT over channels, lifted above zero, and conv 5x5 of stride 2 as that over 2x2 tokens."""
    first, second = cast(nn.Conv2d, f_a[0]), cast(nn.Conv2d, f_a[2])
    first.weight.zero_()
    first.weight[:, :, 1, 1] = _tensor(channel)
    _bias(first).copy_(_tensor(bound - channel @ mean))
    second.weight.zero_()
    second.weight[:, :, 2:4, 2:4] = _tensor(kernel)
    _bias(second).copy_(_tensor(-np.einsum("oiyx,i->o", kernel, bound)))


def _synthesis(f_s: nn.Sequential, mean: Float, channel: Float, kernel: Float, bound: Float) -> None:
    """The transposed transforms in transposed convolutions."""
    first, second = cast(nn.ConvTranspose2d, f_s[0]), cast(nn.ConvTranspose2d, f_s[2])
    first.weight.zero_()
    first.weight[:, :, 2:4, 2:4] = _tensor(kernel)
    _bias(first).copy_(_tensor(bound))
    second.weight.zero_()
    second.weight[:, :, 1, 1] = _tensor(channel)
    _bias(second).copy_(_tensor(mean - channel.T @ bound))


def _pass_through(condition: nn.Sequential, bound: float) -> None:
    """Features through, the context beside them not yet used: its weights start at zero and learn from there."""
    first, second = cast(nn.Conv2d, condition[0]), cast(nn.Conv2d, condition[2])
    channels = second.weight.shape[0]
    for layer in (first, second):
        layer.weight.zero_()
        layer.weight[:, :channels, 1, 1] = torch.eye(channels)
    _bias(first).fill_(bound)
    _bias(second).fill_(-bound)


def _scales(net: Any, scales: Float) -> None:
    """Scales and means of y: the last layer of each group's parameters gives its channels' measured ones."""
    for k, part in enumerate(torch.split(_tensor(scales), net.groups)):
        last = net.y_lc.latent_codec[f"y{k}"].entropy_parameters[-1]
        last.weight.mul_(_NEAR_IDENTITY)
        _bias(last).copy_(torch.cat((part, torch.zeros_like(part))))


def _bias(layer: nn.Module) -> Tensor:
    bias = layer.bias
    if not isinstance(bias, Tensor):
        raise TypeError(f"{type(layer).__name__} without a bias")
    return bias


def _tensor(array: Float) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
