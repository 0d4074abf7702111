"""From google.rpc.Status and gRPC's own status back to exceptions: one table. Does no input or output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2

from mpcompress_client.errors import (
    AccessDeniedError,
    CancelledError,
    CodecMismatchError,
    CodecUnavailableError,
    CorruptUnitError,
    DeadlineError,
    InvalidRequestError,
    MPCompressError,
    ResourceExhaustedError,
    ServerError,
    ServerUnavailableError,
    TargetUnreachableError,
    UnknownCodecError,
)

# How gRPC words a connection that is lost under a call: grpc.aio while it hands over a message, and both when a proxy
# resets the stream because its server died. Our server's own INTERNAL always comes with details.
_BROKEN_CONNECTION = ("Internal error from Core", "RST_STREAM", "Stream removed")
_STATUS_DETAILS = "grpc-status-details-bin"
_REQUEST_ID = "request_id"

_BY_CODE: dict[int, type[MPCompressError]] = {
    code_pb2.INVALID_ARGUMENT: InvalidRequestError,
    code_pb2.OUT_OF_RANGE: TargetUnreachableError,
    code_pb2.NOT_FOUND: UnknownCodecError,
    code_pb2.FAILED_PRECONDITION: CodecMismatchError,
    code_pb2.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    code_pb2.DEADLINE_EXCEEDED: DeadlineError,
    code_pb2.CANCELLED: CancelledError,
    code_pb2.UNAVAILABLE: ServerUnavailableError,
    code_pb2.PERMISSION_DENIED: AccessDeniedError,
    code_pb2.UNAUTHENTICATED: AccessDeniedError,
}
# What gRPC says about a connection that did not come about -> what to do. The first that fits counts.
_CONNECTION_HINTS: tuple[tuple[str, str], ...] = (
    (
        "certificate_verify_failed",
        "its certificate is not trusted: name its authority with tls=TlsConfig(ca=...) or MPCOMPRESS_TLS_CA",
    ),
    (
        "hostname verification check failed",
        "its certificate is for another name: use that name as the target, or TlsConfig(server_name=...)",
    ),
    ("wrong_version_number", "it does not talk TLS: leave out tls and MPCOMPRESS_TLS_CA, or turn TLS on there"),
    (
        "certificate_required",
        "it wants a client certificate: TlsConfig(cert=..., key=...) or MPCOMPRESS_TLS_CERT and _KEY",
    ),
    ("ssl", "TLS could not be agreed on: check the certificates on both sides"),
    ("name resolution", "its name cannot be resolved: check the target's spelling and the network"),
    ("dns", "its name cannot be resolved: check the target's spelling and the network"),
)
_TOKEN_HINT = "pass token= or token_file=, or set MPCOMPRESS_TOKEN_FILE"  # noqa: S105 # names, no secret

# Reasons that say more than their code does.
_BY_REASON: dict[str, type[MPCompressError]] = {
    "CORRUPT_BITSTREAM": CorruptUnitError,
    "CORRUPT_UNIT": CorruptUnitError,
    "CODEC_UNAVAILABLE": CodecUnavailableError,
}


def error_of(status: status_pb2.Status) -> MPCompressError:
    """The exception for a google.rpc.Status, with all that its details say."""
    reason, request_id, field, retry_after_s = "", "", "", None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        try:
            if detail.Unpack(info):
                reason, request_id = info.reason, info.metadata.get(_REQUEST_ID, "")
            elif detail.Unpack(bad_request) and bad_request.field_violations:
                field = bad_request.field_violations[0].field
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        except DecodeError:
            # Details are for information: a damaged one must not hide the error itself.
            continue
    kind = _BY_REASON.get(reason) or _BY_CODE.get(status.code, ServerError)
    message = status.message or f"the server gave no message with {_code_name(status.code)}"
    if field and field not in message:
        message = f"{field}: {message}"
    if issubclass(kind, ServerError) and request_id and request_id not in message:
        message = f"{message} (request id {request_id})"
    error = kind(message, field=field)
    error.reason, error.request_id = reason, request_id
    if isinstance(error, ResourceExhaustedError | ServerUnavailableError):
        error.retry_after_s = retry_after_s
    return error


def error_of_call(
    code: grpc.StatusCode, details: str | None, trailing: Sequence[tuple[str, Any]] | None, target: str
) -> MPCompressError:
    """The exception for the status that ended a whole call to `target`."""
    status = _rich_status(trailing, code)
    if status is not None:
        return error_of(status)
    reason = details or "no details"
    if code is grpc.StatusCode.UNAVAILABLE:
        hint = "is `mpcompress-server serve` running there, and are address, port and TLS right?"
        lowered = reason.lower()
        hint = next((advice for words, advice in _CONNECTION_HINTS if words in lowered), hint)
        return ServerUnavailableError(f"cannot reach {target}: {hint} ({reason})")
    if code is grpc.StatusCode.INTERNAL and any(words in reason for words in _BROKEN_CONNECTION):
        return ServerUnavailableError(f"the connection to {target} broke ({reason})")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return AccessDeniedError(f"{target} does not know this client: {_TOKEN_HINT} ({reason})")
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineError(f"{target} did not answer in time; a larger timeout_s waits longer ({reason})")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return ServerError(f"{target} does not offer mpcompress.v1: is it another service or version? ({reason})")
    number = code.value[0]
    return _BY_CODE.get(number, ServerError)(f"{target} ended the call with {code.name}: {reason}")


def error_of_rpc(error: grpc.RpcError, target: str) -> MPCompressError:
    """The exception for what grpc raised in a call to `target`."""
    # What grpc raises is both an RpcError and a Call, which its type hints cannot say.
    call: Any = error
    if not hasattr(call, "code"):
        return ServerUnavailableError(f"the call to {target} failed: {error}")
    return error_of_call(call.code(), call.details(), call.trailing_metadata(), target)


def _rich_status(trailing: Sequence[tuple[str, Any]] | None, code: grpc.StatusCode) -> status_pb2.Status | None:
    """The google.rpc.Status in the trailing metadata, if it is there, whole, and of the call's own code."""
    for key, value in trailing or ():
        if key == _STATUS_DETAILS:
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                return None
            return status if status.code == code.value[0] else None
    return None


def _code_name(code: int) -> str:
    return code_pb2.Code.Name(code) if code in code_pb2.Code.values() else f"code {code}"
