"""CompressAI's entropy models with this package's stream coder.

The models, their parameters and their tables are CompressAI's, the strings too, byte for byte; but no string is read
or written by its C++ coder, which trusts its input, and no table becomes a Python list.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpcompress.entropy.compressai_format import IndexedTables, decode_many, decode_rows, encode_many, encode_rows
from mpcompress.errors import (
    CodecFileError,
    CodecUnavailableError,
    InvalidInputError,
    NonFiniteError,
    OutOfRangeError,
)
from mpcompress.latent_codecs._checks import MAX_SYMBOL, check_strings, shape_text
from mpcompress.latent_codecs._kernels import dequantise, quantise, scale_rows
from mpcompress.layers._compressai import EntropyBottleneck, EntropyModel, GaussianConditional

Indexes = npt.NDArray[np.int32]
Floats = npt.NDArray[Any]
_TORCH = {np.float32: torch.float32, np.float64: torch.float64}
TABLE_BUFFERS = ("_quantized_cdf", "_cdf_length", "_offset")


class _TableCache:
    """The coder's tables made from a model's buffers, valid while these very tensors are unchanged."""

    def __init__(self, buffers: tuple[Tensor, ...]) -> None:
        cdfs, lengths, offsets, *scaling = (buffer.detach().cpu().numpy() for buffer in buffers)
        if 0 in (cdfs.size, lengths.size, offsets.size):
            raise CodecUnavailableError("the entropy model has no tables: call update() or load trained weights first")
        self._buffers = buffers
        self._versions = _versions(buffers)
        self.tables = _shared(cdfs, lengths, offsets)
        self.edges: dict[Any, Floats] = {}
        """Of a Gaussian, per float type: the scale table but for its last entry; entries below the least scale are NaN,
        which `scale_rows` counts for every scale."""
        if scaling:
            table, bound = scaling
            if table.size > self.tables.count:
                message = f"{self.tables.count} tables for {table.size} scales"
                raise CodecFileError(message, field="scale_table")
            edges = np.where(table[:-1] < bound, np.nan, table[:-1])
            self.edges = {dtype: edges.astype(dtype) for dtype in (np.float32, np.float64)}

    def fits(self, buffers: tuple[Tensor, ...]) -> bool:
        same = all(mine is theirs for mine, theirs in zip(self._buffers, buffers, strict=True))
        return same and self._versions == _versions(buffers)


_SHARED: WeakValueDictionary[bytes, IndexedTables] = WeakValueDictionary()


def _shared(cdfs: Indexes, lengths: Indexes, offsets: Indexes) -> IndexedTables:
    """The tables with these numbers: one object for all channel groups, which stays in the processor's cache."""
    digest = hashlib.sha256(repr((cdfs.shape, lengths.shape, offsets.shape)).encode())
    for array in (cdfs, lengths, offsets):
        digest.update(array.tobytes())
    tables = _SHARED.get(digest.digest())
    if tables is None:
        tables = _SHARED[digest.digest()] = IndexedTables(cdfs, lengths, offsets)
    return tables


def _versions(buffers: tuple[Tensor, ...]) -> tuple[int, ...]:
    """In-place changes seen by each tensor; inference tensors do not count theirs and are not changed in place."""
    return tuple(0 if buffer.is_inference() else buffer._version for buffer in buffers)


def _cached(model: EntropyModel) -> _TableCache:
    mine: dict[str, Any] = model._buffers  # not by attribute: modules search for it, at every step
    buffers: tuple[Tensor, ...] = (mine["_quantized_cdf"], mine["_cdf_length"], mine["_offset"])
    if isinstance(model, GaussianConditional):
        bound: Any = model._modules["lower_bound_scale"]
        buffers += (mine["scale_table"], bound._buffers["bound"])
    cache: _TableCache | None = model.__dict__.get("_table_cache")
    if cache is None or not cache.fits(buffers):
        # A plain attribute, set past nn.Module: two threads that meet here build equal tables.
        cache = model.__dict__["_table_cache"] = _TableCache(buffers)
    return cache


def _floats(x: Tensor, dtype: Any) -> Floats:
    """A tensor as a flat array of a type that the kernels take."""
    kind = _TORCH[dtype]
    if not (x.is_cpu and x.dtype is kind and x.is_contiguous()) or x.requires_grad:
        x = x.detach().to("cpu", kind).contiguous()
    flat: Floats = x.numpy().reshape(-1)
    return flat


