"""Ways to evaluate fixed-point layers; all give the same integers, so a codec takes the fastest.

LimbEngine   CPUs with 8-bit dot products (VNNI): each number as two bytes, four byte products per product
GemmEngine   float64 unfold + GEMM: any device that has float64. No Winograd or FFT, and TF32 is no question
ConvEngine   float64 convolutions of the framework, to compare with
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mpcompress.exact import kernels
from mpcompress.exact.fixed import FixedConv, Tap

__all__ = ["ConvEngine", "Engine", "GemmEngine", "LimbEngine", "choose_engine"]

_WINDOW_BYTES = 24 << 20
"""Most memory of the unfolded windows of one product."""


class Engine(ABC):
    """Evaluates `FixedConv` layers.

    Activations are (..., C) tensors of integers, of type `dtype` or, for wide layers, `wide_dtype`. Planes are what
    products read: activations (..., C) taken apart into (L, ..., C), zero-padded in space where windows need it.
    """

    dtype: torch.dtype
    wide_dtype: torch.dtype
    plane_dtype: torch.dtype
    limbs: int
    device: torch.device

    @abstractmethod
    def split(self, x: Tensor) -> Tensor:
        """Activations (..., C) to planes (L, ..., C)."""

    @abstractmethod
    def product(self, planes: Tensor, layer: FixedConv, first: int = 0) -> Tensor:
        """Planes (L, M, K) to accumulators float64 (M, N): with rows first..first + K of the layer's weights."""

    @abstractmethod
    def finish(self, acc: Tensor, layer: FixedConv) -> Tensor:
        """Accumulators (M, N), which may be overwritten, to outputs (M, N)."""

    def empty(self, *shape: int) -> Tensor:
        """Uninitialised planes (L, *shape)."""
        return torch.empty(self.limbs, *shape, dtype=self.plane_dtype, device=self.device)

    def padded(self, samples: int, size: tuple[int, int], channels: int, padding: int) -> Tensor:
        """Zero planes (L, B, H + 2p, W + 2p, C)."""
        height, width = size[0] + 2 * padding, size[1] + 2 * padding
        shape = (self.limbs, samples, height, width, channels)
        return torch.zeros(shape, dtype=self.plane_dtype, device=self.device)

    def pad(self, x: Tensor, padding: int) -> Tensor:
        """Activations (B, H, W, C) to padded planes."""
        B, H, W, C = x.shape
        planes = self.padded(B, (H, W), C, padding)
        planes[:, :, padding : padding + H, padding : padding + W] = self.split(x)
        return planes

    def rows(self, x: Tensor, layer: FixedConv) -> Tensor:
        """A 1 x 1 layer: activations (M, C) to (M, N)."""
        return self.finish(self.product(self.split(x), layer), layer)

    def conv(self, x: Tensor, layer: FixedConv) -> Tensor:
        """A layer: activations (B, H, W, C) to (B, H', W', N')."""
        return self.conv_planes(self.pad(x, layer.kernel // 2), layer)

    def conv_planes(self, planes: Tensor, layer: FixedConv) -> Tensor:
        """A layer with all taps: planes padded by half the kernel to (B, H', W', N')."""
        _, B, height, width, C = planes.shape
        k, stride = layer.kernel, layer.stride
        H, W = (height - k) // stride + 1, (width - k) // stride + 1
        # Unfolded windows are k * k times the input: made for some output rows of some samples at a time.
        row_bytes = self.limbs * W * k * k * C * planes.element_size()
        some_rows = max(1, min(H, _WINDOW_BYTES // row_bytes))
        some_samples = max(1, _WINDOW_BYTES // (row_bytes * H)) if some_rows == H else 1
        out = torch.empty(B, H, W, layer.outputs, dtype=self._out_dtype(layer), device=self.device)
        for b in range(0, B, some_samples):
            for h in range(0, H, some_rows):
                end = (min(h + some_rows, H) - 1) * stride + k
                part = planes[:, b : b + some_samples, h * stride : end]
                out[b : b + some_samples, h : h + some_rows] = self._windows(part, layer, W)
        return _shuffle(out) if layer.shuffle else out

    def taps(self, planes: Tensor, layer: FixedConv, squares: Tensor) -> Tensor:
        """A layer at some positions: planes (L, B, H + 2p, W + 2p, C) to (B * n, N) at the flat indices `squares`.

        Args:
            planes: padded by half the kernel.
            layer: of stride 1; its missing taps are never read.
            squares: (n,) in [0, H * W).
        """
        L, B, height, width, C = planes.shape
        index = _windows_of(height, width, layer.kernel, layer.taps, planes.device).index_select(0, squares).flatten()
        flat = planes.reshape(L, B, height * width, C)
        windows = flat.index_select(2, index).reshape(L, B * len(squares), len(layer.taps) * C)
        return self.finish(self.product(windows, layer), layer)

    def _windows(self, planes: Tensor, layer: FixedConv, width: int) -> Tensor:
        """Planes of the input rows that some output rows (B, h, W, N) depend on."""
        L, B, height, _, C = planes.shape
        k, stride = layer.kernel, layer.stride
        H = (height - k) // stride + 1
        s = planes.stride()
        view = planes.as_strided(
            (L, B, H, width, k, k, C),
            (s[0], s[1], stride * s[2], stride * s[3], s[2], s[3], 1),
            planes.storage_offset(),
        )
        acc = self.product(view.reshape(L, B * H * width, k * k * C), layer)
        return self.finish(acc, layer).reshape(B, H, width, layer.outputs)

    def _out_dtype(self, layer: FixedConv) -> torch.dtype:
        return self.wide_dtype if layer.wide else self.dtype


class GemmEngine(Engine):
    """float64 GEMM: every product and every partial sum is an integer below 2^53."""

    dtype = wide_dtype = plane_dtype = torch.float64
    limbs = 1

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)

    def split(self, x: Tensor) -> Tensor:
        """See `Engine.split`."""
        return x[None]

    def product(self, planes: Tensor, layer: FixedConv, first: int = 0) -> Tensor:
        """See `Engine.product`."""
        weights = packed(layer, "columns", _columns, self.device)
        return planes[0] @ weights[first : first + planes.shape[-1]]

    def finish(self, acc: Tensor, layer: FixedConv) -> Tensor:
        """See `Engine.finish`."""
        bias = packed(layer, "bias", _bias, self.device)
        acc = acc.add_(bias).mul_(2.0**-layer.shift).add_(0.5).floor_()
        return acc.clamp_(layer.lowest, layer.limit)


class ConvEngine(GemmEngine):
    """float64 `conv2d`, in either memory format."""

    def __init__(self, device: torch.device | str = "cpu", *, channels_last: bool = False) -> None:
        super().__init__(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def product(self, planes: Tensor, layer: FixedConv, first: int = 0) -> Tensor:
        """See `Engine.product`: as a 1 x 1 convolution of one row of positions."""
        weights = packed(layer, "columns", _columns, self.device)[first : first + planes.shape[-1]]
        rows = planes[0].t()[None, :, None].contiguous(memory_format=self._format)
        return functional.conv2d(rows, weights.t()[:, :, None, None].contiguous())[0, :, 0].t().contiguous()

    def _windows(self, planes: Tensor, layer: FixedConv, width: int) -> Tensor:
        acc = self._dense(planes, layer, layer.stride)
        return self.finish(acc.reshape(-1, layer.outputs), layer).reshape(*acc.shape[:3], layer.outputs)

    def taps(self, planes: Tensor, layer: FixedConv, squares: Tensor) -> Tensor:
        """See `Engine.taps`; the missing taps are zero weights here, so that masks apply before accumulation."""
        acc = self._dense(planes, layer, 1).flatten(1, 2)[:, squares]
        return self.finish(acc.reshape(-1, layer.outputs), layer)

    def _dense(self, planes: Tensor, layer: FixedConv, stride: int) -> Tensor:
        x = planes[0].permute(0, 3, 1, 2).contiguous(memory_format=self._format)
        kernel = packed(layer, "kernel", _kernel, self.device)
        return functional.conv2d(x, kernel, stride=stride).permute(0, 2, 3, 1).contiguous()


class LimbEngine(Engine):
    """Bytes: a = 256 a1 + a0 and w = 128 w1 + w0, and one 8-bit product of [a1; a0] with [w1 | w0] into int32.

    Four byte products cost a VNNI processor less than one float32 product. The bytes of weights are in [-64, 64), so
    that a processor without these instructions, whose 16-bit sums saturate, gets the same numbers.
    """

    dtype, wide_dtype, plane_dtype = torch.int16, torch.int32, torch.int8
    limbs = 2
    device = torch.device("cpu")

    def split(self, x: Tensor) -> Tensor:
        """See `Engine.split`."""
        out = self.empty(*x.shape)
        kernels.split(x.reshape(-1, x.shape[-1]).contiguous().numpy(), out.view(2, -1, x.shape[-1]).numpy())
        return out

    def product(self, planes: Tensor, layer: FixedConv, first: int = 0) -> Tensor:
        """See `Engine.product`."""
        weights = packed(layer, "limbs", _limbs, self.device)[first : first + planes.shape[-1]]
        products = torch._int_mm(planes.reshape(-1, planes.shape[-1]), weights)
        acc = torch.empty(planes.shape[1], layer.outputs, dtype=torch.float64)
        kernels.combine(products.numpy(), acc.numpy())
        return acc

    def finish(self, acc: Tensor, layer: FixedConv) -> Tensor:
        """See `Engine.finish`."""
        bias = packed(layer, "bias", _bias, self.device)
        out = torch.empty(acc.shape, dtype=self._out_dtype(layer))
        kernel = kernels.requantise_int32 if layer.wide else kernels.requantise_int16
        limits = float(layer.lowest), float(layer.limit)
        kernel(acc.contiguous().numpy(), bias.numpy(), 2.0**-layer.shift, *limits, out.numpy())
        return out


def choose_engine(device: torch.device) -> Engine:
    """The fastest engine of a device.

    Devices without float64 (MPS) get the CPU's. Without VNNI or oneDNN, 8-bit products are a slow loop.
    """
    if device.type == "cuda":
        return GemmEngine(device)
    if torch.backends.mkldnn.enabled and _has_vnni():
        return LimbEngine()
    return GemmEngine()


def packed(layer: FixedConv, key: str, make: Callable[[FixedConv], Tensor], device: torch.device) -> Tensor:
    """A form of a layer's weights on a device, made once. Two threads that meet here make equal ones."""
    name = f"{key}@{device}"
    form = layer.packed.get(name)
    if form is None:
        form = layer.packed[name] = make(layer).to(device)
    return form


@functools.lru_cache(maxsize=64)
def _windows_of(height: int, width: int, kernel: int, taps: tuple[Tap, ...], device: torch.device) -> Tensor:
    """(n, T): the positions in a padded board that the T taps see from each of the n squares inside it."""
    rows = torch.arange(height - kernel + 1)[:, None] * width
    corners = (rows + torch.arange(width - kernel + 1)).flatten()
    return (corners[:, None] + torch.tensor([row * width + column for row, column in taps])).to(device)


def _bias(layer: FixedConv) -> Tensor:
    return layer.bias.cpu().to(torch.float64)


def _columns(layer: FixedConv) -> Tensor:
    """(K, N), K = taps x channels."""
    return layer.weight.cpu().to(torch.float64).flatten(1).t().contiguous()


def _kernel(layer: FixedConv) -> Tensor:
    """(N, C, k, k)."""
    weight = layer.weight.cpu().to(torch.float64)
    kernel = weight.new_zeros(layer.outputs, layer.channels, layer.kernel, layer.kernel)
    for number, (row, column) in enumerate(layer.taps):
        kernel[:, :, row, column] = weight[:, number]
    return kernel


def _limbs(layer: FixedConv) -> Tensor:
    """(K, 2N): high bytes, low bytes."""
    columns = layer.weight.cpu().to(torch.int32).flatten(1).t()
    high = (columns + 64) >> 7
    return torch.cat((high, columns - (high << 7)), dim=1).to(torch.int8).contiguous()


def _shuffle(x: Tensor) -> Tensor:
    """(B, H, W, 4C) to (B, 2H, 2W, C)."""
    B, H, W, C = x.shape
    return x.reshape(B, H, W, 2, 2, C // 4).permute(0, 1, 3, 2, 4, 5).reshape(B, 2 * H, 2 * W, C // 4)


def _has_vnni() -> bool:
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported and supported()) and hasattr(torch, "_int_mm")
