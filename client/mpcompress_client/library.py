"""The border to the codec library: its errors, and its absence, in this package's terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mpcompress_client.errors import (
    CodecMismatchError,
    CodecUnavailableError,
    CorruptUnitError,
    InvalidRequestError,
    MPCompressError,
    ServerError,
    TargetUnreachableError,
    UnknownCodecError,
)

# Which extra of this distribution brings a package.
_EXTRAS = {
    "numba": "edge",
    "safetensors": "edge",
    "platformdirs": "edge",
    "torch": "codecs",
    "compressai": "codecs",
    "av": "vvc",
    "imageio_ffmpeg": "vvc",
}


@contextmanager
def library() -> Iterator[None]:
    """Turns what the library raises, and what an import of it lacks, into this package's errors."""
    try:
        yield
    except ImportError as error:
        root = (error.name or "").partition(".")[0]
        extra = _EXTRAS.get(root, "edge")
        raise CodecUnavailableError(
            f"coding on this device needs {root or 'more packages'}: pip install 'mpcompress[{extra}]'"
        ) from error
    except Exception as error:
        translated = _translate(error)
        if translated is None:
            raise
        raise translated from error


def _translate(error: Exception) -> MPCompressError | None:
    from mpcompress import errors as library

    if not isinstance(error, library.MpcompressError):
        return None
    kind: type[MPCompressError] = ServerError
    if isinstance(error, library.OutOfRangeError) and error.field.startswith("params.target"):
        kind = TargetUnreachableError
    elif isinstance(error, library.InvalidInputError | library.CodecFileError):
        kind = InvalidRequestError
    elif isinstance(error, library.CorruptBitstreamError):
        kind = CorruptUnitError
    elif isinstance(error, library.CodecMismatchError):
        kind = CodecMismatchError
    elif isinstance(error, library.UnknownCodecError):
        kind = UnknownCodecError
    elif isinstance(error, library.CodecUnavailableError):
        kind = CodecUnavailableError
    return kind(error.message, field=error.field)
