"""Arrays from and to files: .npy, .npz, .safetensors, tensors of .pt; no other pickle, sizes checked before use."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mpcompress_client import safetensors_file
from mpcompress_client.cli import torch_file
from mpcompress_client.errors import InvalidRequestError
from mpcompress_proto.tensors import Array

# numpy gives its file format no types.
_FORMAT: Any = np.lib.format
# What numpy and zipfile raise for files that are not theirs.
_BROKEN = (ValueError, EOFError, SyntaxError, NotImplementedError, RuntimeError, zipfile.BadZipFile)
SUFFIXES = (".npy", ".npz", ".safetensors")
READABLE = (*SUFFIXES, *torch_file.SUFFIXES)


def read_arrays(path: Path) -> Array | dict[str, Array]:
    """The array of a file, or arrays by name when it holds several. Raises InvalidRequestError and OSError."""
    readers: dict[str, Callable[[Path], Array | dict[str, Array]]] = {
        ".npy": _read_npy,
        ".npz": _read_npz,
        ".safetensors": safetensors_file.read,
        **dict.fromkeys(torch_file.SUFFIXES, torch_file.read),
    }
    if path.suffix not in readers:
        raise InvalidRequestError(f"{path}: the name of a feature file ends in one of {', '.join(READABLE)}")
    found = readers[path.suffix](path)
    if not isinstance(found, dict):
        return found
    if not found:
        raise InvalidRequestError(f"{path} holds no arrays")
    return next(iter(found.values())) if len(found) == 1 else found


def check_output(path: Path) -> None:
    """Refuses a name that `write_arrays` could not serve, before any work is done for it."""
    if path.suffix not in SUFFIXES:
        raise InvalidRequestError(f"{path}: the name of the output ends in one of {', '.join(SUFFIXES)}")


def write_arrays(path: Path, arrays: Array | Mapping[str, Array]) -> None:
    """Writes what `read_arrays` reads. numpy's formats have no bfloat16: there it becomes float32, without loss."""
    check_output(path)
    write_whole(path, file_bytes(arrays, path.suffix, str(path)))


def file_bytes(arrays: Array | Mapping[str, Array], suffix: str, name: str) -> bytes:
    """The bytes of a file of one of `SUFFIXES`; `name` is what errors call it."""
    if suffix == ".npy":
        if isinstance(arrays, Mapping):
            raise InvalidRequestError(f"{name}: there are {len(arrays)} tensors; use .npz or .safetensors")
        return _npy(arrays)
    named = arrays if isinstance(arrays, Mapping) else {"h": arrays}
    if suffix == ".safetensors":
        return safetensors_file.to_bytes(named)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, array in named.items():
            # Without the time of writing: equal arrays make equal files.
            entry = zipfile.ZipInfo(f"{key}.npy")
            entry.external_attr = 0o600 << 16
            archive.writestr(entry, _npy(array))
    return buffer.getvalue()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that others see complete or not at all, and the old one until then."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("xb") as file:
            file.write(data)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    known = array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array
    np.save(buffer, known, allow_pickle=False)
    return buffer.getvalue()


def _read_npy(path: Path) -> Array:
    try:
        with path.open("rb") as file:
            needed = _declared_bytes(file)
            left = path.stat().st_size - file.tell()
        if needed > left:
            raise InvalidRequestError(f"{path} is shorter than its header says")
        # Nothing can be mapped from an empty range.
        return _real(path, np.load(path, mmap_mode="r" if needed else None, allow_pickle=False))
    except _BROKEN as error:
        raise _refused(path, error) from error


def _read_npz(path: Path) -> dict[str, Array]:
    arrays: dict[str, Array] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    raise InvalidRequestError(f"{path}: {info.filename!r} is no array")
                with archive.open(info) as member:
                    needed = _declared_bytes(member)
                if needed > info.file_size:
                    raise InvalidRequestError(f"{path}: {info.filename!r} is shorter than its header says")
                with archive.open(info) as member:
                    array = _FORMAT.read_array(member, allow_pickle=False)
                arrays[info.filename.removesuffix(".npy")] = _real(path, array)
    except _BROKEN as error:
        raise _refused(path, error) from error
    return arrays


def _declared_bytes(file: Any) -> int:
    """Bytes that the .npy header at the start of `file` promises. Raises ValueError for a header that is none."""
    major = _FORMAT.read_magic(file)[0]
    read = _FORMAT.read_array_header_1_0 if major == 1 else _FORMAT.read_array_header_2_0
    shape, _, dtype = read(file)
    count = 1
    for side in shape:
        if side < 0:
            raise ValueError(f"a shape of {shape}")
        count *= side
    return count * int(dtype.itemsize)


def _refused(path: Path, error: Exception) -> InvalidRequestError:
    return error if isinstance(error, InvalidRequestError) else InvalidRequestError(f"{path}: {error}")


def _real(path: Path, array: Array) -> Array:
    if array.dtype.kind == "V":
        raise InvalidRequestError(f"{path} holds {array.dtype}: numpy's files have no bfloat16, use .safetensors")
    return array
