"""Between the numpy arrays of the contract and torch: checks, the hash of a context, dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpcompress.codec import Array, TensorSpec, fingerprint_of
from mpcompress.errors import CodecFileError, CodecUnavailableError, InvalidInputError, NonFiniteError

__all__ = ["DTYPES", "context_hash", "find_device", "from_torch", "named", "to_torch"]

DTYPES = ("float32", "float16", "bfloat16")
_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}


def find_device(name: str) -> torch.device:
    """The device of an option: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one.

    Raises:
        CodecFileError: another word.
        CodecUnavailableError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or name == "cpu:":
        raise CodecFileError(f"device {name!r}: cpu, cuda, cuda:N or auto", field="options.device")
    if kind == "cuda" and not (torch.cuda.is_available() and int(index or 0) < torch.cuda.device_count()):
        raise CodecUnavailableError(f'device {name} is not here; use device = "auto" or "cpu"', field="device")
    return torch.device(name)


def named(specs: Sequence[TensorSpec], name: str) -> tuple[int, TensorSpec]:
    """Place and spec of a tensor, its dtype checked. Raises InvalidInputError."""
    for index, spec in enumerate(specs):
        if spec.name == name:
            if spec.dtype not in DTYPES:
                raise InvalidInputError(f"{name} is {spec.dtype}, not {', '.join(DTYPES)}", field=f"tensors[{index}]")
            return index, spec
    raise InvalidInputError(f"the codec needs a tensor {name!r}", field="tensors")


def as_float32(array: Array, name: str, field: str = "tensors[0]") -> NDArray[np.float32]:
    """A float32 copy of a tensor. Raises NonFiniteError naming the first NaN or infinity."""
    x = np.array(array, np.float32, order="C")
    finite = np.isfinite(x)
    if not finite.all():
        where = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), x.shape))
        raise NonFiniteError(f"{name}{list(where)} is {float(x[where])}", field=field)
    return x


def to_torch(array: NDArray[np.float32], device: torch.device) -> Tensor:
    """The same numbers on the device."""
    return torch.from_numpy(array).to(device)


def from_torch(tensor: Tensor, shape: Sequence[int], dtype: str) -> Array:
    """A result as an array; what `dtype` cannot hold becomes its largest value."""
    x: Array = tensor.detach().to("cpu", torch.float32).numpy().reshape(tuple(shape))
    if dtype != "float32":
        x = np.clip(x, -_LARGEST[dtype], _LARGEST[dtype])
    return x.astype(_NUMPY[dtype])


def context_hash(context: NDArray[np.float32]) -> bytes:
    """8 bytes that tell one context (B, C, H, W) from another; the same for equal numbers of any dtype."""
    return fingerprint_of([("ctx", context)])
