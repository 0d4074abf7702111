"""Where another server is that has codecs of ours, and how to talk to it: the options of a codec of family `remote`.

[[codecs]]
id = "vtm-*"
family = "remote"

[codecs.options]
target = "dns:///vtm-worker:50051"
ca = "workers.pem"                      # paths are relative to the settings file
token_file = "worker.token"
"""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from mpcompress_server.sections import Seconds, Section, is_private

REMOTE_FILES = ("ca", "cert", "key", "token_file")
_ADDRESS = r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/,\s]+):\d{1,5}"
_HOST_PORT = r"([^/\s]+)"
_TARGET = re.compile(rf"unix:\S+|(dns://{_HOST_PORT}?/)?{_ADDRESS}|ipv[46]:{_ADDRESS}(,{_ADDRESS})*")


class RemoteOptions(Section):
    """Another server. Entries with equal options share its connections."""

    target: str
    """HOST:PORT, dns:///HOST:PORT (dns://SERVER/HOST:PORT asks that name server), ipv4:A:PORT,B:PORT or unix:PATH.

    Items go to all addresses of a name in turn.
    """
    tls: bool = False
    """Talk TLS and trust the system's authorities; `ca` and `cert` say so as well."""
    ca: str | None = None
    """PEM: authorities of its certificate."""
    cert: str | None = None
    """PEM: our certificate (mutual TLS)."""
    key: str | None = None
    """PEM: its private key."""
    server_name: str | None = None
    """The name in its certificate, when that is not the target's host."""
    token_file: str | None = None
    """File with our bearer token, read again when it changes."""
    allow_plaintext: bool = False
    """Send the token without TLS to a server that is not on this machine."""
    attempts: int = Field(default=4, ge=1, le=100)
    """How often an item is sent, to one worker after the other, before its client hears of the loss."""
    patience_s: Seconds = 15.0
    """How long an item waits for any worker to be reachable."""

    @field_validator("target")
    @classmethod
    def _address(cls, value: str) -> str:
        if _TARGET.fullmatch(value) is None:
            raise ValueError(f"{value!r} is no HOST:PORT, dns:///HOST:PORT, ipv4:A:PORT,B:PORT or unix:PATH")
        return value

    @model_validator(mode="after")
    def _complete(self) -> RemoteOptions:
        if (self.cert is None) != (self.key is None):
            raise ValueError("mutual TLS needs both cert and key")
        if self.server_name is not None and not self.secure:
            raise ValueError("server_name without TLS: give ca, or tls = true")
        private = is_private(self.target.removeprefix("dns:///").removeprefix("ipv4:").removeprefix("ipv6:"))
        if self.token_file is not None and not (self.secure or private or self.allow_plaintext):
            raise ValueError(
                "the token would travel unencrypted; give ca or tls = true, or set allow_plaintext = true where "
                "nobody else can listen"
            )
        return self

    @property
    def secure(self) -> bool:
        """Whether it is talked to over TLS."""
        return self.tls or self.ca is not None or self.cert is not None

    def stamps(self) -> tuple[tuple[int, int, int] | None, ...]:
        """What changes when a certificate or key is replaced; a token is read for every call anyway."""
        return tuple(_stamp(path) for path in (self.ca, self.cert, self.key) if path is not None)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
