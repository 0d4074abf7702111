"""The fixed-point networks once more, independently: int64 NumPy, loops over taps, nothing shared with the engines."""

from __future__ import annotations

from typing import Any

import numpy as np


def conv_int64(x: np.ndarray, layer: Any) -> np.ndarray:
    """(B, H, W, C) int64 to the outputs of a `FixedConv`."""
    B, H, W, _ = x.shape
    k, stride, shift = layer.kernel, layer.stride, int(layer.format[0] + layer.format[1] - layer.format[2])
    weight, bias = layer.weight.numpy().astype(np.int64), layer.bias.numpy().astype(np.int64)
    high, wide = (H + stride - 1) // stride, (W + stride - 1) // stride
    p = k // 2
    padded = np.pad(x.astype(np.int64), ((0, 0), (p, p), (p, p), (0, 0)))
    acc = np.zeros((B, high, wide, len(bias)), np.int64) + bias
    for number, (row, column) in enumerate(layer.taps):
        part = padded[
            :, row : row + stride * (high - 1) + 1 : stride, column : column + stride * (wide - 1) + 1 : stride
        ]
        acc += part @ weight[:, number].T
    out = (acc + (1 << shift >> 1)) >> shift
    limit = 2**26 if layer.wide else 32639
    out = np.clip(out, 0 if layer.relu else -limit, limit)
    if layer.shuffle:
        n = out.shape[-1] // 4
        doubled = np.zeros((B, 2 * high, 2 * wide, n), np.int64)
        for phase in range(4):
            doubled[:, phase // 2 :: 2, phase % 2 :: 2] = out[..., phase * n : (phase + 1) * n]
        out = doubled
    return out


def rows_and_symbols(
    exact: Any, z_symbols: np.ndarray, y_hat: np.ndarray, ctx: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Table rows and symbols of one sample in coding order, z's and y's.

    Args:
        exact: `ExactNetworks`, of which only numbers are read.
        z_symbols: (h, w, z_dim).
        y_hat: (H, W, y_dim), 12 fractional bits: each step's parameters are computed from the steps before only.
        ctx: (H', W', ctx_dim) integers.
    """

    def to_input(values: np.ndarray, bits: int) -> np.ndarray:
        moved = values if bits == 12 else (values + (1 << (11 - bits))) >> (12 - bits)
        return np.clip(moved, -32639, 32639)

    H, W, _ = y_hat.shape
    z_hat = (z_symbols.astype(np.int64) << 12) + exact.medians.numpy()
    x = to_input(z_hat, int(exact.synthesis.enter.format[0]))[None]
    for layer in (exact.synthesis.enter, exact.synthesis.middle, exact.synthesis.leave):
        x = conv_int64(x, layer)
    if ctx is not None:
        down = conv_int64(ctx[None], exact.fusion.down)
        down = np.pad(down, ((0, 0), (0, down.shape[1] % 2), (0, down.shape[2] % 2), (0, 0)))
        joined = np.concatenate([x[:, : down.shape[1], : down.shape[2]], down], axis=3)
        x = conv_int64(conv_int64(joined, exact.fusion.enter), exact.fusion.leave)
    side = x[:, :H, :W]

    rows = [np.broadcast_to(np.arange(z_symbols.shape[-1]), z_symbols.shape).ravel()]
    symbols = [z_symbols.ravel()]
    thresholds = exact.thresholds.numpy().astype(np.int64)
    odd = np.add.outer(np.arange(H), np.arange(W)) % 2 == 1
    first = 0
    for group in exact.y:
        part = slice(first, first + group.size)
        bits = int(group.spatial.format[0])
        inputs = [side]
        if group.channel is not None:
            seen = to_input(y_hat[None, ..., :first], bits)
            for layer in (group.channel.enter, group.channel.middle, group.channel.leave):
                seen = conv_int64(seen, layer)
            inputs.insert(0, seen)
        for colour in (~odd, odd):
            context = np.zeros((1, H, W, 2 * group.size), np.int64)
            if colour[0, 0] == odd[0, 0]:
                anchors = np.where(odd[..., None], 0, y_hat[..., part])
                context = conv_int64(to_input(anchors, bits)[None], group.spatial)
            params = np.concatenate([context, *inputs], axis=3)
            for layer in (group.parameters_of.enter, group.parameters_of.middle, group.parameters_of.leave):
                params = conv_int64(params, layer)
            scales, means = params[0][colour][:, : group.size], params[0][colour][:, group.size :]
            steps = y_hat[colour][:, part] - means
            assert not np.any(steps % 4096), "y_hat is no symbol away from this mean"
            symbols.append((steps >> 12).ravel())
            rows.append((scales[..., None] >= thresholds).sum(-1).ravel() + z_symbols.shape[-1])
        first += group.size
    return np.concatenate(rows), np.concatenate(symbols)
