"""Workers behind one name: items go to all its addresses in turn, and to those that it gets later."""

from __future__ import annotations

import asyncio

import pytest
from name_server import name_server
from raw_wire import compress_one, features
from worker_process import WAIT_S, until

FAR = {"id": "far", "family": "test_bytes"}


async def _send_until(channel, condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            assert (await compress_one(channel, features(4), codec="far")).error is None


@pytest.mark.parametrize("addresses", [2, 3])
async def test_all_addresses_of_a_name_work(start_server, connect, unused_tcp_port, addresses):
    hosts = [f"127.0.0.{number}" for number in range(1, addresses + 1)]
    workers = [await start_server([FAR], listen=f"{host}:{unused_tcp_port}") for host in hosts]
    async with name_server() as (names, address):
        names.addresses = hosts
        target = f"dns://{address}/workers.test:{unused_tcp_port}"
        server = await start_server([{"id": "far", "family": "remote", "options": {"target": target}}])
        channel = connect(server)
        await _send_until(channel, lambda: all(worker.counters.items for worker in workers))
        before = [worker.counters.items["compress", "ok"] for worker in workers]
        for _ in range(12 * addresses):
            assert (await compress_one(channel, features(4), codec="far")).error is None
        shares = [worker.counters.items["compress", "ok"] - had for worker, had in zip(workers, before, strict=True)]
        # The question what a worker has takes a turn now and then.
        assert min(shares) >= 10
        await server.stop(0.0)


async def test_a_worker_that_comes_later_is_found(start_server, connect, unused_tcp_port):
    """A server asks for the name again when a connection ends, which that of a worker does at its age."""
    first = await start_server([FAR], listen=f"127.0.0.1:{unused_tcp_port}", connections={"max_age_s": 1.0})
    async with name_server() as (names, address):
        names.addresses = ["127.0.0.1"]
        target = f"dns://{address}/workers.test:{unused_tcp_port}"
        server = await start_server([{"id": "far", "family": "remote", "options": {"target": target}}])
        channel = connect(server)
        await _send_until(channel, lambda: first.counters.items)
        second = await start_server([FAR], listen=f"127.0.0.2:{unused_tcp_port}")
        names.addresses = ["127.0.0.1", "127.0.0.2"]
        await _send_until(channel, lambda: second.counters.items)
        # And one that is gone for good is not missed.
        names.addresses = ["127.0.0.2"]
        await first.stop(0.0)
        for _ in range(10):
            assert (await compress_one(channel, features(4), codec="far")).error is None
        await until(lambda: second.counters.items["compress", "ok"] >= 10)
        await server.stop(0.0)
