"""`out=`: buffers of the caller into which a result is written. Does no input or output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpcompress_client import torch_tensors
from mpcompress_client.errors import InvalidRequestError, WireError
from mpcompress_proto.tensors import FEATURES, Array, data_type
from mpcompress_proto.v1 import compression_pb2 as pb

_FIELD = "out"


class Destination:
    """The caller's buffers for one item: one array or tensor, or several by output name.

    They are written when the whole result is there, so that an item that fails leaves them as they were.

    Args:
        out: numpy arrays (any strides) or torch tensors (any device), alone or in a mapping.

    Raises:
        InvalidRequestError: something else, a read-only array, or dtypes that do not travel or differ.
    """

    def __init__(self, out: Any) -> None:
        self.out = out
        self._named: dict[str, Any] | None = dict(out) if isinstance(out, Mapping) else None
        buffers = list(self._named.values()) if self._named is not None else [out]
        if not buffers:
            raise InvalidRequestError("out has no buffer", field=_FIELD)
        names = {_dtype_name(buffer) for buffer in buffers}
        if len(names) > 1:
            raise InvalidRequestError(f"the buffers of out differ in dtype: {', '.join(sorted(names))}", field=_FIELD)
        (self.dtype,) = names
        try:
            self._data_type = data_type(self.dtype, _FIELD)
        except WireError as error:
            raise InvalidRequestError(f"out: {error.message}", field=_FIELD) from error

    def check(self, specs: Sequence[pb.TensorSpec]) -> None:
        """Raises InvalidRequestError when these are not the tensors that the buffers are for."""
        names = [spec.name or FEATURES for spec in specs]
        if self._named is None and len(specs) != 1:
            raise InvalidRequestError(f"the codec gives {', '.join(names)}: out needs a buffer for each", field=_FIELD)
        if self._named is not None and set(self._named) != set(names):
            raise InvalidRequestError(
                f"out has buffers for {', '.join(map(repr, self._named))}; the codec gives {', '.join(names)}",
                field=_FIELD,
            )
        for spec, name in zip(specs, names, strict=True):
            buffer = self._buffer(name)
            if tuple(buffer.shape) != tuple(spec.shape):
                raise InvalidRequestError(
                    f"out for {name!r} has shape {tuple(buffer.shape)}, the tensor {tuple(spec.shape)}", field=_FIELD
                )
            if spec.dtype != self._data_type:
                raise InvalidRequestError(f"out for {name!r} is {self.dtype}, which the tensor is not", field=_FIELD)

    def check_unit(self, specs: Sequence[pb.TensorSpec]) -> None:
        """Refuses, before anything is sent, one buffer whose shape is not that of the unit's one tensor."""
        if self._named is None and len(specs) == 1 and tuple(self.out.shape) != tuple(specs[0].shape):
            raise InvalidRequestError(
                f"out has shape {tuple(self.out.shape)}, the unit's tensor {tuple(specs[0].shape)}", field=_FIELD
            )

    def fill(self, arrays: Mapping[str, Array]) -> Any:
        """Writes the arrays, which `check` has seen. Returns the caller's `out`."""
        for name, array in arrays.items():
            buffer = self._buffer(name or FEATURES)
            if isinstance(buffer, np.ndarray):
                np.copyto(buffer, array, casting="no")
            else:
                torch_tensors.copy_into(buffer, array)
        return self.out

    def _buffer(self, name: str) -> Any:
        return self.out if self._named is None else self._named[name]


def _dtype_name(buffer: Any) -> str:
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.writeable:
            raise InvalidRequestError("out is a read-only array", field=_FIELD)
        if buffer.dtype.byteorder == ">":
            raise InvalidRequestError("out is big-endian", field=_FIELD)
        return str(buffer.dtype.name)
    if torch_tensors.is_tensor(buffer):
        return torch_tensors.dtype_name(buffer)
    raise InvalidRequestError(f"out is a {type(buffer).__name__}, not a numpy array or torch tensor", field=_FIELD)
