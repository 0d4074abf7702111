"""Bearer tokens: who calls, and which codecs the caller may use.

The token file has one line per token; blank lines and lines that begin with # say nothing:

    NAME:TOKEN:CODECS            edge-7:sha256-9f86d0818...:klt-*,vit-union-small
                                 operator:n0t-a-good-token:*,@admin

TOKEN is the token, at least 16 characters of RFC 6750's alphabet, or ``sha256-`` and the 64 hex digits of its SHA-256.
CODECS are codec ids or patterns with ``*`` and ``?``, separated by commas; ``@admin`` allows administration.
A token authenticates a call; each item is then held to the line as the file has it at that moment.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import grpc
import structlog

from mpcompress.errors import CodecMismatchError, UnknownCodecError
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.codecs import CodecSet, LoadedCodec
from mpcompress_server.errors import PermissionDeniedError, UnauthenticatedError, abort
from mpcompress_server.routing import Route, Router
from mpcompress_server.servicer import request_id_of
from mpcompress_server.settings import SettingsError

_log = structlog.get_logger("mpcompress_server.auth")

ADMIN = "@admin"
# Probes of an orchestrator cannot carry a token; health tells nothing but that a codec id is served.
OPEN_SERVICES = ("grpc.health.v1.Health",)
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,4096}=*")
_HASH = re.compile(r"sha256-([0-9a-fA-F]{64})")
_GLOB = re.compile(r"[a-z0-9._*?-]{1,64}")
_SCHEME = "bearer "


@dataclass(frozen=True, kw_only=True)
class Grant:
    """One line of the token file. `digest`: SHA-256 of the token; the token itself is not kept."""

    name: str
    digest: bytes = field(repr=False)
    codecs: tuple[str, ...]
    admin: bool = False

    def allows(self, codec_id: str) -> bool:
        """Whether the caller may use a codec."""
        return any(fnmatchcase(codec_id, pattern) for pattern in self.codecs)


_CALLER: ContextVar[Grant | None] = ContextVar("mpcompress_caller", default=None)


def read_tokens(path: Path) -> list[Grant]:
    """Reads a token file. Raises SettingsError that names the line and never shows it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise SettingsError(f"auth.tokens: {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"auth.tokens: {path}: not UTF-8") from error
    grants: list[Grant] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            grant = _grant(line.strip(), f"auth.tokens: {path}, line {number}")
            if any(grant.digest == other.digest for other in grants):
                raise SettingsError(f"auth.tokens: {path}, line {number}: this token is there twice")
            grants.append(grant)
    return grants


def _grant(line: str, where: str) -> Grant:
    name, *rest = line.split(":")
    if len(rest) != 2 or not _NAME.fullmatch(name):
        raise SettingsError(f"{where}: not NAME:TOKEN:CODECS")
    token, patterns = rest[0], [part.strip() for part in rest[1].split(",")]
    known = _HASH.fullmatch(token)
    if known is None and (token.startswith("sha256-") or not _TOKEN.fullmatch(token)):
        raise SettingsError(
            f"{where}: the token is neither 16 or more characters of A-Z a-z 0-9 . _ ~ + / - nor a hash"
        )
    digest = bytes.fromhex(known.group(1)) if known else hashlib.sha256(token.encode()).digest()
    for pattern in patterns:
        if pattern != ADMIN and not _GLOB.fullmatch(pattern):
            raise SettingsError(f"{where}: the codecs after the second colon are no ids or patterns")
    codecs = tuple(pattern for pattern in patterns if pattern != ADMIN)
    return Grant(name=name, digest=digest, codecs=codecs, admin=ADMIN in patterns)


class Tokens:
    """The token file as it is now. A change that cannot be read leaves the tokens as they were.

    Args:
        path: of the file.

    Raises:
        SettingsError: at start, a file that cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._signature = self._look()
        self._grants = read_tokens(path)
        if path.stat().st_mode & 0o006:
            _log.warning("others on this machine can read or change the token file", path=str(path))

    def __len__(self) -> int:
        return len(self._grants)

    def find(self, token: str) -> Grant | None:
        """The grant of a token. Takes as long for a wrong token as for a right one."""
        self._refresh()
        return self._of_digest(hashlib.sha256(token.encode("utf-8", "replace")).digest())

    def still(self, grant: Grant) -> Grant | None:
        """What a caller of an earlier check may do now; None when its token is gone."""
        self._refresh()
        return self._of_digest(grant.digest)

    def _of_digest(self, digest: bytes) -> Grant | None:
        found = None
        for grant in self._grants:
            if hmac.compare_digest(grant.digest, digest):
                found = grant
        return found

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _refresh(self) -> None:
        """A stat per check costs microseconds; a revoked token must not work until some timer fires."""
        signature = self._look()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._grants = read_tokens(self._path)
        except SettingsError as error:
            _log.error("tokens not reloaded: those from before stay", error=str(error))
        else:
            _log.info("tokens reloaded", tokens=len(self._grants))


class AuthInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Lets calls with a known token through and says for the rest of the call whose it is.

    Args:
        tokens: the known ones.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Called by gRPC for each call, in that call's own context."""
        handler = await continuation(handler_call_details)
        service = handler_call_details.method.strip("/").rpartition("/")[0]
        if handler is None or service in OPEN_SERVICES:
            return handler
        token = bearer_token(handler_call_details.invocation_metadata or ())
        grant = self._tokens.find(token) if token else None
        if grant is None:
            why = "the token is not known here" if token else "this server needs a bearer token"
            return _refusal(handler, UnauthenticatedError(why))
        # gRPC runs the handler in this same task. Were it ever to change that, nobody would be allowed anything.
        _CALLER.set(grant)
        return handler


def bearer_token(metadata: Any) -> str:
    """The token of a call's metadata; "" when there is none, or more than one."""
    values = [value for key, value in metadata if key == "authorization"]
    if len(values) != 1 or not isinstance(values[0], str) or values[0][: len(_SCHEME)].lower() != _SCHEME:
        return ""
    return values[0][len(_SCHEME) :].strip()


def _refusal(handler: Any, error: UnauthenticatedError) -> grpc.RpcMethodHandler[Any, Any]:
    kind = ("stream" if handler.request_streaming else "unary") + (
        "_stream" if handler.response_streaming else "_unary"
    )

    async def refuse(_request: Any, context: Any) -> None:
        request_id = request_id_of(context)
        _log.info("call refused", request_id=request_id, reason="UNAUTHENTICATED", peer=context.peer())
        await abort(context, error, request_id)

    refusal: grpc.RpcMethodHandler[Any, Any] = handler._replace(**{kind: refuse})
    return refusal


class GuardedRouter(Router):
    """A router that shows each caller its own codecs and refuses it all others.

    Args:
        codecs: the codecs of this server.
        tokens: what the callers may do.
    """

    def __init__(self, codecs: CodecSet, tokens: Tokens) -> None:
        super().__init__(codecs)
        self._tokens = tokens

    def visible(self) -> list[LoadedCodec]:
        """The caller's codecs."""
        return [loaded for loaded in self.codecs if self._allows(loaded.id)]

    def for_compress(self, codec_id: str) -> Route:
        """As Router; raises PermissionDeniedError, also for codecs that do not exist: the caller learns neither."""
        self._check(codec_id, "codec_id")
        return super().for_compress(codec_id)

    def for_unit(self, header: pb.CodedUnitHeader) -> Route:
        """As Router, for the codec that would decode the unit, whatever the unit calls it."""
        try:
            route = super().for_unit(header)
        except (UnknownCodecError, CodecMismatchError):
            self._check(header.codec_id, "unit.codec_id")
            raise
        self._check(route.loaded.id, "unit.codec_id")
        return route

    def _check(self, codec_id: str, culprit: str) -> None:
        if not self._allows(codec_id):
            raise PermissionDeniedError(f"this token is not for codec {codec_id[:64]!r}", field=culprit)

    def _allows(self, codec_id: str) -> bool:
        caller = _CALLER.get()
        grant = self._tokens.still(caller) if caller is not None else None
        return grant is not None and grant.allows(codec_id)


def may_administrate(tokens: Tokens) -> bool:
    """Whether the caller of the running call may administrate the server."""
    caller = _CALLER.get()
    grant = tokens.still(caller) if caller is not None else None
    return grant is not None and grant.admin
