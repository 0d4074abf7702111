"""Every error the codec library raises on purpose.

    MpcompressError
    ├── InvalidInputError (ValueError)       a tensor or parameter the codec cannot take
    │   ├── NonFiniteError                   NaN or infinity in a tensor
    │   └── OutOfRangeError                  finite, but too large for the codec to represent
    ├── CorruptBitstreamError (ValueError)   bytes that no encoder of this codec writes
    ├── CodecMismatchError (ValueError)      a healthy unit, but of another codec, version or context
    ├── UnknownCodecError (LookupError)      no codec of that id or fingerprint is loaded
    ├── CodecUnavailableError (RuntimeError) known, but it cannot run here (missing engine, untrained, no tables)
    ├── CodecFileError (ValueError)          a codec file or specification that cannot be loaded
    ├── CodecCrashedError (RuntimeError)     the codec's process died, hung or ran out of memory
    └── CodingCancelledError (RuntimeError)  the caller's cancel token was set

`field` names the offending input in the caller's terms (``"tensors[0]"``, ``"params.qp"``); the server puts it
into a google.rpc.BadRequest and the client puts it back.
"""

from __future__ import annotations

__all__ = [
    "CodecCrashedError",
    "CodecFileError",
    "CodecMismatchError",
    "CodecUnavailableError",
    "CodingCancelledError",
    "CorruptBitstreamError",
    "InvalidInputError",
    "MpcompressError",
    "NonFiniteError",
    "OutOfRangeError",
    "UnknownCodecError",
]


class MpcompressError(Exception):
    """Base of the tree. `field` is the offending input in the caller's terms, or ``""``."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidInputError(MpcompressError, ValueError):
    """A tensor or parameter that the codec cannot take."""


class NonFiniteError(InvalidInputError):
    """A tensor holds NaN or infinity; the message names the tensor and the first index."""


class OutOfRangeError(InvalidInputError):
    """A finite value too large for the codec to represent at this qp; the message names tensor and index."""


class CorruptBitstreamError(MpcompressError, ValueError):
    """Bytes that no encoder of this codec writes: truncated, extended or altered."""


class CodecMismatchError(MpcompressError, ValueError):
    """A healthy unit of another codec, bitstream version, fingerprint or context."""


class UnknownCodecError(MpcompressError, LookupError):
    """No codec of that id or fingerprint is loaded."""


class CodecUnavailableError(MpcompressError, RuntimeError):
    """A known codec that cannot run here; the message says why and what to install or allow."""


class CodecFileError(MpcompressError, ValueError):
    """A codec file or specification that cannot be loaded."""


class CodecCrashedError(MpcompressError, RuntimeError):
    """The process that ran the codec died, hung or ran out of memory; other items are not affected."""


class CodingCancelledError(MpcompressError, RuntimeError):
    """The caller's cancel token was set; every process that worked for it is gone."""
