"""TLS files and tokens, read again when they change. No secret of theirs is in any repr, message or traceback."""

from __future__ import annotations

import re
import ssl
import threading
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import grpc

from mpcompress_client.errors import InvalidRequestError

_MAX_TOKEN = 16384
_MAX_PATH = 1024
_PEM_START = "-----BEGIN "
_TOKEN = re.compile(r"[\x21-\x7e]+")

Pem = str | PathLike[str] | bytes
# Time of change, size and inode of a file: another one has others.
_Stamp = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """TLS towards a server; with `cert` and `key` mutual TLS.

    Args:
        ca: authorities to trust: a PEM file, or its bytes. None: those of the system.
        cert: this client's certificate chain, likewise.
        key: its private key, likewise; never shown.
        server_name: the name in the server's certificate, when it is not the host of the target.

    Raises:
        InvalidRequestError: a certificate without a key, or a key without a certificate.
    """

    ca: Pem | None = field(default=None, repr=False)
    cert: Pem | None = field(default=None, repr=False)
    key: Pem | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidRequestError("mutual TLS needs both cert and key", field="tls")

    def credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises InvalidRequestError for what cannot be read, is no PEM, or for another's key."""
        _check_pair(self.cert, self.key)
        return grpc.ssl_channel_credentials(
            root_certificates=_pem(self.ca, "tls.ca"),
            private_key=_pem(self.key, "tls.key"),
            certificate_chain=_pem(self.cert, "tls.cert"),
        )


class Certificates:
    """The channel credentials of a `TlsConfig`; its files are read again when one of them changes. Never shown."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._seen = self._stamps()
        self.credentials = config.credentials()

    def renew(self) -> bool:
        """Reads files that have changed; True when `credentials` are new.

        While files are missing or do not fit together (the certificate is replaced, its key is not yet) the
        credentials from before stay, and the next call looks again.
        """
        seen = self._stamps()
        if seen == self._seen:
            return False
        try:
            self.credentials = self._config.credentials()
        except InvalidRequestError:
            return False
        self._seen = seen
        return True

    def _stamps(self) -> list[_Stamp | None]:
        return [_stamp(source) for source in (self._config.ca, self._config.cert, self._config.key)]


class Token:
    """A bearer token, or a file with one that is read again when it changes. Never shown."""

    def __init__(self, token: str | None, path: str | PathLike[str] | None) -> None:
        self._path = None if path is None else Path(path)
        self._seen: _Stamp | None = None
        self._lock = threading.Lock()
        self._value = "" if token is None else _checked(token, "token")
        self.metadata()

    def __repr__(self) -> str:
        return f"Token({'...' if self._path is None else str(self._path)})"

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What a call carries. Raises InvalidRequestError when the file is gone or holds no token."""
        if self._path is not None:
            with self._lock:
                self._refresh(self._path)
        return (("authorization", f"Bearer {self._value}"),)

    def _refresh(self, path: Path) -> None:
        try:
            seen = _stamp(path)
            if seen is not None and seen == self._seen:
                return
            text = path.read_text("utf-8") if path.stat().st_size <= _MAX_TOKEN else ""
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise InvalidRequestError(f"cannot read the token file {path}: {reason}", field="token_file") from None
        self._value, self._seen = _checked(text.strip(), f"the token file {path}"), seen


def _stamp(source: Pem | None) -> _Stamp | None:
    """What changes when a file does; None for what is no file."""
    if source is None or isinstance(source, bytes) or _is_pem(source):
        return None
    try:
        stat = Path(source).stat()
    except (OSError, TypeError, ValueError):
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _is_pem(source: Pem) -> bool:
    return isinstance(source, bytes) or (isinstance(source, str) and _PEM_START in source)


def _check_pair(cert: Pem | None, key: Pem | None) -> None:
    """Raises InvalidRequestError for files that hold a certificate and another one's key; gRPC would only hang up."""
    if cert is None or key is None or _is_pem(cert) or _is_pem(key):
        return
    for source, name in ((cert, "tls.cert"), (key, "tls.key")):
        _pem(source, name)
    try:
        # A key with a password asks for it on the terminal, unless it is told one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(Path(str(cert)), Path(str(key)), password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or "they cannot be used"
        raise InvalidRequestError(
            f"tls.cert {str(cert)!r} and tls.key {str(key)!r} do not fit together ({reason}); a key is unencrypted PEM",
            field="tls.key",
        ) from None


def _checked(token: Any, what: str) -> str:
    """A token that can travel; it is never repeated in a message."""
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise InvalidRequestError(
            f"{what} is empty, too long, or holds spaces or characters beyond ASCII", field="token"
        )
    return token


def _pem(source: Pem | None, name: str) -> bytes | None:
    if source is None:
        return None
    if isinstance(source, str) and _PEM_START in source:
        source = source.encode()
    if isinstance(source, bytes):
        data, where = source, "its bytes"
    else:
        # What is no path may be a key: it is not repeated.
        where = repr(str(source)) if len(str(source)) <= _MAX_PATH and "\n" not in str(source) else "what was passed"
        try:
            data = Path(source).read_bytes()
        except (OSError, TypeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no path"
            raise InvalidRequestError(f"cannot read {name}, {where}: {reason}", field=name) from None
    if _PEM_START.encode() not in data:
        raise InvalidRequestError(f"{name}: {where} hold no PEM", field=name)
    return data
