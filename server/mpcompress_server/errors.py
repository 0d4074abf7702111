"""Exceptions to statuses: one table, and the google.rpc details that go with each row.

    ServerError
    ├── ItemTooLargeError        larger than this server takes
    ├── NoRoomError              no memory within the bound
    ├── DeadlineUnreachableError the items before it take longer than it has
    ├── ItemTimeoutError         the item's own timeout ran out
    ├── ItemCancelledError       by CancelItem
    ├── IncompleteItemError      another header or the end of the stream came before all chunks
    ├── ServerDrainingError      the server stops
    ├── ReloadFailedError        the codecs from before stay
    ├── WorkerUnreachableError   the codec runs on another server, and none answers
    ├── PermissionDeniedError    not for this caller
    ├── UnauthenticatedError     a call without a known token
    └── StreamError              ends the call, not only an item
        ├── ProtocolError        a message that makes no sense in its stream
        ├── UnreadAnswersError   the client sends on without reading
        └── DrainedError         the server stops and the stream has nothing left to wait for

docs/errors.md explains every reason to the one who meets it.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from mpcompress import errors as library
from mpcompress_proto import errors as wire

DOMAIN = "mpcompress"
_RETRY_AFTER_S = 1.0
_MAX_MESSAGE = 1000


class ServerError(Exception):
    """Base of what the server raises itself. `field` is the culprit in the request, or ``""``."""

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = _RETRY_AFTER_S
        """When to try again, where that makes sense."""


class ItemTooLargeError(ServerError):
    """Larger than this server takes."""


class NoRoomError(ServerError):
    """No memory within the bound."""


class DeadlineUnreachableError(ServerError):
    """The items that wait before it take longer than it has."""


class ItemTimeoutError(ServerError):
    """The item's own timeout ran out."""


class ItemCancelledError(ServerError):
    """Cancelled by its client."""


class IncompleteItemError(ServerError):
    """Another header or the end of the stream came before all chunks."""


class ServerDrainingError(ServerError):
    """The server stops and takes no new items."""


class ReloadFailedError(ServerError):
    """The configuration cannot be served."""


class WorkerUnreachableError(ServerError):
    """The codec runs on another server, and none that has it answers."""


class PermissionDeniedError(ServerError):
    """The caller may not do that."""


class UnauthenticatedError(ServerError):
    """The call has no token that is known here."""


class StreamError(ServerError):
    """Ends the whole call."""


class ProtocolError(StreamError):
    """A message that makes no sense where it came."""


class UnreadAnswersError(StreamError):
    """The client sends on without reading its answers."""


class DrainedError(StreamError):
    """The server stops, and this stream has nothing left to wait for."""


