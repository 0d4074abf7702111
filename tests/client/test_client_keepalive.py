"""A connection that goes silent, as when a machine loses its network, is given up, and its items take another."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from conftest import FINAL
from scripted_server import answer, items
from silent_network import Network

from mpcompress_client import AsyncCompressionClient, CompressionClient, ServerUnavailableError
from mpcompress_client.calls import DEFAULT_TIMEOUT_S
from mpcompress_client.endpoint import resolve
from mpcompress_client.retry import RetryPolicy

# As the clients do by themselves, but sooner; a server that is short of CPU time still answers.
SOON = (("grpc.keepalive_time_ms", 500), ("grpc.keepalive_timeout_ms", 2500), ("grpc.http2.ping_timeout_ms", 2500))


@pytest.fixture
def network(server: str) -> Iterator[Network]:
    made = Network(server)
    yield made
    made.close()


def test_items_take_another_connection(network, client, final):
    with CompressionClient(network.address, options=SOON) as connected:
        results = connected.compress_many((final[number % 4] for number in range(12)), codec=FINAL, look_ahead=4)
        found = [next(results)]
        network.silence()
        found += results
    assert network.connections > 1
    assert found == [client.compress(final[number % 4], codec=FINAL) for number in range(12)]


async def test_items_take_another_connection_asyncio(network, client, final):
    async with AsyncCompressionClient(network.address, options=SOON) as connected:
        await connected.compress(final[0], codec=FINAL)
        network.silence()
        assert await connected.compress(final[1], codec=FINAL) == client.compress(final[1], codec=FINAL)
    assert network.connections > 1


def test_without_retries_it_is_a_lost_connection_and_no_timeout(network, final):
    with CompressionClient(network.address, options=SOON, retry=None) as connected:
        connected.compress(final[0], codec=FINAL)
        network.silence()
        with pytest.raises(ServerUnavailableError):
            connected.compress(final[1], codec=FINAL)
        # A call that starts while the connection is still being closed is lost with it.
        for _ in range(5):
            with suppress(ServerUnavailableError):
                assert connected.compress(final[1], codec=FINAL).nbytes
                break
        else:
            pytest.fail("the client never came back")


def test_after_a_long_wait_too(scripted, final):
    """gRPC by itself asks an idle connection twice and then hardly ever: an item of minutes would wait in vain."""
    silent, calls = threading.Event(), []

    def slow_at_first(requests, context):
        for header, data in items(requests):
            calls.append(header.item_id)
            if len(calls) == 1:
                silent.wait(60)
            yield from answer(header, data)

    network = Network(scripted(compress=slow_at_first))

    def go_silent() -> None:
        network.silence()
        silent.set()

    # Longer than several pings take.
    timer = threading.Timer(4.0, go_silent)
    timer.start()
    try:
        with CompressionClient(network.address, options=SOON, timeout_s=30) as connected:
            assert connected.compress(final[0], codec="x").nbytes
    finally:
        timer.cancel()
        network.close()
    assert calls == [1, 1]


def test_by_itself_an_item_has_half_of_its_time_left():
    arguments = {"tls": None, "credentials": None, "token": None, "token_file": None, "timeout_s": None}
    found = resolve(
        target="localhost:1", **arguments, own_channel=False, options=(), policy=RetryPolicy(), environment={}
    )
    options = dict(found.options)
    assert options["grpc.http2.ping_timeout_ms"] == options["grpc.keepalive_timeout_ms"]
    silent_ms = options["grpc.keepalive_time_ms"] + options["grpc.http2.ping_timeout_ms"]
    assert silent_ms <= 1000 * DEFAULT_TIMEOUT_S / 2
