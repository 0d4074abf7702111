"""The options that say which server a command talks to, and how; they make one `Server`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from mpcompress_client.calls import DEFAULT_TIMEOUT_S
from mpcompress_client.client import CompressionClient
from mpcompress_client.credentials import TlsConfig
from mpcompress_client.endpoint import DEFAULT_TARGET, SYSTEM

Function = TypeVar("Function", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, readable=True)


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server of a command.

    Args:
        target: its address.
        timeout_s: time limit of each item, seconds.
        tls: as the options say; None: plain text.
        token_file: file with a bearer token, or None.
        named: whether the user named the server, by option or variable; nobody asked for the default.
    """

    target: str
    timeout_s: float
    tls: TlsConfig | None
    token_file: str | None = field(repr=False)
    named: bool

    def connect(self) -> CompressionClient:
        """A client of it. Raises InvalidRequestError."""
        return CompressionClient(self.target, timeout_s=self.timeout_s, tls=self.tls, token_file=self.token_file)

    @contextmanager
    def if_named(self) -> Iterator[CompressionClient | None]:
        """A client of it for `--local`, where only a server that the user named may give codecs; else None."""
        if not self.named:
            yield None
            return
        with self.connect() as client:
            yield client


def _authorities(text: str) -> str:
    """A PEM file, or "system"."""
    if text != SYSTEM and not Path(text).is_file():
        raise click.BadParameter(f"there is no file {text!r}; {SYSTEM!r} trusts the authorities of this system")
    return text


def _option(name: str, variable: str, **arguments: Any) -> Callable[[Function], Function]:
    return click.option(name, envvar=f"MPCOMPRESS_{variable}", show_envvar=True, **arguments)


_target = _option("--target", "TARGET", metavar="HOST:PORT", default=DEFAULT_TARGET, show_default=True, help="Server.")
_timeout = _option(
    "--timeout",
    "TIMEOUT_S",
    type=click.FloatRange(min=0, min_open=True, max=1e6),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Time limit of each item.",
)
_tls = (
    _option("--tls-ca", "TLS_CA", type=_authorities, metavar="PEM", help="Talk TLS; trust these, or `system`."),
    _option("--tls-cert", "TLS_CERT", type=_FILE, metavar="PEM", help="This client's certificate (mutual TLS)."),
    _option("--tls-key", "TLS_KEY", type=_FILE, metavar="PEM", help="Its private key."),
    _option("--tls-name", "TLS_NAME", metavar="NAME", help="Name in the server's certificate, if not the host."),
)
_token_file = _option("--token-file", "TOKEN_FILE", type=_FILE, metavar="FILE", help="File with a bearer token.")
_local = click.option("--local", is_flag=True, help="Code on this device, without a server (extra `edge`).")


def target_options(function: Function) -> Function:
    """--target, --timeout, --tls-... and --token-file, as `server`."""

    @functools.wraps(function)
    def command(
        *args: Any,
        target: str,
        timeout: float,
        tls_ca: str | None,
        tls_cert: str | None,
        tls_key: str | None,
        tls_name: str | None,
        token_file: str | None,
        **rest: Any,
    ) -> Any:
        source = click.get_current_context().get_parameter_source("target")
        server = Server(
            target=target,
            timeout_s=timeout,
            tls=_config(tls_ca, tls_cert, tls_key, tls_name),
            token_file=token_file,
            named=source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT),
        )
        return function(*args, server=server, **rest)

    for option in (_token_file, *reversed(_tls), _timeout, _target):
        command = option(command)
    return command  # type: ignore[return-value] # other arguments in, the same command out


def server_options(function: Function) -> Function:
    """Those of `target_options`, and --local."""
    return target_options(_local(function))


def _config(ca: str | None, cert: str | None, key: str | None, name: str | None) -> TlsConfig | None:
    if ca is None:
        if cert or key or name:
            raise click.UsageError(f"--tls-cert, --tls-key and --tls-name need --tls-ca: a PEM file, or {SYSTEM!r}")
        return None
    if (cert is None) != (key is None):
        raise click.UsageError("mutual TLS needs both --tls-cert and --tls-key")
    return TlsConfig(ca=None if ca == SYSTEM else ca, cert=cert, key=key, server_name=name)
