"""What both clients know about their server before a channel is there. Does no network I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict

import grpc

from mpcompress_client import endpoint, infos
from mpcompress_client.calls import CompressOptions
from mpcompress_client.credentials import TlsConfig
from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.items import check_timeout
from mpcompress_client.ledger import Ledger
from mpcompress_client.progress import ProgressCallback
from mpcompress_client.retry import Contact, RetryPolicy, policy_of
from mpcompress_proto.v1 import compression_pb2 as pb


class ConnectionArguments(TypedDict, total=False):
    """The keyword arguments of both clients but `channel`, whose type differs."""

    timeout_s: float | None
    tls: TlsConfig | bool | None
    credentials: grpc.ChannelCredentials | None
    token: str | None
    token_file: str | PathLike[str] | None
    retry: RetryPolicy | None
    options: Sequence[tuple[str, Any]]


class ConnectionBase:
    """Where the server is and how to talk to it.

    What is not passed comes from the environment; `mpcompress_client.endpoint` lists the variables.

    Args:
        target: the server's address, "host:port" or any gRPC target. None: MPCOMPRESS_TARGET, or 127.0.0.1:50051.
        timeout_s: time limit of each item and call with all its attempts, seconds. None: MPCOMPRESS_TIMEOUT_S, or 60.
        tls: how to talk TLS; its files are read again when they change. True trusts the system's authorities, False is
            plain text. None: as MPCOMPRESS_TLS_CA, MPCOMPRESS_TLS_CERT, MPCOMPRESS_TLS_KEY and MPCOMPRESS_TLS_NAME say,
            or plain text without them.
        credentials: gRPC's own channel credentials instead of `tls`.
        token: a bearer token, which travels over TLS or on this machine only.
        token_file: a file with one, read again when it changes. None: MPCOMPRESS_TOKEN_FILE.
        retry: how often and when something is sent again; None sends nothing again.
        channel: an open channel to use instead of a new one; it is not closed.
        options: further gRPC channel options.

    Raises:
        InvalidRequestError: what cannot be used, by its argument or variable, and what to do.
    """

    def __init__(self, target: str | None, channel: object, arguments: ConnectionArguments) -> None:
        self.retry = policy_of(arguments.get("retry", RetryPolicy()))
        self._endpoint = endpoint.resolve(
            target=target,
            timeout_s=arguments.get("timeout_s"),
            tls=arguments.get("tls"),
            credentials=arguments.get("credentials"),
            token=arguments.get("token"),
            token_file=arguments.get("token_file"),
            own_channel=channel is not None,
            options=arguments.get("options", ()),
            policy=self.retry,
        )
        self.target = self._endpoint.target
        self.timeout_s = self._endpoint.timeout_s
        self._contact = Contact()
        self._families: Mapping[str, str] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.target!r})"

    def _timeout(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("this client is closed")

    def _listed(self, response: pb.ListCodecsResponse) -> pb.ListCodecsResponse:
        """Remembers what a list says."""
        self._contact.made = True
        self._families = infos.families(response)
        return response

    def _knows_family(self, codec: str) -> bool:
        return self._families is not None and codec in self._families

    def _family(self, codec: str) -> str:
        """The family of a codec; "" when the server does not list it."""
        return (self._families or {}).get(codec, "")

    def _options(
        self,
        codec: str,
        qp: float | None,
        token_res: Sequence[int] | None,
        prefix_tokens: int | None,
        params: dict[str, Any],
    ) -> CompressOptions:
        return CompressOptions(
            codec=codec, qp=qp, token_res=token_res, prefix_tokens=prefix_tokens, params=params, family_of=self._family
        )

    def _ledger(
        self, look_ahead: int, look_ahead_bytes: int, ordered: bool, progress: ProgressCallback | None
    ) -> Ledger[Any, Any, Any]:
        return Ledger(
            target=self.target,
            look_ahead=look_ahead,
            look_ahead_bytes=look_ahead_bytes,
            ordered=ordered,
            policy=self.retry,
            contact=self._contact,
            progress=progress,
        )