class RemoteItemError(Exception):
    """What another server said about an item that it was sent: no row of the table, but passed on with all its details.

    Args:
        status: of the item there.
    """

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one kind of exception becomes.

    Args:
        code: gRPC status.
        reason: stable name for programs, in ErrorInfo.
        retry: the same item may succeed later: RetryInfo goes along.
        quota: a limit was exceeded: QuotaFailure goes along.
    """

    code: grpc.StatusCode
    reason: str
    retry: bool = False
    quota: bool = False


_CODE = grpc.StatusCode

# The nearest class in an exception's method resolution order counts.
TABLE: dict[type[BaseException], Rule] = {
    wire.WireError: Rule(code=_CODE.INVALID_ARGUMENT, reason="MALFORMED_REQUEST"),
    wire.CorruptUnitError: Rule(code=_CODE.INVALID_ARGUMENT, reason="CORRUPT_UNIT"),
    library.InvalidInputError: Rule(code=_CODE.INVALID_ARGUMENT, reason="INVALID_INPUT"),
    library.NonFiniteError: Rule(code=_CODE.INVALID_ARGUMENT, reason="NON_FINITE"),
    library.OutOfRangeError: Rule(code=_CODE.INVALID_ARGUMENT, reason="VALUE_OUT_OF_RANGE"),
    library.CorruptBitstreamError: Rule(code=_CODE.INVALID_ARGUMENT, reason="CORRUPT_BITSTREAM"),
    library.CodecMismatchError: Rule(code=_CODE.FAILED_PRECONDITION, reason="CODEC_MISMATCH"),
    library.UnknownCodecError: Rule(code=_CODE.NOT_FOUND, reason="UNKNOWN_CODEC"),
    library.CodecUnavailableError: Rule(code=_CODE.FAILED_PRECONDITION, reason="CODEC_UNAVAILABLE"),
    library.CodecFileError: Rule(code=_CODE.FAILED_PRECONDITION, reason="CODEC_UNAVAILABLE"),
    library.CodecCrashedError: Rule(code=_CODE.UNAVAILABLE, reason="CODEC_CRASHED", retry=True),
    library.CodingCancelledError: Rule(code=_CODE.CANCELLED, reason="ITEM_CANCELLED"),
    ItemTooLargeError: Rule(code=_CODE.RESOURCE_EXHAUSTED, reason="ITEM_TOO_LARGE", quota=True),
    NoRoomError: Rule(code=_CODE.RESOURCE_EXHAUSTED, reason="NO_ROOM", retry=True),
    DeadlineUnreachableError: Rule(code=_CODE.RESOURCE_EXHAUSTED, reason="DEADLINE_UNREACHABLE", retry=True),
    MemoryError: Rule(code=_CODE.RESOURCE_EXHAUSTED, reason="OUT_OF_MEMORY", retry=True),
    ItemTimeoutError: Rule(code=_CODE.DEADLINE_EXCEEDED, reason="ITEM_TIMEOUT"),
    ItemCancelledError: Rule(code=_CODE.CANCELLED, reason="ITEM_CANCELLED"),
    IncompleteItemError: Rule(code=_CODE.INVALID_ARGUMENT, reason="INCOMPLETE_ITEM"),
    ServerDrainingError: Rule(code=_CODE.UNAVAILABLE, reason="SERVER_DRAINING", retry=True),
    DrainedError: Rule(code=_CODE.UNAVAILABLE, reason="SERVER_DRAINING", retry=True),
    WorkerUnreachableError: Rule(code=_CODE.UNAVAILABLE, reason="WORKER_UNREACHABLE", retry=True),
    ReloadFailedError: Rule(code=_CODE.FAILED_PRECONDITION, reason="RELOAD_FAILED"),
    PermissionDeniedError: Rule(code=_CODE.PERMISSION_DENIED, reason="PERMISSION_DENIED"),
    UnauthenticatedError: Rule(code=_CODE.UNAUTHENTICATED, reason="UNAUTHENTICATED"),
    ProtocolError: Rule(code=_CODE.INVALID_ARGUMENT, reason="PROTOCOL_VIOLATION"),
    UnreadAnswersError: Rule(code=_CODE.RESOURCE_EXHAUSTED, reason="UNREAD_ANSWERS"),
}
UNREACHABLE_TARGET = Rule(code=_CODE.OUT_OF_RANGE, reason="TARGET_UNREACHABLE")
INTERNAL = Rule(code=_CODE.INTERNAL, reason="INTERNAL")

REASONS = sorted({rule.reason for rule in (*TABLE.values(), UNREACHABLE_TARGET, INTERNAL)})


def rule_of(error: BaseException) -> Rule:
    """The row for an exception; INTERNAL for those nobody foresaw."""
    if isinstance(error, library.OutOfRangeError) and error.field.startswith("params.target"):
        return UNREACHABLE_TARGET
    if isinstance(error, RemoteItemError):
        return _rule_of_status(error.status)
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return INTERNAL


def _rule_of_status(status: status_pb2.Status) -> Rule:
    """The row of a status that another server made. Reasons become labels of metrics: only those known here do."""
    info = error_details_pb2.ErrorInfo()
    codes = {code.value[0]: code for code in _CODE}
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.reason in REASONS:
            return Rule(code=codes.get(status.code, _CODE.INTERNAL), reason=info.reason)
    return Rule(code=codes.get(status.code, _CODE.INTERNAL), reason="INTERNAL")


def to_status(error: BaseException, request_id: str) -> status_pb2.Status:
    """The google.rpc.Status a client gets: never a traceback, never a path of this machine."""
    if isinstance(error, RemoteItemError):
        return error.status
    rule = rule_of(error)
    if rule is INTERNAL:
        message, field = f"internal error; the operator finds it in the log as request {request_id}", ""
    elif isinstance(error, library.CodecFileError):  # its message has a path
        message, field = "the codec's file cannot be read; the server's log says why", ""
    elif isinstance(error, MemoryError):
        message, field = "the server is out of memory for this item", ""
    else:
        message, field = str(getattr(error, "message", error))[:_MAX_MESSAGE], str(getattr(error, "field", ""))
    status = status_pb2.Status(code=rule.code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=rule.reason, domain=DOMAIN, metadata={"request_id": request_id})
    status.details.add().Pack(info)
    if field and rule.code in (_CODE.INVALID_ARGUMENT, _CODE.OUT_OF_RANGE):
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message, reason=rule.reason)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if rule.retry:
        delay = Duration()
        delay.FromMilliseconds(int(1000 * getattr(error, "retry_after_s", _RETRY_AFTER_S)))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    if rule.quota:
        quota = error_details_pb2.QuotaFailure.Violation(subject=field or "item", description=message)
        status.details.add().Pack(error_details_pb2.QuotaFailure(violations=[quota]))
    return status


def drop_frames(error: BaseException | None) -> None:
    """Lets go of what the frames of an exception hold: an item's tensors, until some later garbage collection."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: BaseException, request_id: str) -> NoReturn:
    """Ends a call with the status of an exception. Always raises."""
    status = to_status(error, request_id)
    await context.abort(
        rule_of(error).code,
        status.message,
        (("grpc-status-details-bin", status.SerializeToString()), ("x-request-id", request_id)),
    )
