"""The server as an object: start it, ask where it listens, stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mpcompress_server import allocator, tracing
from mpcompress_server.admin import ADMIN_SERVICE, AdminServicer
from mpcompress_server.auth import AuthInterceptor, GuardedRouter, Tokens
from mpcompress_server.codecs import CodecSet, load_codecs
from mpcompress_server.counters import Counters
from mpcompress_server.fleet import Fleet
from mpcompress_server.grpc_metrics import GrpcMetrics
from mpcompress_server.metrics import Metrics
from mpcompress_server.reload import Change, Reloader
from mpcompress_server.routing import Router
from mpcompress_server.servicer import MAX_MESSAGE_BYTES, SERVICE, Servicer
from mpcompress_server.settings import Settings, SettingsError
from mpcompress_server.tls import server_credentials

_log = structlog.get_logger("mpcompress_server")

_HEALTH = health_pb2.HealthCheckResponse
_OPTIONS: list[tuple[str, Any]] = [
    # By default two servers share a port silently, and each gets half of the calls.
    ("grpc.so_reuseport", 0),
    # Twice what the contract allows: a message a little too large still gets our own answer, with a reason.
    ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # How far a sender may be ahead of what is read. Else gRPC learns a window from the bandwidth, up to 16 MiB for each
    # connection, and fills it for streams that wait for room: memory that no limit counts.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 1 << 19),
    # In frames of 16 KiB, gRPC's own, a small item comes in a dozen pieces, each copied together with those before it.
    ("grpc.http2.max_frame_size", 1 << 18),
]


class ListenError(RuntimeError):
    """The server cannot listen where it was told to."""


class Server:
    """One server in the running event loop.

    Args:
        settings: what to serve and where.
        source: reads the settings again, for `reload`.
    """

    def __init__(self, settings: Settings, source: Callable[[], Settings] | None = None) -> None:
        self.settings = settings
        self._source = source
        self.address = ""
        """HOST:PORT or unix:PATH, once started."""
        self.servicer: Servicer | None = None
        self.counters = Counters()
        # Before anything is bound or loaded: a token file or certificate that cannot be used ends the start at once.
        self._tokens = Tokens(Path(settings.auth.tokens)) if settings.auth.tokens is not None else None
        self._credentials = server_credentials(settings.tls) if settings.tls.enabled else None
        self.fleet = Fleet(self.counters)
        self.metrics = Metrics(self.counters, self.fleet) if settings.metrics.listen else None
        interceptors: list[Any] = [GrpcMetrics(self.metrics.registry)] if self.metrics is not None else []
        provider = tracing.configured_provider()
        if provider is not None:
            interceptors.append(tracing.Tracing(provider, self.counters))
        if self._tokens is not None:
            interceptors.append(AuthInterceptor(self._tokens))
        self._grpc = grpc.aio.server(options=[*_OPTIONS, *settings.connections.options()], interceptors=interceptors)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._health_lock = asyncio.Lock()
        self._trimming: asyncio.Task[None] | None = None
        self._telling: set[asyncio.Task[None]] = set()
        self._reloader: Reloader | None = None
        self._router: Router | None = None

    async def start(self) -> None:
        """Binds, loads and warms up every codec, then serves.

        Raises:
            ListenError: the address is taken or not ours.
            SettingsError: a codec entry or plug-in that makes no sense.
        """
        self.address = self._bind()
        try:
            if self.metrics is not None:
                self.metrics.serve(self.settings.metrics.listen)
            codecs = await asyncio.to_thread(load_codecs, self.settings)
            _log.info("warming up codecs; the first time here their kernels are compiled")
            for loaded in codecs:
                await self.fleet.start_codec(loaded, self.settings)
        except BaseException:
            await self.fleet.close()
            if self.metrics is not None:
                await self.metrics.close()
            raise
        self.fleet.exchange(codecs)
        self._reloader = Reloader(self.fleet, self.settings)
        self._router = Router(codecs) if self._tokens is None else GuardedRouter(codecs, self._tokens)
        self.servicer = Servicer(
            router=self._router, limits=self.settings.limits, scheduler=self.fleet, counters=self.counters
        )
        if self.metrics is not None:
            self.metrics.watch(self.servicer.budget)
        self._grpc.add_generic_rpc_handlers((self.servicer.handlers(),))
        services = [SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME]
        if self._tokens is not None:
            services.append(ADMIN_SERVICE)
            self._grpc.add_generic_rpc_handlers((AdminServicer(self.reload, self._tokens).handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection(services, self._grpc)
        self._trimming = asyncio.create_task(allocator.keep_trimmed())
        await self._grpc.start()
        for service in ("", SERVICE):
            await self._health.set(service, _HEALTH.SERVING)
        self.fleet.on_change = self._health_changed
        await self._tell_health()
        _log.info("serving", address=self.address, codecs=_available(codecs))

    async def stop(self, grace_s: float | None = None) -> None:
        """Takes no new items, finishes those it has within the grace period, then ends every call."""
        grace_s = self.settings.grace_s if grace_s is None else grace_s
        _log.info("stopping", grace_s=grace_s)
        await self._health.enter_graceful_shutdown()
        if self.servicer is not None:
            self.servicer.drain(grace_s)
        await self._grpc.stop(grace_s)
        if self._trimming is not None:
            self._trimming.cancel()
        # Calls that still run have nobody left to answer to. A worker process is ended; a thread must be waited for.
        await self.fleet.close()
        if self.servicer is not None:
            await self.servicer.settle()
        if self.metrics is not None:
            await self.metrics.close()
        _log.info("stopped")

    async def reload(self, settings: Settings | None = None) -> Change:
        """Serves the codecs of other settings, without a pause. Items under way keep the codecs that they have.

        Args:
            settings: None: what the server's source has now.

        Raises:
            SettingsError: names the key of what cannot be served; then nothing has changed.
        """
        if self._reloader is None or self._router is None:
            raise RuntimeError("reload before start")
        try:
            if settings is None:
                settings = await asyncio.to_thread(self._source) if self._source is not None else self.settings
            change = await self._reloader.reload(settings)
        except SettingsError as error:
            _log.error("reload failed: the codecs from before stay", error=str(error))
            raise
        except Exception as error:
            _log.error("reload failed: the codecs from before stay", exc_info=error)
            raise
        self._router.codecs = self.fleet.codecs
        await self._tell_health(change.removed)
        _log.info("reloaded", **asdict(change))
        return change

    async def _tell_health(self, removed: Sequence[str] = ()) -> None:
        """The health of each codec, as service `codec/ID`."""
        async with self._health_lock:
            for loaded in self.fleet.codecs:
                status = _HEALTH.SERVING if self.fleet.ready(loaded) else _HEALTH.NOT_SERVING
                await self._health.set(f"codec/{loaded.id}", status)
            for codec_id in removed:
                await self._health.set(f"codec/{codec_id}", _HEALTH.SERVICE_UNKNOWN)

    def _health_changed(self) -> None:
        """A worker process went into back-off or came out of it."""
        task = asyncio.get_running_loop().create_task(self._tell_health())
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    def _bind(self) -> str:
        listen = self.settings.listen
        failure = ListenError(f"cannot listen on {listen}: the port is taken or the address is not ours")
        try:
            if self._credentials is not None:
                port = self._grpc.add_secure_port(listen, self._credentials)
            else:
                port = self._grpc.add_insecure_port(listen)
        except RuntimeError as error:
            raise failure from error
        if not port:
            raise failure
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"


def _available(codecs: CodecSet) -> list[str]:
    return [loaded.id for loaded in codecs if not loaded.unavailable]
