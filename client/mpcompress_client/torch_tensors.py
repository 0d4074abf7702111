"""torch tensors in and out, without ever importing torch: whoever passes one has imported it. Does no input or output.

numpy knows no bfloat16 and DLPack cannot give it one: those travel as int16 of the same bits.
"""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from mpcompress_proto.tensors import Array

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def to_array(tensor: Any) -> Array:
    """The tensor's values; a view when it is on the CPU, a copy from any other device. Gradients stay behind."""
    torch: Any = sys.modules["torch"]
    tensor = tensor.detach().resolve_conj().resolve_neg().cpu()
    if tensor.dtype == torch.bfloat16:
        # Other sizes of elements need the last axis dense; the same size works for any strides.
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(_BFLOAT16)
    array: Array = tensor.numpy()
    return array


def dtype_name(tensor: Any) -> str:
    """The name of its dtype as numpy and ml_dtypes call it."""
    return str(tensor.dtype).removeprefix("torch.")


def copy_into(tensor: Any, array: Array) -> None:
    """Copies an array of the tensor's shape and dtype into it, on whatever device it is."""
    torch: Any = sys.modules["torch"]
    bits = array.view(np.int16) if array.dtype == _BFLOAT16 else array
    # What came inline is read-only, and torch warns about every read-only array that it wraps.
    source = torch.from_numpy(bits if bits.flags.writeable else bits.copy())
    with torch.no_grad():
        tensor.copy_(source.view(torch.bfloat16) if array.dtype == _BFLOAT16 else source)
