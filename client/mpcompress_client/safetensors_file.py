"""Reads and writes .safetensors files with nothing but numpy; knows bfloat16, and checks every size first.

Format: uint64 size of the header, the header (JSON: name -> dtype, shape, data_offsets; "__metadata__"), the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mpcompress_client.errors import InvalidRequestError
from mpcompress_proto.tensors import Array

_MAX_HEADER_BYTES = 16 << 20
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype("i1"),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header and where the data begins, bytes. Raises InvalidRequestError for what is no such file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= min(path.stat().st_size - 8, _MAX_HEADER_BYTES):
            raise InvalidRequestError(f"{path} is no .safetensors file")
        try:
            header = json.loads(file.read(size))
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{path} is no .safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise InvalidRequestError(f"{path} is no .safetensors file: its header is not an object")
    return header, 8 + size


def read_metadata(path: Path) -> dict[str, str]:
    """The file's own metadata. Raises InvalidRequestError as `read_header`."""
    metadata = read_header(path)[0].get("__metadata__", {})
    if not isinstance(metadata, dict):
        return {}
    return {str(name): str(value) for name, value in metadata.items()}


def read(path: Path) -> dict[str, Array]:
    """Arrays by name, mapped from the file. Raises InvalidRequestError for a damaged file or a foreign dtype."""
    header, start = read_header(path)
    data_bytes = path.stat().st_size - start
    arrays: dict[str, Array] = {}
    for name in sorted(header.keys() - {"__metadata__"}):
        try:
            entry = header[name]
            shape = tuple(int(side) for side in entry["shape"])
            begin, end = (int(offset) for offset in entry["data_offsets"])
            kind = str(entry["dtype"])
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidRequestError(f"{path}: the entry of {name!r} is damaged") from error
        if kind not in _DTYPES:
            raise InvalidRequestError(f"{path}: {name!r} is {kind}; the client takes {', '.join(_DTYPES)}")
        dtype = _DTYPES[kind]
        count = 1
        for side in shape:
            count *= side
        if min(shape, default=1) < 0 or not 0 <= begin <= end <= data_bytes or end - begin != count * dtype.itemsize:
            raise InvalidRequestError(f"{path}: the size of {name!r} does not fit its shape or the file")
        # Nothing can be mapped from an empty range.
        arrays[name] = np.memmap(path, dtype, "r", start + begin, shape) if count else np.empty(shape, dtype)
    return arrays


def to_bytes(arrays: Mapping[str, Array]) -> bytes:
    """The file that holds these arrays."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    start = 0
    for name, array in arrays.items():
        data = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, start + len(data)],
        }
        parts.append(data)
        start += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    # Padded so that the data is aligned, as the format asks.
    head += b" " * (-len(head) % 8)
    return b"".join([len(head).to_bytes(8, "little"), head, *parts])
