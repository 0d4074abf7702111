"""Every error the client raises on purpose.

    MPCompressError                              root; shared with mpcompress_proto
    ├── InvalidRequestError (ValueError)         a tensor or parameter that the codec or the wire cannot take
    │   └── TargetUnreachableError               a target that cannot be reached, with target_policy="error"
    ├── WireError (ValueError)                   a message that breaks the contract
    │   └── CorruptUnitError                     a .mpc file or payload that is damaged, truncated or extended
    ├── UnknownCodecError (LookupError)          no codec of that id
    ├── CodecMismatchError (ValueError)          a healthy unit of another codec, version, fingerprint or context
    ├── CodecUnavailableError (RuntimeError)     a known codec that cannot run there; the message says why
    ├── AccessDeniedError (PermissionError)      not authenticated, or not allowed to use that codec
    ├── ResourceExhaustedError (RuntimeError)    no room now (`retry_after_s`), or larger than the server takes
    ├── DeadlineError (TimeoutError)             the time limit of an item or call ran out
    ├── CancelledError (RuntimeError)            the item or call was cancelled
    ├── ServerUnavailableError (ConnectionError) the server cannot be reached, stops, or lost the codec's worker
    └── ServerError (RuntimeError)               a bug or a broken answer of the server (`request_id`)

`field` is the culprit in the request's terms ("tensors[0].shape", "params.qp_eighths"), or "". `reason` and
`request_id` come from the server's ErrorInfo, and are "" for errors found on this side.
"""

from __future__ import annotations

from mpcompress_proto.errors import CorruptUnitError, MPCompressError, WireError

__all__ = [
    "AccessDeniedError",
    "CancelledError",
    "CodecMismatchError",
    "CodecUnavailableError",
    "CorruptUnitError",
    "DeadlineError",
    "InvalidRequestError",
    "MPCompressError",
    "ResourceExhaustedError",
    "ServerError",
    "ServerUnavailableError",
    "TargetUnreachableError",
    "UnknownCodecError",
    "WireError",
]


class InvalidRequestError(MPCompressError, ValueError):
    """A tensor or parameter that the codec or the wire cannot take; `field` and the message name it."""


class TargetUnreachableError(InvalidRequestError):
    """A target_bpfp or target_nmse that cannot be reached; the message says what can."""


class UnknownCodecError(MPCompressError, LookupError):
    """No codec of that id."""


class CodecMismatchError(MPCompressError, ValueError):
    """A healthy unit, but of another codec, bitstream version, fingerprint or context."""


class CodecUnavailableError(MPCompressError, RuntimeError):
    """A known codec that cannot run there; the message says why and what to do."""


class AccessDeniedError(MPCompressError, PermissionError):
    """The server does not know this client, or does not let it use that codec."""


class ResourceExhaustedError(MPCompressError, RuntimeError):
    """No room on the server.

    Attributes:
        retry_after_s: when to try again, seconds; None when trying again cannot help (larger than the server takes).
    """

    retry_after_s: float | None = None


class DeadlineError(MPCompressError, TimeoutError):
    """The time limit of an item or of a call ran out."""


class CancelledError(MPCompressError, RuntimeError):
    """The item or the call was cancelled."""


class ServerUnavailableError(MPCompressError, ConnectionError):
    """The server cannot be reached, is stopping, or its codec's worker died; the message says what to check.

    Attributes:
        retry_after_s: when to try again, seconds; None when the server did not say.
    """

    retry_after_s: float | None = None


class ServerError(MPCompressError, RuntimeError):
    """A bug or a broken answer of the server; `request_id` is what its operator needs to find it."""
