"""A connection to a server, and what can be asked of the server itself."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import grpc

from mpcompress_client import infos
from mpcompress_client.calls import DEFAULT_TIMEOUT_S, check_target
from mpcompress_client.errors import InvalidRequestError, ServerError
from mpcompress_client.items import check_timeout
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1.compression_pb2_grpc import CompressionServiceStub


class Connection:
    """A channel to a server; use it as a context manager. May be shared by threads.

    Args:
        target: the server's address, "host:port" or any gRPC target.
        timeout_s: time limit of each item and call, seconds.
        credentials: TLS credentials; None talks plain text.
        channel: an open channel to use instead of a new one; it is not closed.
        options: further gRPC channel options.

    Raises:
        InvalidRequestError: a target that is no address.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        channel: grpc.Channel | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.target = check_target(target)
        self.timeout_s = check_timeout(timeout_s)
        self._owned = channel is None
        if channel is not None:
            self._channel = channel
        elif credentials is not None:
            self._channel = grpc.secure_channel(target, credentials, options=list(options))
        else:
            self._channel = grpc.insecure_channel(target, options=list(options))
        self._stub = CompressionServiceStub(self._channel)
        self._families: dict[str, str] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are under way end with CancelledError."""
        self._closed = True
        if self._owned:
            self._channel.close()

    def codecs(self, *, timeout_s: float | None = None) -> list[infos.CodecInfo]:
        """The server's codecs, in order of id."""
        response = self._list(timeout_s)
        return [infos.codec_info(message) for message in response.codecs]

    def limits(self, *, timeout_s: float | None = None) -> infos.ServerLimits:
        """What the server takes, and its version."""
        return infos.server_limits(self._list(timeout_s))

    def codec_file(self, codec: str, *, fingerprint: bytes = b"", timeout_s: float | None = None) -> bytes:
        """The file with which a device runs a codec itself, checked against its SHA-256.

        Raises:
            UnknownCodecError: no such codec.
            CodecMismatchError: the server's file has another fingerprint than the one asked for.
            CodecUnavailableError: this codec has no file.
            ServerError: the file arrived damaged.
        """
        self._check_open()
        request = pb.GetCodecFileRequest(codec_id=codec, fingerprint=fingerprint)
        call: Any = self._stub.GetCodecFile(request, timeout=self._timeout(timeout_s))
        header: pb.CodecFileHeader | None = None
        data = bytearray()
        try:
            for response in call:
                if response.WhichOneof("message") == "header":
                    header = response.header
                else:
                    data += response.data
                if header is None or len(data) > header.size_bytes:
                    break
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        finally:
            call.cancel()
        if header is None or len(data) != header.size_bytes or hashlib.sha256(data).digest() != header.sha256:
            raise ServerError(f"the codec file of {codec} arrived damaged: its size or SHA-256 does not match")
        return bytes(data)

    def _timeout(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("this client is closed")

    def _list(self, timeout_s: float | None) -> pb.ListCodecsResponse:
        self._check_open()
        try:
            response: pb.ListCodecsResponse = self._stub.ListCodecs(
                pb.ListCodecsRequest(), timeout=self._timeout(timeout_s)
            )
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        with self._lock:
            self._families = {codec.codec_id: codec.family for codec in response.codecs}
        return response

    def _family(self, codec: str) -> str:
        """The family of a codec; asks the server once. "" when the server does not list it."""
        with self._lock:
            known = self._families
        if known is None or codec not in known:
            self._list(None)
            known = self._families or {}
        return known.get(codec, "")
