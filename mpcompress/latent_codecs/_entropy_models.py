"""CompressAI's entropy models with this package's stream coder.

The models, their parameters and their tables are CompressAI's, the strings too, byte for byte; but no string is read
or written by its C++ coder, which trusts its input, and no table becomes a Python list.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mpcompress.entropy.compressai_format import IndexedTables, decode_many, encode_many
from mpcompress.errors import (
    CodecUnavailableError,
    InvalidInputError,
    NonFiniteError,
    OutOfRangeError,
)
from mpcompress.latent_codecs._checks import MAX_SYMBOL, check_strings, first_index, shape_text
from mpcompress.layers._compressai import EntropyBottleneck, EntropyModel, GaussianConditional

Indexes = npt.NDArray[np.int32]
TABLE_BUFFERS = ("_quantized_cdf", "_cdf_length", "_offset")


class _TableCache:
    """The coder's tables made from a model's buffers, valid while these very tensors are unchanged."""

    def __init__(self, buffers: tuple[Tensor, ...]) -> None:
        if any(buffer.numel() == 0 for buffer in buffers):
            raise CodecUnavailableError("the entropy model has no tables: call update() or load trained weights first")
        self._buffers = buffers
        self._versions = _versions(buffers)
        cdfs, lengths, offsets = (buffer.detach().cpu().numpy() for buffer in buffers)
        self.tables = IndexedTables(cdfs, lengths, offsets)

    def fits(self, buffers: tuple[Tensor, ...]) -> bool:
        same = all(mine is theirs for mine, theirs in zip(self._buffers, buffers, strict=True))
        return same and self._versions == _versions(buffers)


def _versions(buffers: tuple[Tensor, ...]) -> tuple[int, ...]:
    """In-place changes seen by each tensor; inference tensors do not count theirs and are not changed in place."""
    return tuple(0 if buffer.is_inference() else buffer._version for buffer in buffers)


def _tables(model: EntropyModel) -> IndexedTables:
    buffers = (model._quantized_cdf, model._cdf_length, model._offset)
    cache: _TableCache | None = model.__dict__.get("_table_cache")
    if cache is None or not cache.fits(buffers):
        # A plain attribute, set past nn.Module: two threads that meet here build equal tables.
        cache = model.__dict__["_table_cache"] = _TableCache(buffers)
    return cache.tables


def _encode(model: EntropyModel, inputs: Tensor, indexes: Indexes, means: Tensor | None) -> tuple[list[bytes], Tensor]:
    """Strings of each sample of `inputs` (B, C, ...), and the values a decoder will get from them."""
    tables = _tables(model)
    rounded = torch.round(inputs if means is None else inputs - means)
    bad = ~(rounded.abs() <= MAX_SYMBOL)
    if bool(bad.any()):
        where = first_index(bad)
        if not bool(torch.isfinite(rounded[where])):
            raise NonFiniteError(f"latent holds NaN or infinity, first at {where} of {shape_text(inputs.shape)}")
        raise OutOfRangeError(f"latent at {where} of {shape_text(inputs.shape)} is beyond +-{MAX_SYMBOL} steps")
    symbols = rounded.to(torch.int32)
    strings = encode_many(symbols.flatten(1).cpu().numpy(), indexes, tables)
    return strings, _dequantise(symbols, inputs.dtype, means)


def _decode(
    model: EntropyModel,
    strings: Sequence[bytes],
    indexes: Indexes,
    shape: Sequence[int],
    dtype: torch.dtype,
    means: Tensor | None,
) -> Tensor:
    """Values of shape (B, C, ...) from one string per sample."""
    check_strings([strings], 1, "strings")
    rows = decode_many(strings, indexes, _tables(model))
    symbols = torch.from_numpy(rows).reshape(tuple(shape)).to(model._quantized_cdf.device)
    return _dequantise(symbols, dtype, means)


def _dequantise(symbols: Tensor, dtype: torch.dtype, means: Tensor | None) -> Tensor:
    return symbols.to(dtype) if means is None else symbols.to(means.dtype) + means


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
        indexes = _channel_indexes(x.shape[0], self.channels, x[0, 0].numel())
        return _encode(self, x, indexes, self._medians(x.ndim))

    def compress(self, x: Tensor) -> list[bytes]:
        """Strings of x (B, C, ...), one per sample."""
        return self.encode(x)[0]

    def decompress(self, strings: Sequence[bytes], size: Sequence[int]) -> Tensor:
        """z_hat (B, C, *size) from one string per sample.

        Raises:
            CorruptBitstreamError: A string that no encoder writes for this size.
        """
        indexes = _channel_indexes(len(strings), self.channels, math.prod(size))
        shape = (len(strings), self.channels, *size)
        medians = self._medians(len(shape))
        return _decode(self, strings, indexes, shape, medians.dtype, medians)

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
        return _encode(self, inputs, self._rows(indexes, inputs.shape), means)

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
        return _decode(self, strings, self._rows(indexes, indexes.shape), indexes.shape, dtype, means)

    @staticmethod
    def _rows(indexes: Tensor, shape: Sequence[int]) -> Indexes:
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
