"""Sections of the settings about the network: who may connect, how long, and where metrics are read.

[tls]                                   # paths are relative to the settings file
cert = "server.pem"
key = "server.key"
client_ca = "clients.pem"               # mutual TLS

[auth]
tokens = "tokens.txt"                   # docs/secure.md

[metrics]
listen = "127.0.0.1:9464"
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
LongSeconds = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
_LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|\[::1\]|\[0*(:0*)*:0*1\]")


class Section(BaseModel):
    """A table of the settings: no unknown keys, no later changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Tls(Section):
    """TLS of the listener. The files are read again when they change: renewed certificates need no restart."""

    cert: str | None = None
    """PEM: the server's certificate and those between it and its authority. Absent: plaintext."""
    key: str | None = None
    """PEM: its private key, unencrypted."""
    client_ca: str | None = None
    """PEM: authorities of client certificates. Present: clients must have one (mutual TLS)."""

    @model_validator(mode="after")
    def _complete(self) -> Tls:
        if (self.cert is None) != (self.key is None):
            raise ValueError(f"{'key' if self.key is None else 'cert'} is missing: TLS needs both cert and key")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca without cert and key: there is no mutual TLS without TLS")
        return self

    @property
    def enabled(self) -> bool:
        """Whether the listener speaks TLS."""
        return self.cert is not None


class Auth(Section):
    """Who may call."""

    tokens: str | None = None
    """File of bearer tokens, read again when it changes. Absent: everyone who can connect may do everything."""
    allow_plaintext: bool = False
    """Take tokens on a listener that others can reach without TLS; for a TLS proxy in front of it."""


class Connections(Section):
    """What one connection may do."""

    keepalive_time_s: Seconds = 60.0
    """A connection without traffic is asked for a sign of life this often."""
    keepalive_timeout_s: Seconds = 20.0
    """... and closed when none comes within this time."""
    min_ping_interval_s: Seconds = 10.0
    """Clients that ping more often are sent away (GOAWAY, too_many_pings)."""
    max_metadata_bytes: int = Field(default=16384, ge=1024, le=1 << 20)
    """Metadata of one call, the token included."""
    max_age_s: LongSeconds = 0.0
    """A connection this old (and up to 10 % more or less) takes no new calls, so that clients spread; 0: no bound."""
    max_age_grace_s: LongSeconds = 600.0
    """Its open calls are ended after this further time."""
    max_idle_s: LongSeconds = 0.0
    """A connection without calls for this long is closed; 0: no bound."""
    max_calls: int = Field(default=1024, ge=1, le=1_000_000)
    """Open calls of one connection; further ones wait at the client."""

    def options(self) -> list[tuple[str, Any]]:
        """The same for gRPC."""
        options: list[tuple[str, Any]] = [
            ("grpc.keepalive_time_ms", _ms(self.keepalive_time_s)),
            ("grpc.keepalive_timeout_ms", _ms(self.keepalive_timeout_s)),
            # How long gRPC waits for the answer to a ping, by itself a minute; and it would ask an idle connection
            # twice and then once a minute.
            ("grpc.http2.ping_timeout_ms", _ms(self.keepalive_timeout_s)),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.http2.min_ping_interval_without_data_ms", _ms(self.min_ping_interval_s)),
            # Below the soft bound all is well, above the hard one nothing: between them gRPC would refuse by chance.
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            ("grpc.max_concurrent_streams", self.max_calls),
        ]
        if self.max_age_s:
            options += [
                ("grpc.max_connection_age_ms", _ms(self.max_age_s)),
                ("grpc.max_connection_age_grace_ms", _ms(self.max_age_grace_s)),
            ]
        if self.max_idle_s:
            options.append(("grpc.max_connection_idle_ms", _ms(self.max_idle_s)))
        return options


class Metrics(Section):
    """Prometheus metrics over HTTP."""

    listen: str = ""
    """HOST:PORT, or :PORT for every address; port 0 takes a free one. Empty: no metrics. Without TLS or tokens."""

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]*):(\d{1,5})", value)
        if value and (match is None or int(match.group(2)) > 65535):
            raise ValueError(f"{value!r} is no HOST:PORT or :PORT")
        return value


def is_private(listen: str) -> bool:
    """Whether only this machine reaches an address: a Unix socket or a loopback address."""
    return listen.startswith("unix:") or _LOOPBACK.fullmatch(listen.rpartition(":")[0]) is not None


def under(folder: Path, section: Section, *keys: str) -> Section:
    """The section with the paths under these keys made relative to a folder."""
    paths = {key: getattr(section, key) for key in keys}
    return section.model_copy(update={key: str(folder / path) for key, path in paths.items() if path is not None})


def _ms(seconds: float) -> int:
    return max(1, round(1000 * seconds))
