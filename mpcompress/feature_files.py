"""Feature tensors in .npy, .npz and .safetensors files, and in memory, one (L, C) tensor at a time.

Only shapes are held; a tensor is read when it is asked for, so that any number of files can be gone through twice.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError

__all__ = ["FeatureTensor", "open_features"]

Array = NDArray[Any]
_SUFFIXES = (".npy", ".npz", ".safetensors")
_SAFETENSORS_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class FeatureTensor:
    """One (L, C) tensor: a name for messages, its shape, and how to read it as float32."""

    name: str
    shape: tuple[int, int]
    _read: Callable[[], Array]

    def read(self) -> NDArray[np.float32]:
        """Float32 (L, C). Raises InvalidInputError for NaN and infinity, and for a file that ends too early."""
        try:
            with np.errstate(over="ignore"):
                x = np.ascontiguousarray(self._read(), np.float32)
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{self.name}: {error}", field="sources") from error
        finite = np.isfinite(x)
        if not finite.all():
            token, channel = np.unravel_index(int(np.argmin(finite)), x.shape)
            raise InvalidInputError(f"{self.name}[{token}, {channel}] is {x[token, channel]}", field="sources")
        return x


def open_features(
    sources: str | Path | Iterable[str | Path | Array], *, spool: Path | None = None
) -> list[FeatureTensor]:
    """Lists the tensors of files, folders and arrays, in order; (B, L, C) counts as B tensors.

    Args:
        sources: paths (folders are searched for .npy, .npz and .safetensors, sorted) and arrays. Anything but a path
            or a sequence is read once: its arrays are written to `spool` and read again from there.
        spool: where to; needed for one-shot iterators only.

    Raises:
        InvalidInputError: a file that cannot be read, or an array that is not (L, C) or (B, L, C) of numbers.
    """
    if isinstance(sources, str | Path):
        sources = [sources]
    once = not isinstance(sources, Sequence)
    found: list[FeatureTensor] = []
    for number, source in enumerate(sources):
        if isinstance(source, str | Path):
            for path in _files(Path(source)):
                found.extend(_of_file(path))
        elif once:
            if spool is None:
                raise InvalidInputError("an iterator of arrays needs a spool directory", field="sources")
            path = spool / f"{len(list(spool.iterdir())):08d}.npy"
            np.save(path, np.asarray(source, np.float32), allow_pickle=False)
            found.extend(_of_array(f"array {number}", np.load(path, mmap_mode="r", allow_pickle=False)))
        else:
            found.extend(_of_array(f"array {number}", np.asarray(source)))
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
    if path.suffix not in _SUFFIXES:
        raise InvalidInputError(f"{path.name}: not one of {', '.join(_SUFFIXES)}", field="sources")
    return [path]


def _of_file(path: Path) -> Iterator[FeatureTensor]:
    try:
        if path.suffix == ".npy":
            shape, kind = _npy_head(path)
            yield from _parts(path.name, shape, kind, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                heads = [(key, archive[key].shape, archive[key].dtype) for key in archive.files]
            for key, shape, dtype in heads:
                yield from _parts(f"{path.name}:{key}", shape, dtype, _npz_reader(path, key))
        else:
            for key, head in _safetensors_heads(path).items():
                yield from _parts(f"{path.name}:{key}", *head[:2], _safetensors_reader(path, *head))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{path.name}: {error}", field="sources") from error


def _npy_head(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.shape, array.dtype


def _npz_reader(path: Path, key: str) -> Callable[[], Array]:
    def read() -> Array:
        with np.load(path, allow_pickle=False) as archive:
            return np.asarray(archive[key])

    return read


def _safetensors_heads(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any], int]]:
    """Shape, dtype and first byte of each tensor. Read here because safetensors.numpy knows no bfloat16."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= path.stat().st_size - 8:
            raise InvalidInputError(f"{path.name}: not a safetensors file", field="sources")
        header = json.loads(file.read(size))
    if not isinstance(header, dict):
        raise InvalidInputError(f"{path.name}: not a safetensors file", field="sources")
    heads: dict[str, tuple[tuple[int, ...], np.dtype[Any], int]] = {}
    for key in sorted(header.keys() - {"__metadata__"}):
        entry = header[key]
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise InvalidInputError(f"{path.name}:{key} holds {entry['dtype']}", field="sources")
        begin = 8 + size + int(entry["data_offsets"][0])
        shape = tuple(int(side) for side in entry["shape"])
        heads[key] = shape, _SAFETENSORS_DTYPES[entry["dtype"]], begin
    return heads


def _safetensors_reader(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], begin: int) -> Callable[[], Array]:
    return lambda: np.memmap(path, dtype, "r", begin, shape)  # checks the file's size


def _of_array(name: str, array: Array) -> Iterator[FeatureTensor]:
    return _parts(name, array.shape, array.dtype, lambda: array)


def _parts(
    name: str, shape: tuple[int, ...], dtype: np.dtype[Any], read: Callable[[], Array]
) -> Iterator[FeatureTensor]:
    if len(shape) not in (2, 3) or 0 in shape:
        raise InvalidInputError(f"{name} has shape {shape}, not (L, C) or (B, L, C)", field="sources")
    if dtype.kind not in "fiu" and dtype.name != "bfloat16":
        raise InvalidInputError(f"{name} holds {dtype}, not numbers", field="sources")
    if len(shape) == 2:
        yield FeatureTensor(name, (shape[0], shape[1]), read)
        return
    for sample in range(shape[0]):
        yield FeatureTensor(f"{name}[{sample}]", (shape[1], shape[2]), lambda sample=sample: read()[sample])  # type: ignore[misc]
