"""Safetensors files as bytes, with their metadata: one place that turns every defect into CodecFileError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors import numpy as safetensors_numpy

from mpcompress.errors import CodecFileError

_MAX_HEADER_BYTES = 1 << 24


def write_tensor_file(tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """Tensors and metadata as the bytes of a safetensors file."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    return bytes(safetensors_numpy.save(contiguous, metadata=dict(metadata)))


def read_tensor_file(data: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises CodecFileError when it is none."""
    try:
        tensors = safetensors_numpy.load(data)
        size = int.from_bytes(data[:8], "little")  # load checked that the header lies inside the file
        if size > _MAX_HEADER_BYTES:
            raise CodecFileError(f"a header of {size} bytes", field="weights")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__", {})
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, CodecFileError):
            raise
        raise CodecFileError(f"not a safetensors file: {error}", field="weights") from error
    return tensors, {str(name): str(value) for name, value in metadata.items()}
