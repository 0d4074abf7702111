"""One table: every status with its details becomes the exception that says what to do."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2 as details
from google.rpc import status_pb2
from scripted_server import refuse, status

from mpcompress_client import errors
from mpcompress_client.client import CompressionClient
from mpcompress_client.status import error_of, error_of_call

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("code", "kind", "builtin"),
    [
        (CODE.INVALID_ARGUMENT, errors.InvalidRequestError, ValueError),
        (CODE.OUT_OF_RANGE, errors.TargetUnreachableError, ValueError),
        (CODE.NOT_FOUND, errors.UnknownCodecError, LookupError),
        (CODE.FAILED_PRECONDITION, errors.CodecMismatchError, ValueError),
        (CODE.RESOURCE_EXHAUSTED, errors.ResourceExhaustedError, RuntimeError),
        (CODE.DEADLINE_EXCEEDED, errors.DeadlineError, TimeoutError),
        (CODE.CANCELLED, errors.CancelledError, RuntimeError),
        (CODE.UNAVAILABLE, errors.ServerUnavailableError, ConnectionError),
        (CODE.PERMISSION_DENIED, errors.AccessDeniedError, PermissionError),
        (CODE.UNAUTHENTICATED, errors.AccessDeniedError, PermissionError),
        (CODE.INTERNAL, errors.ServerError, RuntimeError),
        (CODE.UNKNOWN, errors.ServerError, RuntimeError),
        (CODE.DATA_LOSS, errors.ServerError, RuntimeError),
    ],
)
def test_codes(code, kind, builtin):
    for error in (error_of(status(code, "why")), error_of_call(code, "why", None, "host:1")):
        assert type(error) is kind
        assert isinstance(error, builtin)
        assert isinstance(error, errors.MPCompressError)
        assert "why" in str(error)
        assert error.message == str(error)


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("CORRUPT_UNIT", errors.CorruptUnitError),
        ("CORRUPT_BITSTREAM", errors.CorruptUnitError),
        ("CODEC_UNAVAILABLE", errors.CodecUnavailableError),
        ("SOMETHING_NEW", errors.InvalidRequestError),
    ],
)
def test_reasons_say_more_than_codes(reason, kind):
    error = error_of(status(CODE.INVALID_ARGUMENT, "why", details.ErrorInfo(reason=reason, domain="mpcompress")))
    assert type(error) is kind
    assert error.reason == reason


def test_the_field_is_in_the_message():
    violation = details.BadRequest.FieldViolation(field="tensors[0].shape", description="why")
    error = error_of(status(CODE.INVALID_ARGUMENT, "why", details.BadRequest(field_violations=[violation])))
    assert error.field == "tensors[0].shape"
    assert str(error) == "tensors[0].shape: why"


@pytest.mark.parametrize("code", [CODE.RESOURCE_EXHAUSTED, CODE.UNAVAILABLE])
def test_when_to_try_again(code):
    retry = details.RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000))
    assert error_of(status(code, "full", retry)).retry_after_s == 2.5
    assert error_of(status(code, "too large")).retry_after_s is None


def test_a_bug_of_the_server_has_its_request_id():
    info = details.ErrorInfo(reason="INTERNAL", metadata={"request_id": "abc123"})
    error = error_of(status(CODE.INTERNAL, "internal error", info))
    assert error.request_id == "abc123"
    assert "abc123" in str(error)
    assert str(error_of(status(CODE.INTERNAL, "request abc123 failed", info))).count("abc123") == 1


def test_damaged_details_hide_nothing():
    damaged = any_pb2.Any(type_url="type.googleapis.com/google.rpc.BadRequest", value=b"\xff\xff")
    error = error_of(status_pb2.Status(code=3, message="why", details=[damaged]))
    assert type(error) is errors.InvalidRequestError
    assert error_of_call(CODE.NOT_FOUND, "why", [("grpc-status-details-bin", b"\xff")], "x").message.endswith("why")


def test_a_status_without_a_message_or_of_an_unknown_code():
    assert "NOT_FOUND" in str(error_of(status_pb2.Status(code=5)))
    assert type(error_of(status_pb2.Status(code=99))) is errors.ServerError


def test_the_status_of_a_call_carries_its_details(scripted):
    def compress(requests, context):
        full = status(CODE.RESOURCE_EXHAUSTED, "unread", details.ErrorInfo(reason="UNREAD_ANSWERS"))
        context.set_trailing_metadata([("grpc-status-details-bin", full.SerializeToString())])
        context.abort(CODE.RESOURCE_EXHAUSTED, "unread")
        yield

    with CompressionClient(scripted(compress=compress)) as client, pytest.raises(errors.ResourceExhaustedError) as it:
        client.compress(_array(), codec="x")
    assert it.value.reason == "UNREAD_ANSWERS"


def test_an_item_error_reaches_the_caller(scripted):
    def compress(requests, context):
        header = next(requests).header
        yield refuse(header.item_id, status(CODE.NOT_FOUND, "no codec x"))

    with CompressionClient(scripted(compress=compress)) as client, pytest.raises(errors.UnknownCodecError):
        client.compress(_array(), codec="x")


def test_nobody_there_says_what_to_check():
    with CompressionClient("127.0.0.1:1") as client, pytest.raises(errors.ServerUnavailableError) as caught:
        client.codecs()
    assert "127.0.0.1:1" in str(caught.value)
    assert "mpcompress-server serve" in str(caught.value)


def test_another_service_says_so(scripted):
    with CompressionClient(scripted()) as client, pytest.raises(errors.ServerError, match=r"mpcompress\.v1"):
        client.compress(_array(), codec="x")


def test_every_error_is_drawn_in_the_tree():
    for name in errors.__all__:
        assert name in (errors.__doc__ or "")
        assert issubclass(getattr(errors, name), errors.MPCompressError)


def _array():
    import numpy as np

    return np.ones((2, 2), np.float32)


@pytest.mark.parametrize(
    "words", ["Internal error from Core", "Stream removed (RST_STREAM error code 2)", "Received RST_STREAM with code 2"]
)
def test_a_reset_stream_is_a_lost_connection(words):
    # A proxy resets the stream when its server dies: that is no bug of the server, and may be sent again.
    assert type(error_of_call(CODE.INTERNAL, words, None, "host:1")) is errors.ServerUnavailableError


def test_the_servers_own_internal_error_stays_one():
    own = status(CODE.INTERNAL, "Stream removed")
    trailing = [("grpc-status-details-bin", own.SerializeToString())]
    assert type(error_of_call(CODE.INTERNAL, "Stream removed", trailing, "host:1")) is errors.ServerError
