"""Arrays to TensorSpec and chunks, and back. Refuses bad sizes before anything is allocated."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpcompress_proto.errors import WireError
from mpcompress_proto.v1 import compression_pb2 as pb

Array = NDArray[Any]

# Chunks just under 1 MiB stream fastest; the headroom keeps the whole message below it too.
MAX_CHUNK_BYTES = (1 << 20) - 4096
# An item of at most this many bytes travels inside its header.
MAX_INLINE_BYTES = MAX_CHUNK_BYTES
MAX_RANK = 6
MAX_SIDE = 2**31 - 1
MAX_TENSORS = 8
FEATURES = "h"

_LARGEST_FLOAT16 = 65504.0
_NAME = re.compile(r"[a-z0-9_]{1,32}")

# One table: enum value, its name without the prefix in lower case, numpy's type.
_TYPES: dict[pb.DataType.ValueType, np.dtype[Any]] = {
    pb.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    pb.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    pb.DATA_TYPE_BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    pb.DATA_TYPE_INT8: np.dtype("i1"),
    pb.DATA_TYPE_INT16: np.dtype("<i2"),
    pb.DATA_TYPE_INT32: np.dtype("<i4"),
}
# numpy makes a dtype's name anew each time.
_NAMES: dict[pb.DataType.ValueType, str] = {value: dtype.name for value, dtype in _TYPES.items()}
_BY_NAME: dict[str, pb.DataType.ValueType] = {name: value for value, name in _NAMES.items()}
DTYPE_NAMES = tuple(_BY_NAME)


def dtype_of(value: pb.DataType.ValueType, field: str = "dtype") -> np.dtype[Any]:
    """The numpy dtype of a DataType. Raises WireError for UNSPECIFIED and unknown values."""
    if value not in _TYPES:
        raise WireError(f"unknown data type {value}", field=field)
    return _TYPES[value]


def dtype_name(value: pb.DataType.ValueType, field: str = "dtype") -> str:
    """The name of numpy's dtype of a DataType. Raises as `dtype_of`."""
    return _NAMES.get(value) or dtype_of(value, field).name


def dtype_named(name: str) -> np.dtype[Any]:
    """The dtype of that name. Raises WireError for dtypes that do not travel."""
    return _TYPES[data_type(name)]


def data_type(name: str, field: str = "dtype") -> pb.DataType.ValueType:
    """DataType of a numpy dtype name. Raises WireError for dtypes that do not travel."""
    if name not in _BY_NAME:
        raise WireError(f"dtype {name} does not travel; use one of {', '.join(DTYPE_NAMES)}", field=field)
    return _BY_NAME[name]


def spec_of(array: Array, name: str = FEATURES) -> pb.TensorSpec:
    """Describes an array. Raises WireError for a dtype, rank or shape that does not travel."""
    if array.dtype.byteorder == ">":
        raise WireError(
            "big-endian arrays do not travel; convert with array.astype(array.dtype.newbyteorder('<'))",
            field=f"{name}.dtype",
        )
    spec = pb.TensorSpec()
    spec.CopyFrom(_checked_spec(name, array.dtype, array.shape))
    return spec


