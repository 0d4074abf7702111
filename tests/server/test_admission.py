"""Who may come in: items and bytes of a connection and of the server, and those that can still be in time."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from mpc_test_codecs import GATES, Gate
from raw_wire import CODE, compress_messages, compress_one, details, features

from mpcompress.codec import CodingParams
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.line import Line
from mpcompress_server.scheduler import CompressWork, Job
from mpcompress_server.settings import CodecEntry

GATED = {"id": "store", "family": "test_bytes", "max_batch": 1, "options": {"gate": "door"}}
QUICK = {"id": "quick", "family": "test_bytes"}
MIB = 1 << 20


@pytest.fixture
def gate():
    GATES["door"] = Gate()
    yield GATES["door"]
    GATES["door"].open.set()


@pytest.fixture
async def apart():
    """Channels with connections of their own."""
    channels = []

    def open_channel(server):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        channels.append(grpc.aio.insecure_channel(server.address, options=options))
        return channels[-1]

    yield open_channel
    for channel in channels:
        await channel.close()


async def _arrived(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)


@pytest.mark.parametrize(
    "limits",
    [
        {"max_inflight_items_per_connection": 1},
        {"max_item_bytes": MIB, "max_inflight_bytes": 64 * MIB, "max_inflight_bytes_per_connection": 2 * MIB},
    ],
    ids=["items", "bytes"],
)
async def test_a_connection_has_limits_of_its_own(start_server, apart, gate, limits):
    server = await start_server([GATED, QUICK], limits={**limits, "reservation_timeout_s": 0.2})
    busy, other = apart(server), apart(server)
    h = features(30_000)  # 0.9 MiB, and as much again for its result
    held = asyncio.create_task(compress_one(busy, h))
    await _arrived(gate)
    refused = details((await compress_one(busy, h, codec="quick")).error)
    assert (refused["code"], refused["reason"]) == (CODE.RESOURCE_EXHAUSTED, "NO_ROOM")
    assert "RetryInfo" in refused["kinds"]
    assert (await compress_one(other, h, codec="quick")).payload == h.tobytes()
    gate.open.set()
    assert (await held).payload == h.tobytes()
    assert (await compress_one(busy, h, codec="quick")).error is None
    assert server.servicer.budget.used == 0


async def test_a_server_has_a_limit_of_items(start_server, apart, gate):
    server = await start_server([GATED, QUICK], limits={"max_inflight_items": 1, "reservation_timeout_s": 0.2})
    held = asyncio.create_task(compress_one(apart(server), features(3)))
    await _arrived(gate)
    refused = details((await compress_one(apart(server), features(4), codec="quick")).error)
    assert refused["reason"] == "NO_ROOM"
    gate.open.set()
    assert (await held).error is None
    assert (await compress_one(apart(server), features(4), codec="quick")).error is None


async def test_connections_are_forgotten_when_they_have_no_call(start_server, apart):
    server = await start_server()
    assert (await compress_one(apart(server), features(3))).error is None
    while len(server.servicer.connections):
        await asyncio.sleep(0.001)


async def test_an_item_that_cannot_be_in_time_is_refused_at_once(start_server, apart, gate):
    server = await start_server([GATED])
    channel, clock = apart(server), asyncio.get_running_loop().time
    # One item tells how long they take: at least as long as it is held here.
    first = asyncio.create_task(compress_one(channel, features(3)))
    await _arrived(gate)
    held = clock()
    while clock() < held + 0.5:
        await asyncio.sleep(0.01)
    gate.open.set()
    await first
    gate.open.clear()
    call = pb_grpc.CompressionServiceStub(channel).Compress()
    for item in (1, 2):
        await call.write(compress_messages(item, features(3))[0])
    await _arrived(gate)  # 1 runs, 2 waits
    late = compress_messages(3, features(3), timeout=Duration(nanos=400_000_000))
    await call.write(late[0])
    response = await call.read()
    assert response.item_id == 3
    error = details(response.error)
    assert (error["code"], error["reason"]) == (CODE.RESOURCE_EXHAUSTED, "DEADLINE_UNREACHABLE")
    assert "RetryInfo" in error["kinds"]
    patient = compress_messages(4, features(3), timeout=Duration(seconds=60))
    await call.write(patient[0])
    await call.done_writing()
    gate.open.set()
    assert {(await call.read()).item_id for _ in range(3)} == {1, 2, 4}


def _job(line: Line, stream: str) -> Job:
    work = CompressWork(tensors={}, params=CodingParams())
    job = Job(loaded=LoadedCodec(entry=CodecEntry(id="codec")), work=work, deadline=0.0, stream=stream, nbytes=1000)
    line.join(job)
    return job


async def test_the_wait_is_estimated_from_what_is_known_and_from_whose_turn_it_is():
    line = Line(max_batch=1, instances=2, clock=asyncio.get_running_loop().time)
    kind = (True, (1000).bit_length())
    assert _job(line, "a").expected_s == 0.0
    assert line.expected_s("b", kind) == 0.0  # nothing is known
    line.drain()
    line.observe(kind, 2.0)
    assert line.expected_s("b", kind) == 0.0  # nothing waits: it is taken, and corrects what is wrong
    jobs = [_job(line, "a") for _ in range(100)]
    assert line.expected_s("a", kind) == 100 * 2.0 / 2 + 2.0
    assert line.expected_s("b", kind) == 2.0 / 2 + 2.0  # of another stream only one item comes before it
    for job in jobs[1:]:
        assert line.leave(job)
    assert line.expected_s("a", kind) == 2.0 / 2 + 2.0
    line.observe(kind, 12.0)
    _job(line, "c")
    assert line.expected_s("c", (True, 40)) == pytest.approx((2.0 + (2.0 + 0.2 * 10.0)) / 2)
