"""Checks of what callers and bitstreams bring, made before anything is allocated for it."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mpcompress.errors import CorruptBitstreamError, InvalidInputError, NonFiniteError

# Symbols are coded in 32-bit integers with an escape of at most seven 4-bit digits: |symbol - offset| < 2**27.
MAX_SYMBOL = 2**26


def shape_text(shape: Sequence[int]) -> str:
    """``(1, 257, 384)`` for a shape of any kind."""
    return str(tuple(shape))


def first_index(mask: Tensor) -> tuple[int, ...]:
    """Index of the first true element."""
    return tuple(int(i) for i in mask.nonzero()[0])


def check_tensor(value: Any, name: str, ndim: int) -> Tensor:
    """A floating-point tensor of `ndim` axes, none of them empty.

    Raises:
        InvalidInputError: It is something else; the message gives shape and dtype.
    """
    if not isinstance(value, Tensor):
        raise InvalidInputError(f"{name} must be a torch.Tensor, not {type(value).__name__}", field=name)
    if value.ndim != ndim or 0 in value.shape:
        raise InvalidInputError(
            f"{name} must have {ndim} axes, none of them empty, not shape {shape_text(value.shape)}", field=name
        )
    if not value.is_floating_point():
        raise InvalidInputError(f"{name} must be floating point, not {value.dtype}", field=name)
    return value


def check_finite(value: Tensor, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        NonFiniteError: The message names the tensor and the first index.
    """
    finite = torch.isfinite(value)
    if not bool(finite.all()):
        raise NonFiniteError(f"{name} holds NaN or infinity, first at {first_index(~finite)}", field=name)


def check_same(value: Sequence[int], expected: Sequence[int], name: str, what: str) -> None:
    """Refuse a shape other than `expected`.

    Raises:
        InvalidInputError: The message gives both shapes.
    """
    if tuple(value) != tuple(expected):
        raise InvalidInputError(
            f"{name} must have shape {shape_text(expected)} ({what}), not {shape_text(value)}", field=name
        )


def positive_ints(value: Any, count: int, field: str) -> tuple[int, ...]:
    """`count` integers of at least 1, from a tuple, a list or a torch.Size.

    Raises:
        InvalidInputError: It is something else.
    """
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise InvalidInputError(f"{field} must be {count} integers, not {_brief(value)}", field=field)
    numbers = []
    for item in value:
        try:
            number = operator.index(item)
        except TypeError:
            number = 0
        if number < 1 or isinstance(item, bool):
            raise InvalidInputError(f"{field} must be {count} integers of at least 1, not {_brief(value)}", field=field)
        numbers.append(number)
    return tuple(numbers)


def check_mapping(value: Any, keys: Sequence[str], field: str) -> Mapping[str, Any]:
    """A mapping that has at least `keys`.

    Raises:
        InvalidInputError: It is something else, or a key is missing.
    """
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{field} must be a dict, not {_brief(value)}", field=field)
    missing = [key for key in keys if key not in value]
    if missing:
        raise InvalidInputError(f"{field} lacks {', '.join(missing)}", field=field)
    return value


def check_strings(value: Any, lists: int, field: str) -> int:
    """`lists` lists of byte strings, one string per sample in each; returns the number of samples.

    Raises:
        InvalidInputError: The nesting or a type is another one.
        CorruptBitstreamError: The counts cannot come from one batch.
    """
    if not isinstance(value, (tuple, list)) or not all(isinstance(row, (tuple, list)) for row in value):
        raise InvalidInputError(f"{field} must be a list of lists of bytes, not {_brief(value)}", field=field)
    if len(value) != lists:
        raise CorruptBitstreamError(f"{field} must hold {lists} lists of strings, not {len(value)}", field=field)
    samples = len(value[0]) if value else 0
    if samples < 1 or any(len(row) != samples for row in value):
        counts = sorted({len(row) for row in value})
        raise CorruptBitstreamError(f"{field} must hold one string per sample in each list, not {counts}", field=field)
    if not all(isinstance(string, bytes) for row in value for string in row):
        raise InvalidInputError(f"{field} must hold bytes only", field=field)
    return samples


def _brief(value: Any) -> str:
    text = repr(value) if isinstance(value, (int, float, str, tuple, list, type(None))) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
