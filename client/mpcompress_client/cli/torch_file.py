"""Reads the tensors of a .pt file, and nothing else in it: `torch.load` with `weights_only`, on the CPU.

torch is loaded when such a file is read and not before; the client itself never needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mpcompress_client.errors import CodecUnavailableError, InvalidRequestError
from mpcompress_proto.tensors import Array

SUFFIXES = (".pt", ".pth")


def read(path: Path) -> dict[str, Array]:
    """Tensors by name; a file that is one tensor calls it "h".

    Raises:
        CodecUnavailableError: torch is not installed.
        InvalidRequestError: a damaged file, one with other Python objects than tensors, or one without tensors.
    """
    try:
        # By name: this package must load, and be checked to load, without torch.
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise CodecUnavailableError(
            f"{path}: reading .pt files needs torch: pip install 'mpcompress[codecs]', "
            "or save the tensors as .safetensors or .npy"
        ) from error
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # A damaged archive raises whatever its reader stumbles over; so do pickled objects, which are refused.
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InvalidRequestError(f"{path} holds no tensors that are safe to read: {reason}") from error
    named = found if isinstance(found, Mapping) else {"h": found}
    arrays = {}
    for name, tensor in named.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InvalidRequestError(f"{path}: {name!r} is a {type(tensor).__name__}, not a tensor with a name")
        arrays[name] = _array(torch, tensor, f"{path}: {name!r}")
    return arrays


def _array(torch: Any, tensor: Any, where: str) -> Array:
    try:
        plain = tensor.detach().contiguous()
        if plain.dtype == torch.bfloat16:
            bits: Array = plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return bits
        return np.asarray(plain.numpy())
    except (RuntimeError, TypeError) as error:
        raise InvalidRequestError(f"{where} is no dense tensor of numbers: {error}") from error