@lru_cache(maxsize=256)
def _checked_spec(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> pb.TensorSpec:
    """For copying: the items of a stream are usually all of one kind."""
    spec = pb.TensorSpec(name=name, dtype=data_type(dtype.name, f"{name}.dtype"), shape=shape)
    check_spec(spec, name)
    return spec


def check_spec(spec: pb.TensorSpec, field: str, max_bytes: int | None = None) -> int:
    """Checks a spec from anywhere.

    Args:
        spec: the spec; an empty name means "h".
        field: path of the spec in the request, for the error.
        max_bytes: largest tensor taken, bytes.

    Returns:
        Size of the tensor, bytes.

    Raises:
        WireError: bad name, dtype, rank, side or size.
    """
    if spec.name and not _NAME.fullmatch(spec.name):
        raise WireError("a tensor's name is 1 to 32 characters of [a-z0-9_]", field=f"{field}.name")
    size = dtype_of(spec.dtype, f"{field}.dtype").itemsize
    # Once: each look at a repeated field of a message costs as much as all else here.
    rank = len(spec.shape)
    if not 1 <= rank <= MAX_RANK:
        raise WireError(f"a tensor has 1 to {MAX_RANK} axes, this one has {rank}", field=f"{field}.shape")
    shape = tuple(spec.shape)
    for side in shape:
        if not 1 <= side <= MAX_SIDE:
            raise WireError(f"shape {shape} has a side outside 1 to 2^31 - 1", field=f"{field}.shape")
        size *= side
    limit = MAX_SIDE * 64 if max_bytes is None else max_bytes
    if size > limit:
        raise WireError(f"shape {shape} takes {size} bytes; the limit is {limit}", field=f"{field}.shape")
    return size


def check_specs(specs: Sequence[pb.TensorSpec], field: str, max_bytes: int | None = None) -> list[int]:
    """Checks all specs of an item: each by itself, their number, their names and their sum. Returns sizes, bytes."""
    if len(specs) > MAX_TENSORS:
        raise WireError(f"an item has at most {MAX_TENSORS} tensors, not {len(specs)}", field=field)
    names = [spec.name or FEATURES for spec in specs]
    if len(set(names)) != len(names):
        raise WireError("two tensors of an item have the same name", field=field)
    sizes = [check_spec(spec, f"{field}[{index}]", max_bytes) for index, spec in enumerate(specs)]
    if max_bytes is not None and sum(sizes) > max_bytes:
        raise WireError(f"the item takes {sum(sizes)} bytes; the limit is {max_bytes}", field=field)
    return sizes


def wire_view(array: Array) -> memoryview:
    """The bytes of an array as they travel; a copy only when it is not C-contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def inline_bytes(nbytes: int) -> int | None:
    """Bytes of an item's tensors and payload that travel in its header; None when they follow in chunks."""
    return nbytes if nbytes <= MAX_INLINE_BYTES else None


def joined(views: Sequence[memoryview]) -> bytes | memoryview:
    """The bytes of all parts of an item; a copy only when it has several."""
    return views[0] if len(views) == 1 else b"".join(views)


def array_from(buffer: Array, spec: pb.TensorSpec) -> Array:
    """The array that `spec` describes over `buffer` (uint8, exactly its size); a copy only when that is misaligned."""
    return shaped(buffer, dtype_of(spec.dtype), tuple(spec.shape))


def shaped(buffer: Array, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """The array over `buffer` (uint8, exactly its size); a copy only when that is misaligned."""
    array = buffer.view(dtype)
    # Inline bytes start anywhere in a message, and compiled code wants aligned elements.
    return (array if array.flags.aligned else array.copy()).reshape(shape)


def cast(array: Array, dtype: np.dtype[Any]) -> Array:
    """Converts to another dtype that travels. float16 saturates: a decoded value beyond 65504 is no infinity."""
    if array.dtype == dtype:
        return array
    if dtype == np.float16:
        array = np.clip(array, -_LARGEST_FLOAT16, _LARGEST_FLOAT16)
    return array.astype(dtype)


def cuts(parts: Sequence[memoryview], limit: int = MAX_CHUNK_BYTES) -> Iterator[tuple[int, int, memoryview]]:
    """Cuts an item's parts into (part index, offset, view) in the order in which they travel."""
    for index, part in enumerate(parts):
        for offset in range(0, len(part), limit):
            yield index, offset, part[offset : offset + limit]


def pieces(parts: Sequence[memoryview], limit: int = MAX_CHUNK_BYTES) -> Iterator[tuple[int, int, bytes]]:
    """As `cuts`, with copies of the bytes."""
    return ((index, offset, bytes(view)) for index, offset, view in cuts(parts, limit))


class Receiver:
    """Collects the parts of one item into preallocated buffers.

    Args:
        sizes: bytes of each part, all checked against the limits by the caller.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = list(sizes)
        self._buffers: list[Array] | None = None
        self._part = 0
        self._filled = 0
        self._skip_empty()

    def _skip_empty(self) -> None:
        while self._part < len(self._sizes) and self._filled == self._sizes[self._part]:
            self._part, self._filled = self._part + 1, 0

    @property
    def complete(self) -> bool:
        """Whether every byte is there."""
        return self._part == len(self._sizes)

    @property
    def buffers(self) -> list[Array]:
        """One uint8 array per part, allocated when the first byte comes."""
        if self._buffers is None:
            self._buffers = [np.empty(size, np.uint8) for size in self._sizes]
        return self._buffers

    def add(self, part: int, offset: int, data: bytes | memoryview, field: str = "chunk") -> None:
        """Takes the next bytes. Raises WireError when they are not exactly the next ones, or too many."""
        if not data:
            raise WireError("an empty chunk", field=f"{field}.data")
        if self.complete:
            raise WireError("a chunk beyond the end of the item", field=f"{field}.offset")
        if part != self._part or offset != self._filled:
            raise WireError(
                f"expected part {self._part} at offset {self._filled}, got part {part} at offset {offset}: "
                "chunks come in order, without gaps or overlaps",
                field=f"{field}.offset",
            )
        end = self._filled + len(data)
        if end > self._sizes[part]:
            raise WireError(
                f"part {part} has {self._sizes[part]} bytes, this chunk ends at {end}", field=f"{field}.data"
            )
        self._keep(data)
        self._filled = end
        self._skip_empty()

    def _keep(self, data: bytes | memoryview) -> None:
        """Puts the next bytes where they belong."""
        end = self._filled + len(data)
        self.buffers[self._part][self._filled : end] = np.frombuffer(data, np.uint8)

    def fill(self, data: bytes | memoryview, field: str = "inline_data") -> None:
        """Takes all parts at once, from a header. Raises WireError when the size is not exactly theirs."""
        if self._buffers is not None:
            raise WireError("bytes inline after others of the same item", field=field)
        total = sum(self._sizes)
        if len(data) != total:
            raise WireError(f"the item has {total} bytes, {len(data)} came inline", field=field)
        whole = np.frombuffer(data, np.uint8)
        start = 0
        self._buffers = []
        for size in self._sizes:
            # Views of the message's own bytes: read-only, and no copy.
            self._buffers.append(whole[start : start + size])
            start += size
        self._part, self._filled = len(self._sizes), 0


class PayloadReceiver(Receiver):
    """Collects a payload as the bytes object that it becomes: out of an array they would have to be copied.

    Args:
        size: of the payload, bytes, checked against the limits by the caller.
    """

    def __init__(self, size: int) -> None:
        super().__init__([size])
        self._size = size
        self._file: BytesIO | None = None
        self._inline = b""

    @property
    def payload(self) -> bytes:
        """The payload, when it is complete."""
        return self._inline if self._file is None else self._file.getvalue()

    def _keep(self, data: bytes | memoryview) -> None:
        if self._file is None:
            # BytesIO writes into this very object, and gives it away in the end.
            self._file = BytesIO(bytes(self._size))
        self._file.write(data)

    def fill(self, data: bytes | memoryview, field: str = "inline_data") -> None:
        """Takes all of it at once, as `Receiver.fill`."""
        super().fill(data, field)
        self._inline = bytes(data)
