"""Real servers on free ports, in this process, and raw stubs: every byte on the wire is the test's own."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog

sys.path.insert(0, str(Path(__file__).parent))

from mpcompress_server.app import Server
from mpcompress_server.settings import Settings

StartServer = Callable[..., Awaitable[Server]]


@pytest.fixture
async def start_server() -> AsyncIterator[StartServer]:
    """Starts servers; by default with the codec `store`, which stores elements as they are."""
    servers: list[Server] = []

    async def start(codecs: list[dict[str, Any]] | None = None, **settings: Any) -> Server:
        entries = [{"id": "store", "family": "test_bytes"}] if codecs is None else codecs
        values = {"listen": "127.0.0.1:0", "plugins": ["mpc_test_codecs"], "codecs": entries, **settings}
        server = Server(Settings.model_validate(values))
        await server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        await server.stop(grace_s=0.0)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Server], grpc.aio.Channel]]:
    """Opens channels that are closed after the test."""
    channels: list[grpc.aio.Channel] = []

    def open_channel(server: Server) -> grpc.aio.Channel:
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        channel = grpc.aio.insecure_channel(server.address, options=options)
        channels.append(channel)
        return channel

    yield open_channel
    for channel in channels:
        await channel.close()


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    """What the server logs, as dictionaries."""
    with structlog.testing.capture_logs() as records:
        yield records