def _type_of(*tensors: Tensor | None) -> Any:
    """The float type in which the kernels do their sums."""
    return np.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else np.float32


def _quantise(inputs: Tensor, means: Tensor | None) -> tuple[Indexes, Tensor]:
    """Symbols (B, n) of (B, C, ...), and the values a decoder will get from them."""
    dtype = _type_of(inputs, means)
    values = _floats(inputs, dtype)
    offsets = np.zeros_like(values) if means is None else _floats(means.expand(inputs.shape), dtype)
    symbols = np.empty(values.size, np.int32)
    hats = np.empty_like(values)
    bad = quantise(values, offsets, dtype(MAX_SYMBOL), symbols, hats)
    if bad >= 0:
        where = tuple(int(i) for i in np.unravel_index(bad, inputs.shape))
        if not np.isfinite(values[bad] - offsets[bad]):
            raise NonFiniteError(f"latent holds NaN or infinity, first at {where} of {shape_text(inputs.shape)}")
        raise OutOfRangeError(f"latent at {where} of {shape_text(inputs.shape)} is beyond +-{MAX_SYMBOL} steps")
    return symbols.reshape(inputs.shape[0], -1), _values(hats, inputs if means is None else means, inputs.shape)


def _dequantise(symbols: Indexes, shape: Sequence[int], means: Tensor | None, like: Tensor) -> Tensor:
    """Values of `shape` and of the type of `means`, or without means of `like`."""
    if means is None:
        return torch.from_numpy(symbols).reshape(tuple(shape)).to(like)
    dtype = _type_of(means)
    hats = np.empty(symbols.size, dtype)
    dequantise(symbols.ravel(), _floats(means.expand(tuple(shape)), dtype), hats)
    return _values(hats, means, shape)


