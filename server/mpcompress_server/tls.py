"""TLS of the listener: checked at start with the key named, read again when a file changes."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
import structlog

from mpcompress_server.sections import Tls
from mpcompress_server.settings import SettingsError

_log = structlog.get_logger("mpcompress_server.tls")

Signature = tuple[tuple[int, int, int], ...]


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Credentials that follow their files: each handshake uses the newest pair that fits together.

    Args:
        tls: with cert and key.

    Raises:
        SettingsError: a file that cannot be read or holds something else, naming its key.
    """
    files = _Files(tls)
    return grpc.dynamic_ssl_server_credentials(
        files.configuration,
        files.renewed,  # type: ignore[arg-type]  # the stubs do not know that None means unchanged
        require_client_authentication=tls.client_ca is not None,
    )


class _Files:
    """The certificate files and what was last read from them."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self._signature = self._look()
        self.configuration = _read(tls)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC at every handshake, in a thread of its own choice; None: as before."""
        try:
            signature = self._look()
            if signature == self._signature:
                return None
            # Also after a failure: not again before the next change. Files that are replaced one after the other
            # may not fit together in between.
            self._signature = signature
            self.configuration = _read(self._tls)
        except SettingsError as error:
            _log.error("certificate not renewed", error=str(error))
            return None
        _log.info("certificate renewed")
        return self.configuration

    def _look(self) -> Signature:
        found = []
        for key in ("cert", "key", "client_ca"):
            path = getattr(self._tls, key)
            if path is not None:
                try:
                    status = Path(path).stat()
                except OSError as error:
                    raise SettingsError(f"tls.{key}: {path}: {error.strerror or error}") from error
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)


def _read(tls: Tls) -> grpc.ServerCertificateConfiguration:
    cert, key = _pem(tls.cert, "cert"), _pem(tls.key, "key")
    _check(tls)
    client_ca = _pem(tls.client_ca, "client_ca") if tls.client_ca is not None else None
    return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)


def _pem(path: str | None, key: str) -> bytes:
    assert path is not None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"tls.{key}: {path}: {error.strerror or error}") from error
    wanted = b"PRIVATE KEY-----" if key == "key" else b"-----BEGIN CERTIFICATE-----"
    if wanted not in content:
        what = "private key" if key == "key" else "certificate"
        raise SettingsError(f"tls.{key}: {path}: no {what} in PEM format")
    if key == "key" and b"ENCRYPTED" in content:
        raise SettingsError(f"tls.key: {path}: the key is encrypted; the server cannot ask for its password")
    return content


def _check(tls: Tls) -> None:
    """What gRPC would only report as a listener that does not come up."""
    assert tls.cert is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(tls.cert, tls.key)
    except (ssl.SSLError, OSError) as error:
        raise SettingsError(f"tls.key: {tls.key}: not the key of the certificate {tls.cert}") from error
    if tls.client_ca is not None:
        try:
            context.load_verify_locations(tls.client_ca)
        except (ssl.SSLError, OSError) as error:
            raise SettingsError(f"tls.client_ca: {tls.client_ca}: no usable certificate in it") from error
