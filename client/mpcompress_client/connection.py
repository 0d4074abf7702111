"""A connection to a server, and what can be asked of the server itself."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self

import grpc

from mpcompress_client import endpoint, infos
from mpcompress_client.calls import CodecFile
from mpcompress_client.endpoint import TlsConfig
from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.items import check_timeout
from mpcompress_client.retry import Contact, RetryPolicy, policy_of
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1.compression_pb2_grpc import CompressionServiceStub


class Connection:
    """A channel to a server; use it as a context manager. May be shared by threads.

    What is not passed comes from the environment; `mpcompress_client.endpoint` lists the variables.

    Args:
        target: the server's address, "host:port" or any gRPC target. None: MPCOMPRESS_TARGET, or 127.0.0.1:50051.
        timeout_s: time limit of each item and call with all its attempts, seconds. None: MPCOMPRESS_TIMEOUT_S, or 60.
        tls: how to talk TLS; True trusts the system's authorities, False is plain text. None: as MPCOMPRESS_TLS_CA,
            MPCOMPRESS_TLS_CERT and MPCOMPRESS_TLS_KEY say, or plain text without them.
        credentials: gRPC's own channel credentials instead of `tls`.
        token: a bearer token, which travels over TLS or on this machine only.
        token_file: a file with one, read again when it changes. None: MPCOMPRESS_TOKEN_FILE.
        retry: how often and when something is sent again; None sends nothing again.
        channel: an open channel to use instead of a new one; it is not closed.
        options: further gRPC channel options.

    Raises:
        InvalidRequestError: what cannot be used, by its argument or variable, and what to do.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        timeout_s: float | None = None,
        tls: TlsConfig | bool | None = None,
        credentials: grpc.ChannelCredentials | None = None,
        token: str | None = None,
        token_file: str | PathLike[str] | None = None,
        retry: RetryPolicy | None = RetryPolicy(),  # noqa: B008 # frozen
        channel: grpc.Channel | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.retry = policy_of(retry)
        self._endpoint = endpoint.resolve(
            target=target,
            timeout_s=timeout_s,
            tls=tls,
            credentials=credentials,
            token=token,
            token_file=token_file,
            own_channel=channel is not None,
            options=options,
            policy=self.retry,
        )
        self.target = self._endpoint.target
        self.timeout_s = self._endpoint.timeout_s
        self._owned = channel is None
        if channel is not None:
            self._channel = channel
        elif self._endpoint.credentials is not None:
            self._channel = grpc.secure_channel(self.target, self._endpoint.credentials, self._endpoint.options)
        else:
            self._channel = grpc.insecure_channel(self.target, self._endpoint.options)
        self._stub = CompressionServiceStub(self._channel)
        self._contact = Contact()
        self._families: dict[str, str] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

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
        call: Any = self._stub.GetCodecFile(
            pb.GetCodecFileRequest(codec_id=codec, fingerprint=fingerprint),
            timeout=self._timeout(timeout_s),
            metadata=self._endpoint.metadata,
        )
        file = CodecFile(codec)
        try:
            for response in call:
                if not file.take(response):
                    break
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        finally:
            call.cancel()
        return file.checked()

    def _timeout(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("this client is closed")

    def _list(self, timeout_s: float | None) -> pb.ListCodecsResponse:
        self._check_open()
        try:
            response: pb.ListCodecsResponse = self._stub.ListCodecs(
                pb.ListCodecsRequest(), timeout=self._timeout(timeout_s), metadata=self._endpoint.metadata
            )
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        self._contact.made = True
        with self._lock:
            self._families = infos.families(response)
        return response

    def _family(self, codec: str) -> str:
        """The family of a codec; asks the server once. "" when the server does not list it."""
        with self._lock:
            known = self._families
        if known is None or codec not in known:
            self._list(None)
            known = self._families or {}
        return known.get(codec, "")