def _values(hats: Floats, like: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(hats).reshape(tuple(shape)).to(like)


class _NoCacheInPickles(EntropyModel):
    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state.pop("_table_cache", None)
        return state


@functools.lru_cache(maxsize=64)
def _channel_indexes(samples: int, channels: int, positions: int) -> Indexes:
    """Table of each symbol of a (B, C, positions) latent: its channel."""
    indexes = np.tile(np.repeat(np.arange(channels, dtype=np.int32), positions), (samples, 1))
    indexes.flags.writeable = False
    return indexes


class StreamEntropyBottleneck(_NoCacheInPickles, EntropyBottleneck):
    """Factorised prior (Balle 2018, arXiv 1802.01436): one table per channel."""

    def encode(self, x: Tensor) -> tuple[list[bytes], Tensor]:
        """Strings of x (B, C, ...), one per sample, and z_hat, without decoding them again.

        Raises:
            NonFiniteError, OutOfRangeError: A value that no symbol stands for.
            CodecUnavailableError: `update()` was never called.
        """
        tables = _cached(self).tables
        symbols, z_hat = _quantise(x, self._medians(x.ndim))
        return encode_many(symbols, _channel_indexes(x.shape[0], self.channels, x[0, 0].numel()), tables), z_hat

    def compress(self, x: Tensor) -> list[bytes]:
        """Strings of x (B, C, ...), one per sample."""
        return self.encode(x)[0]

    def decompress(self, strings: Sequence[bytes], size: Sequence[int]) -> Tensor:
        """z_hat (B, C, *size) from one string per sample.

        Raises:
            CorruptBitstreamError: A string that no encoder writes for this size.
        """
        check_strings([strings], 1, "strings")
        indexes = _channel_indexes(len(strings), self.channels, math.prod(size))
        symbols = decode_many(strings, indexes, _cached(self).tables)
        shape = (len(strings), self.channels, *size)
        return _dequantise(symbols, shape, self._medians(len(shape)), self.quantiles)

    def _medians(self, ndim: int) -> Tensor:
        return self._get_medians().detach().reshape(1, -1, *(1,) * (ndim - 2))


class StreamGaussianConditional(_NoCacheInPickles, GaussianConditional):
    """Gaussian of predicted scale and mean (Balle 2018): one table per step of the scale table."""

    def build_indexes(self, scales: Tensor) -> Tensor:
        """Row of the tables for each scale: the number of table entries below it, the last entry not counted."""
        return torch.bucketize(self.lower_bound_scale(scales), self.scale_table[:-1], out_int32=True)

    def encode(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> tuple[list[bytes], Tensor]:
        """Strings of `inputs` (B, C, ...), one per sample, and y_hat, without decoding them again.

        Raises:
            NonFiniteError, OutOfRangeError: A value that no symbol stands for.
            CodecUnavailableError: `update()` was never called.
            InvalidInputError: `indexes` has another shape.
        """
        rows = self._checked(indexes, inputs.shape)
        tables = _cached(self).tables
        symbols, y_hat = _quantise(inputs, means)
        return encode_many(symbols, rows, tables), y_hat

    def compress(self, inputs: Tensor, indexes: Tensor, means: Tensor | None = None) -> list[bytes]:
        """Strings of `inputs` (B, C, ...), one per sample."""
        return self.encode(inputs, indexes, means)[0]

    def decompress(
        self,
        strings: Sequence[bytes],
        indexes: Tensor,
        dtype: torch.dtype = torch.float,
        means: Tensor | None = None,
    ) -> Tensor:
        """y_hat (B, C, ...) from one string per sample.

        Raises:
            CorruptBitstreamError: A string that no encoder writes for these indexes.
        """
        rows = self._checked(indexes, indexes.shape)
        check_strings([strings], 1, "strings")
        symbols = decode_many(strings, rows, _cached(self).tables)
        like = torch.empty(0, dtype=dtype, device=self._quantized_cdf.device)
        return _dequantise(symbols, indexes.shape, means, like)

    def encode_scaled(self, inputs: Tensor, scales: Tensor, means: Tensor | None) -> tuple[list[bytes], Tensor]:
        """`encode` with the indexes of `scales` (B, C, ...), without a tensor of them. Raises as `encode`."""
        if scales.ndim < 2 or scales.shape != inputs.shape:
            raise InvalidInputError(f"scales of shape {shape_text(scales.shape)} for {shape_text(inputs.shape)}")
        cache = _cached(self)
        symbols, y_hat = _quantise(inputs, means)
        return encode_rows(symbols, self._rows(cache, scales), cache.tables), y_hat

    def decode_scaled(self, strings: Sequence[bytes], scales: Tensor, means: Tensor | None) -> Tensor:
        """`decompress` with the indexes of `scales`, without a tensor of them. Raises as `decompress`."""
        cache = _cached(self)
        symbols = decode_rows(strings, self._rows(cache, scales), cache.tables)
        return _dequantise(symbols, scales.shape, means, scales)

    def _rows(self, cache: _TableCache, scales: Tensor) -> Indexes:
        """`build_indexes` as an array (B, n)."""
        dtype = _type_of(scales)
        rows = np.empty(scales.numel(), np.int32)
        scale_rows(_floats(scales, dtype), cache.edges[dtype], rows)
        return rows.reshape(scales.shape[0], -1)

    @staticmethod
    def _checked(indexes: Tensor, shape: Sequence[int]) -> Indexes:
        if indexes.ndim < 2 or tuple(indexes.shape) != tuple(shape):
            raise InvalidInputError(f"indexes of shape {shape_text(indexes.shape)} for {shape_text(shape)}")
        rows: Indexes = indexes.flatten(1).to(torch.int32).cpu().numpy()
        return rows


def use_stream_coder(module: nn.Module) -> None:
    """Give every CompressAI entropy model inside `module` this package's coder, in place.

    Their class changes, not their state: whoever built them keeps valid references.

    Raises:
        InvalidInputError: An entropy model of another kind, whose strings only CompressAI's own coder could read.
    """
    for name, child in module.named_modules():
        if isinstance(child, (StreamEntropyBottleneck, StreamGaussianConditional)):
            continue
        if type(child) is EntropyBottleneck:
            child.__class__ = StreamEntropyBottleneck
        elif type(child) is GaussianConditional:
            child.__class__ = StreamGaussianConditional
        elif isinstance(child, EntropyModel):
            raise InvalidInputError(f"{name or 'the module'}: no stream coder for a {type(child).__name__}")
