"""Feature files: what is written is read again, and no file makes the client unpickle or allocate what is not there."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from mpcompress_client import InvalidRequestError, safetensors_file
from mpcompress_client.arrays import specs_of
from mpcompress_client.cli.files import read_arrays, write_arrays, write_whole

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.int16, np.int32]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_round_trip(tmp_path, suffix, dtype):
    array = np.arange(-6, 6).reshape(3, 4).astype(dtype)
    path = tmp_path / f"x{suffix}"
    write_arrays(path, array)
    again = read_arrays(path)
    if dtype is ml_dtypes.bfloat16 and suffix != ".safetensors":
        array = array.astype(np.float32)
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_several_tensors(tmp_path, suffix):
    arrays = {"h": np.ones((2, 3), np.float32), "ctx": np.arange(5, dtype=np.int16)}
    path = tmp_path / f"x{suffix}"
    write_arrays(path, arrays)
    again = read_arrays(path)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)
    with pytest.raises(InvalidRequestError, match=r"use \.npz"):
        write_arrays(tmp_path / "x.npy", arrays)


def test_safetensors_files_are_the_format_of_others(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.arange(5, dtype=np.int16)}
    theirs = safetensors.load(safetensors_file.to_bytes(arrays))
    np.testing.assert_array_equal(theirs["a"], arrays["a"])
    path = tmp_path / "x.safetensors"
    safetensors.save_file(arrays, path, metadata={"made": "here"})
    np.testing.assert_array_equal(safetensors_file.read(path)["b"], arrays["b"])
    assert safetensors_file.read_metadata(path) == {"made": "here"}


def test_fortran_order_and_format_versions(tmp_path):
    array = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))
    for version in ((1, 0), (2, 0), (3, 0)):
        path = tmp_path / "x.npy"
        with path.open("wb") as file:
            np.lib.format.write_array(file, array, version=version)
        np.testing.assert_array_equal(read_arrays(path), array)
        zipped = tmp_path / "x.npz"
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.write(path, "h.npy")
        np.testing.assert_array_equal(read_arrays(zipped), array)


def _npy(shape: str, data: bytes = b"", descr: str = "<f4") -> bytes:
    """A .npy file whose header says what the test wants."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def _npz(**members: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return out.getvalue()


def _safetensors(entry: object, data: bytes = b"") -> bytes:
    head = json.dumps({"h": entry}).encode()
    return len(head).to_bytes(8, "little") + head + data


class Trap:
    """Unpickling one of these fails the test."""

    def __reduce__(self):
        return os._exit, (97,)


def _object_npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.array([Trap()], object), allow_pickle=True)
    return out.getvalue()


HOSTILE = {
    "empty.npy": b"",
    "text.npy": b"hello",
    "pickle.npy": pickle.dumps(Trap()),
    "objects.npy": _object_npy(),
    "short.npy": _npy("(4, 4)", bytes(63)),
    "immense.npy": _npy("(1099511627776, 1099511627776)", bytes(64)),
    "petabytes.npy": _npy("(1099511627776, 1024)", bytes(64)),
    "negative.npy": _npy("(-4, 4)", bytes(64)),
    "code.npy": _npy("__import__('os')._exit(97)", bytes(64)),
    "cut header.npy": _npy("(4, 4)")[:20],
    "zip.npy": _npz(h__npy=_npy("(1,)", bytes(4))),
    "bfloat16 by numpy.npy": _npy("(2,)", bytes(4), descr="|V2"),
    "empty.npz": b"",
    "npy.npz": _npy("(1,)", bytes(4)),
    "nothing.npz": _npz(),
    "other member.npz": _npz(readme=b"x"),
    "objects.npz": _npz(h__npy=_object_npy()),
    "immense.npz": _npz(h__npy=_npy("(1099511627776, 1024)", bytes(64))),
    "short.npz": _npz(h__npy=_npy("(4, 4)", bytes(20))),
    "cut.npz": _npz(h__npy=_npy("(4, 4)", bytes(64)))[:-30],
    "empty.safetensors": b"",
    "size lies.safetensors": (1 << 40).to_bytes(8, "little") + b"{}",
    "no JSON.safetensors": (4).to_bytes(8, "little") + b"\xff\xfe{}",
    "deep.safetensors": (9000).to_bytes(8, "little") + b"[" * 9000,
    "list.safetensors": (2).to_bytes(8, "little") + b"[]",
    "no tensors.safetensors": (2).to_bytes(8, "little") + b"{}",
    "no entry.safetensors": _safetensors(3),
    "no dtype.safetensors": _safetensors({"shape": [1], "data_offsets": [0, 4]}, bytes(4)),
    "other dtype.safetensors": _safetensors({"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}, bytes(8)),
    "too short.safetensors": _safetensors({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, bytes(7)),
    "other size.safetensors": _safetensors({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, bytes(8)),
    "backwards.safetensors": _safetensors({"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}, bytes(8)),
    "negative.safetensors": _safetensors({"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}, bytes(8)),
    "features.txt": b"1 2 3",
    "features": b"1 2 3",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    with pytest.raises(InvalidRequestError) as caught:
        read_arrays(path)
    assert name in str(caught.value)


@pytest.mark.parametrize("shape", ["()", "(0, 4)"])
def test_arrays_that_no_codec_takes_are_refused_with_the_right_words(tmp_path, shape):
    path = tmp_path / "x.npy"
    path.write_bytes(_npy(shape, bytes(4) if shape == "()" else b""))
    with pytest.raises(InvalidRequestError, match=r"no axes|empty"):
        specs_of({"h": read_arrays(path)})


def test_writing_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.npy"
    path.write_bytes(b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(folder, b"new")
    with pytest.raises(OSError, match="nowhere"):
        write_whole(tmp_path / "nowhere" / "x", b"new")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["folder", "x.npy"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
