"""Codec files of servers, kept on this device: one file per fingerprint, and never a damaged one.

    <cache>/codecs/<fingerprint, hex>.<SHA-256 of the file, hex>.safetensors

The cache is the argument, else $MPCOMPRESS_CACHE_DIR, else the user's cache directory. Files appear complete or not at
all, so processes may share it. The fingerprint covers what decoding depends on; the SHA-256 covers all of the file.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from os import PathLike
from pathlib import Path

from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.library import library

CACHE_DIR_VARIABLE = "MPCOMPRESS_CACHE_DIR"


class CodecFileCache:
    """The folder of codec files. Nothing is created before something is put into it."""

    def __init__(self, cache_dir: str | PathLike[str] | None = None) -> None:
        self._folder = _cache_dir(cache_dir) / "codecs"

    def find(self, fingerprint: bytes) -> Path | None:
        """The undamaged file of a fingerprint. One that is damaged is removed."""
        for path in sorted(self._folder.glob(f"{fingerprint.hex()}.*.safetensors")):
            with contextlib.suppress(OSError):
                if hashlib.sha256(path.read_bytes()).hexdigest() == path.name.split(".")[1]:
                    return path
            self.remove(path)
        return None

    def put(self, fingerprint: bytes, data: bytes) -> Path:
        """Keeps a file. Raises InvalidRequestError when the folder cannot be written; the message says what to do."""
        path = self._folder / f"{fingerprint.hex()}.{hashlib.sha256(data).hexdigest()}.safetensors"
        beside: Path | None = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self._folder, suffix=".part")
            beside = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            beside.replace(path)
        except OSError as error:
            raise InvalidRequestError(
                f"cannot keep the codec file in {self._folder}: {error.strerror or error}; "
                f"name another folder with cache_dir or ${CACHE_DIR_VARIABLE}",
                field="cache_dir",
            ) from error
        finally:
            if beside is not None:
                beside.unlink(missing_ok=True)
        return path

    def remove(self, path: Path) -> None:
        """Removes a file of `put`; one that cannot be removed is only in the way."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def _cache_dir(chosen: str | PathLike[str] | None) -> Path:
    named = chosen or os.environ.get(CACHE_DIR_VARIABLE)
    if named:
        return Path(named)
    with library():
        import platformdirs

        return platformdirs.user_cache_path("mpcompress")
