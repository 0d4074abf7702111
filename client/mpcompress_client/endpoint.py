"""Where a server is and how to talk to it: address, TLS, token, channel options; from arguments or the environment.

    MPCOMPRESS_TARGET         address, as `target`
    MPCOMPRESS_TIMEOUT_S      time limit of each item and call, seconds, as `timeout_s`
    MPCOMPRESS_TLS_CA         PEM file with the authorities to trust, or "system"; setting it turns TLS on
    MPCOMPRESS_TLS_CERT       PEM file with this client's certificate chain (mTLS)
    MPCOMPRESS_TLS_KEY        PEM file with its private key; the three are read again when they change
    MPCOMPRESS_TLS_NAME       the name in the server's certificate, when it is not the host of the address
    MPCOMPRESS_TOKEN_FILE     file with a bearer token; read again when it changes

What is passed as an argument is not looked up in the environment. An empty variable counts as absent.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import grpc

from mpcompress_client.calls import DEFAULT_TIMEOUT_S
from mpcompress_client.credentials import Certificates, TlsConfig, Token
from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.items import check_timeout
from mpcompress_client.retry import RetryPolicy, service_config

DEFAULT_TARGET = "127.0.0.1:50051"
_PREFIX = "MPCOMPRESS_"
SYSTEM = "system"

_CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # A peer that vanished without a word is noticed while a call waits, within half of an item's usual time limit, so
    # that the item can go elsewhere; every server of ours takes a ping each 10 s. gRPC waits for the answer to a ping
    # as long as ping_timeout says, a minute by itself, and after two pings without data asks once a minute only.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own 1 s and 120 s are long for an edge device whose server restarts.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 5_000),
    # A codec list and chunks of 1 MiB are all that comes.
    ("grpc.max_receive_message_length", 8 << 20),
)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server as a client sees it; `resolve` makes it."""

    target: str
    timeout_s: float
    given_credentials: grpc.ChannelCredentials | None = field(repr=False)
    certificates: Certificates | None = field(repr=False)
    token: Token | None = field(repr=False)
    options: tuple[tuple[str, Any], ...] = field(repr=False)

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """What a new channel takes; None for plain text."""
        return self.given_credentials if self.certificates is None else self.certificates.credentials

    def renew(self) -> bool:
        """Reads certificate files that have changed; True when a new channel would take others than the last."""
        return self.certificates is not None and self.certificates.renew()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call carries."""
        return () if self.token is None else self.token.metadata()


def resolve(
    *,
    target: str | None,
    timeout_s: float | None,
    tls: TlsConfig | bool | None,
    credentials: grpc.ChannelCredentials | None,
    token: str | None,
    token_file: str | PathLike[str] | None,
    own_channel: bool,
    options: Sequence[tuple[str, Any]],
    policy: RetryPolicy,
    environment: Mapping[str, str] | None = None,
) -> Endpoint:
    """The endpoint for a client's arguments, completed from the environment.

    Args:
        target: as in `Connection`, as the others up to `token_file`.
        timeout_s: seconds.
        tls: True for the system's authorities, False for plain text whatever the environment says.
        credentials: instead of `tls`.
        token: at most one of token and token_file.
        token_file: see `token`.
        own_channel: the user brings a channel; then neither TLS nor a token come from here.
        options: channel options; they win over ours.
        policy: goes into the channel's service config.
        environment: os.environ when None.

    Raises:
        InvalidRequestError: saying which argument or variable, and what to do.
    """
    variables = os.environ if environment is None else environment
    env = {name.removeprefix(_PREFIX): value for name, value in variables.items() if name.startswith(_PREFIX) and value}
    address = check_target(env.get("TARGET", DEFAULT_TARGET) if target is None else target)
    limit_s = _time_limit(timeout_s, env.get("TIMEOUT_S"))
    if own_channel:
        if tls or credentials or token or token_file:
            raise InvalidRequestError("a channel comes with its own TLS and token: pass either", field="channel")
        return Endpoint(
            target=address, timeout_s=limit_s, given_credentials=None, certificates=None, token=None, options=()
        )
    if credentials is not None and tls is not None:
        raise InvalidRequestError("pass tls or credentials, not both", field="tls")
    config = _tls(tls, env) if credentials is None else None
    channel_options = dict(_CHANNEL_OPTIONS)
    channel_options["grpc.service_config"] = service_config(policy)
    channel_options["grpc.enable_retries"] = int(policy.on)
    certificates = None if config is None else Certificates(config)
    if config is not None and config.server_name is not None:
        channel_options["grpc.ssl_target_name_override"] = config.server_name
    bearer = _token(token, token_file, env)
    if bearer is not None and credentials is None and certificates is None:
        if not is_loopback(address):
            raise InvalidRequestError(
                f"a token is not sent to {address} in plain text: use TLS (tls=TlsConfig(ca=...) or {_PREFIX}TLS_CA)",
                field="token",
            )
        # A proxy would be neither TLS nor loopback.
        channel_options["grpc.enable_http_proxy"] = 0
    channel_options.update(options)
    return Endpoint(
        target=address,
        timeout_s=limit_s,
        given_credentials=credentials,
        certificates=certificates,
        token=bearer,
        options=tuple(channel_options.items()),
    )


def check_target(target: Any) -> str:
    """An address to connect to. Raises InvalidRequestError."""
    if not isinstance(target, str) or not target.strip():
        raise InvalidRequestError(f'the target is an address such as "127.0.0.1:50051", not {target!r}', field="target")
    scheme, separator, rest = target.partition("://")
    if separator and scheme.lower() in ("http", "https", "grpc", "grpcs"):
        advice = " and tls=True" if scheme.lower().endswith("s") else ""
        raise InvalidRequestError(
            f"the target is HOST:PORT, without {scheme}://: use {rest.rstrip('/')!r}{advice}", field="target"
        )
    return target


def is_loopback(target: str) -> bool:
    """Whether an address cannot leave this machine."""
    scheme, separator, rest = target.partition(":")
    if separator and scheme in ("unix", "unix-abstract"):
        return True
    if separator and scheme in ("ipv4", "ipv6"):
        return all(_is_loopback_host(_host(part)) for part in rest.split(","))
    if separator and scheme == "dns":
        # dns:///host:port, or dns:host:port; with an authority a foreign name server decides.
        rest = rest[3:] if rest.startswith("///") else rest
        return not rest.startswith("//") and _is_loopback_host(_host(rest))
    return _is_loopback_host(_host(target))


def _host(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _is_loopback_host(host: str) -> bool:
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _time_limit(timeout_s: float | None, variable: str | None) -> float:
    if timeout_s is not None:
        return check_timeout(timeout_s)
    if variable is None:
        return DEFAULT_TIMEOUT_S
    try:
        return check_timeout(variable)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{_PREFIX}TIMEOUT_S: {error.message}", field="timeout") from error


def _tls(tls: TlsConfig | bool | None, env: Mapping[str, str]) -> TlsConfig | None:
    if isinstance(tls, TlsConfig):
        return tls
    if tls is not None:
        if not isinstance(tls, bool):
            raise InvalidRequestError(f"tls is a TlsConfig, True or False, not a {type(tls).__name__}", field="tls")
        return TlsConfig() if tls else None
    ca, cert, key, name = (env.get(f"TLS_{name}") for name in ("CA", "CERT", "KEY", "NAME"))
    if ca is None:
        if cert or key or name:
            raise InvalidRequestError(
                f"{_PREFIX}TLS_CERT, {_PREFIX}TLS_KEY and {_PREFIX}TLS_NAME need {_PREFIX}TLS_CA: a PEM file, or "
                f"{SYSTEM!r} for the system's authorities",
                field="tls",
            )
        return None
    try:
        return TlsConfig(ca=None if ca == SYSTEM else ca, cert=cert, key=key, server_name=name)
    except InvalidRequestError as error:
        raise InvalidRequestError(
            f"mutual TLS needs both {_PREFIX}TLS_CERT and {_PREFIX}TLS_KEY", field="tls"
        ) from error


def _token(token: str | None, token_file: str | PathLike[str] | None, env: Mapping[str, str]) -> Token | None:
    if token is not None and token_file is not None:
        raise InvalidRequestError("pass token or token_file, not both", field="token")
    if token is None and token_file is None:
        token_file = env.get("TOKEN_FILE")
    return None if token is None and token_file is None else Token(token, token_file)
