"""What the user passes in, as named arrays that can travel. Does no input or output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mpcompress_client import torch_tensors
from mpcompress_client.errors import InvalidRequestError
from mpcompress_proto.errors import WireError
from mpcompress_proto.tensors import FEATURES, MAX_TENSORS, Array, data_type, spec_of
from mpcompress_proto.v1 import compression_pb2 as pb


def named_arrays(value: Any, default_name: str = FEATURES) -> dict[str, Array]:
    """Arrays by name, from one array-like or a mapping of them; nothing is copied here that numpy can view.

    Raises:
        InvalidRequestError: not an array, or no array at all, or too many of them.
    """
    if not isinstance(value, Mapping):
        return {default_name: _array(value, default_name)}
    if not 1 <= len(value) <= MAX_TENSORS:
        raise InvalidRequestError(f"an item has 1 to {MAX_TENSORS} tensors, not {len(value)}", field="tensors")
    for name in value:
        if not isinstance(name, str) or not name:
            raise InvalidRequestError(f"a tensor's name is a string, not {name!r}", field="tensors")
    return {name: _array(array, name) for name, array in value.items()}


def specs_of(arrays: Mapping[str, Array]) -> list[pb.TensorSpec]:
    """Specs of arrays by name, in order. Raises InvalidRequestError naming the tensor that cannot travel."""
    specs = []
    for index, (name, array) in enumerate(arrays.items()):
        where = f"tensors[{index}]"
        if array.ndim == 0:
            raise InvalidRequestError(f"tensor {name!r} has no axes: it is a single number", field=f"{where}.shape")
        if array.size == 0:
            raise InvalidRequestError(f"tensor {name!r} of shape {array.shape} is empty", field=f"{where}.shape")
        try:
            specs.append(spec_of(array, name))
        except WireError as error:
            path = error.field.removeprefix(name)
            raise InvalidRequestError(f"tensor {name!r}: {error.message}", field=f"{where}{path}") from error
    return specs


def output_type(dtype: Any) -> pb.DataType.ValueType:
    """DataType of what a user calls a dtype: None (as compressed), a name, or anything numpy takes for one."""
    if dtype is None:
        return pb.DATA_TYPE_UNSPECIFIED
    try:
        # numpy does not know "bfloat16" by name; ml_dtypes' own type works either way.
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        return data_type(name, "output_dtype")
    except (TypeError, WireError) as error:
        raise InvalidRequestError(f"dtype={dtype!r}: {error}", field="output_dtype") from error


def _array(value: Any, name: str) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise InvalidRequestError(f"tensor {name!r} is a masked array: fill it first", field="tensors")
    if isinstance(value, np.ndarray):
        return np.asarray(value)
    try:
        if torch_tensors.is_tensor(value):
            return torch_tensors.to_array(value)
        if _on_device(value):
            # What cupy calls the copy to the CPU; numpy refuses to make it by itself.
            return np.asarray(value.get())
        if hasattr(value, "__array__"):
            return np.asarray(value)
        if hasattr(value, "__dlpack__"):
            array: Array = np.from_dlpack(value)
            return array
    except Exception as error:
        # Other libraries raise what they like here: a tensor on a GPU, one that requires gradients, ...
        raise InvalidRequestError(
            f"tensor {name!r}: {type(value).__name__} cannot become a CPU array: {error}"
        ) from error
    raise InvalidRequestError(f"tensor {name!r} is a {type(value).__name__}, not an array", field="tensors")


def _on_device(value: Any) -> bool:
    return hasattr(value, "__cuda_array_interface__") and callable(getattr(value, "get", None))
