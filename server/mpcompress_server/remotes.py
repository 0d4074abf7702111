"""Other servers that have codecs for this one: their connections, what they have, and whether they answer.

gRPC itself spreads calls: every address that a name has gets a connection, and every item is a call of its own on the
next of them. An address that stops answering is left out until it answers again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import grpc
import structlog

from mpcompress_proto.parcel import ParcelStub
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.errors import WorkerUnreachableError
from mpcompress_server.remote_options import RemoteOptions
from mpcompress_server.settings import SettingsError

_log = structlog.get_logger("mpcompress_server.remotes")

_REFRESH_S = 5.0
_CALL_S = 5.0
_LOOK_S = 0.25
_LOOK_OFTEN_S = 0.05
# A server that has just started knows what its workers have, when they answer at all.
_PATIENCE_AT_START_S = 3.0
_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", _ROUND_ROBIN),
    # Resubmission is ours: it knows what an item is. gRPC's own would count what was already sent against its buffers.
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", 8 << 20),
    # As the listener: what no limit counts stays small.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 18),
    # A worker that vanished without a word is noticed while an item waits for it, however long that takes.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.dns_min_time_between_resolutions_ms", 2_000),
    # Two entries with other credentials for the same address are two connections.
    ("grpc.use_local_subchannel_pool", 1),
]


class RemoteServer:
    """One target. Made in a running event loop.

    Args:
        options: how to reach it.
        on_change: called in the event loop when what it has, or whether it can be reached, has changed.

    Raises:
        SettingsError: a file that cannot be used, by its option.
    """

    def __init__(self, options: RemoteOptions, on_change: Callable[[], None]) -> None:
        self.options = options
        self.codecs: dict[str, pb.CodecInfo] = {}
        """What it has, as it last said."""
        self.limits = pb.ServerLimits()
        self._on_change = on_change
        self._token_file = Path(options.token_file) if options.token_file is not None else None
        self.metadata()
        self._channel = _channel(options)
        self.stub: Any = ParcelStub(self._channel)
        self._connected = asyncio.Event()
        self._ask_now = asyncio.Event()
        self.asked = asyncio.Event()
        """Set when it was asked once, whether it answered or not."""
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._watch())]

    @property
    def reachable(self) -> bool:
        """Whether at least one of its addresses answers and has said what it has."""
        return self._connected.is_set() and bool(self.codecs)

    def unreachable(self) -> WorkerUnreachableError:
        """The error for an item that found nobody."""
        return WorkerUnreachableError("no worker for this codec can be reached at the moment")

    def metadata(self) -> list[tuple[str, str]]:
        """What every call carries. Raises SettingsError for a token file that cannot be used."""
        if self._token_file is None:
            return []
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"options.token_file: {self._token_file}: cannot be read") from error
        if not token or not token.isprintable() or " " in token:
            raise SettingsError(f"options.token_file: {self._token_file}: not one token")
        return [("authorization", f"Bearer {token}")]

    async def connected(self, patience_s: float) -> None:
        """Waits until an address answers. Raises WorkerUnreachableError when none does in time."""
        self._look()
        try:
            async with asyncio.timeout(patience_s):
                await self._connected.wait()
        except TimeoutError:
            raise self.unreachable() from None

    async def wait_until_asked(self) -> None:
        """Gives it a moment to say what it has; a worker that is not there is no reason not to start."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_AT_START_S):
                await self.asked.wait()

    async def close(self) -> None:
        """Closes the connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close(None)

    async def _follow(self) -> None:
        """Looks at the channel's state now and then: gRPC cannot be made to forget one who waits for it to change."""
        while True:
            self._look()
            await asyncio.sleep(_LOOK_S if self._connected.is_set() else _LOOK_OFTEN_S)

    def _look(self) -> None:
        connected = self._channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY
        if connected == self._connected.is_set():
            return
        if connected:
            self._connected.set()
        else:
            self._connected.clear()
            _log.warning("no worker can be reached", target=self.options.target)
        self._ask_now.set()
        self._on_change()

    async def _watch(self) -> None:
        while True:
            self._ask_now.clear()
            try:
                answer = await self.stub.ListCodecs(pb.ListCodecsRequest(), timeout=_CALL_S, metadata=self.metadata())
            except (grpc.aio.AioRpcError, SettingsError) as error:
                what = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
                _log.info("a worker does not say what it has", target=self.options.target, error=what)
            else:
                self._look()  # whoever answers is connected
                self._learn(answer)
            self.asked.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S):
                    await self._ask_now.wait()

    def _learn(self, answer: pb.ListCodecsResponse) -> None:
        self.limits = answer.limits
        codecs = {info.codec_id: info for info in answer.codecs}
        if codecs != self.codecs:
            self.codecs = codecs
            _log.info("workers have", target=self.options.target, codecs=sorted(codecs))
            self._on_change()


class RemoteServers:
    """The connections of a server's remote codecs: entries with equal options, and files, share one.

    Args:
        on_change: called in the event loop when something has changed at any of them.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._open: dict[Hashable, tuple[RemoteServer, int]] = {}

    def open(self, options: RemoteOptions) -> RemoteServer:
        """The server for these options; to be given back by `close`. Raises SettingsError."""
        key = options, options.stamps()
        server, users = self._open.get(key) or (RemoteServer(options, self._on_change), 0)
        self._open[key] = server, users + 1
        return server

    async def close(self, server: RemoteServer) -> None:
        """One user less; the last one closes the connections."""
        key, users = next((key, users) for key, (known, users) in self._open.items() if known is server)
        if users > 1:
            self._open[key] = server, users - 1
            return
        del self._open[key]
        await server.close()


def _channel(options: RemoteOptions) -> grpc.aio.Channel:
    arguments = list(_OPTIONS)
    if options.server_name is not None:
        arguments.append(("grpc.ssl_target_name_override", options.server_name))
    if not options.secure:
        return grpc.aio.insecure_channel(options.target, options=arguments)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=_pem(options, "ca"),
        private_key=_pem(options, "key"),
        certificate_chain=_pem(options, "cert"),
    )
    return grpc.aio.secure_channel(options.target, credentials, options=arguments)


def _pem(options: RemoteOptions, key: str) -> bytes | None:
    path: str | None = getattr(options, key)
    if path is None:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"options.{key}: {path}: {error.strerror or error}") from error
    if b"-----BEGIN " not in content:
        raise SettingsError(f"options.{key}: {path}: no PEM in it")
    return content
