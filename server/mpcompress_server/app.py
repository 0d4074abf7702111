"""The server as an object: start it, ask where it listens, stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mpcompress import registry
from mpcompress.codec import FeatureCodec
from mpcompress_server.codecs import CodecSet, LoadedCodec, give_up, load_codecs
from mpcompress_server.executors import Executor, ThreadExecutor
from mpcompress_server.process_executor import ProcessExecutor
from mpcompress_server.routing import Router
from mpcompress_server.scheduler import FifoScheduler
from mpcompress_server.servicer import MAX_MESSAGE_BYTES, SERVICE, Servicer
from mpcompress_server.settings import Settings

_log = structlog.get_logger("mpcompress_server")

_OPTIONS: list[tuple[str, Any]] = [
    # By default two servers share a port silently, and each gets half of the calls.
    ("grpc.so_reuseport", 0),
    # Twice what the contract allows: a message a little too large still gets our own answer, with a reason.
    ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A client whose machine vanished must not hold its reservations for hours.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
]


class ListenError(RuntimeError):
    """The server cannot listen where it was told to."""


class Server:
    """One server in the running event loop.

    Args:
        settings: what to serve and where.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address = ""
        """HOST:PORT or unix:PATH, once started."""
        self.servicer: Servicer | None = None
        self._grpc = grpc.aio.server(options=_OPTIONS)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._executors: dict[str, list[Executor]] = {}
        self._scheduler: FifoScheduler | None = None

    async def start(self) -> None:
        """Binds, loads and warms up every codec, then serves.

        Raises:
            ListenError: the address is taken or not ours.
            SettingsError: a codec entry or plug-in that makes no sense.
        """
        self.address = self._bind()
        try:
            codecs = await asyncio.to_thread(load_codecs, self.settings)
            for loaded in codecs:
                await self._start_codec(loaded)
        except BaseException:
            await self._close_executors()
            raise
        self._scheduler = FifoScheduler(dict(self._executors))
        await self._scheduler.start()
        self.servicer = Servicer(router=Router(codecs), limits=self.settings.limits, scheduler=self._scheduler)
        self._grpc.add_generic_rpc_handlers((self.servicer.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)
        await self._grpc.start()
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        _log.info("serving", address=self.address, codecs=_available(codecs))

    async def stop(self, grace_s: float | None = None) -> None:
        """Takes no new items, finishes those it has within the grace period, then ends every call."""
        grace_s = self.settings.grace_s if grace_s is None else grace_s
        _log.info("stopping", grace_s=grace_s)
        await self._health.enter_graceful_shutdown()
        if self.servicer is not None:
            self.servicer.drain(grace_s)
        await self._grpc.stop(grace_s)
        # Calls that still run have nobody left to answer to. A worker process is ended; a thread must be waited for.
        if self._scheduler is not None:
            await asyncio.gather(self._scheduler.close(), self._close_executors())
        if self.servicer is not None:
            await self.servicer.settle()
        _log.info("stopped")

    def _bind(self) -> str:
        listen = self.settings.listen
        failure = ListenError(f"cannot listen on {listen}: the port is taken or the address is not ours")
        try:
            port = self._grpc.add_insecure_port(listen)
        except RuntimeError as error:
            raise failure from error
        if not port:
            raise failure
        return listen if listen.startswith("unix:") else f"{listen.rpartition(':')[0]}:{port}"

    async def _start_codec(self, loaded: LoadedCodec) -> None:
        """Starts all instances of a codec; one that cannot start makes it unavailable, not the server."""
        if loaded.unavailable or loaded.codec is None or loaded.spec is None:
            return
        executors = [self._executor(loaded, index) for index in range(loaded.entry.instances)]
        try:
            for executor in executors:
                await executor.start()
        except Exception as error:
            give_up(loaded, error)
            for executor in executors:
                await executor.close()
        else:
            self._executors[loaded.id] = executors

    def _executor(self, loaded: LoadedCodec, index: int) -> Executor:
        codec, spec = loaded.codec, loaded.spec
        assert codec is not None
        assert spec is not None
        if loaded.entry.isolation == "process":
            bounds = self.settings.executors
            return ProcessExecutor(
                spec,
                plugins=self.settings.plugins,
                watchdog_s=bounds.watchdog_s,
                start_timeout_s=bounds.start_timeout_s,
            )
        # The first instance is the one that checks headers, the others are copies.
        load: Callable[[], FeatureCodec] = (lambda: codec) if index == 0 else (lambda: registry.load(spec))
        return ThreadExecutor(load, f"{loaded.id}-{index}")

    async def _close_executors(self) -> None:
        for executors in self._executors.values():
            for executor in executors:
                await executor.close()


def _available(codecs: CodecSet) -> list[str]:
    return [loaded.id for loaded in codecs if not loaded.unavailable]
