"""Codecs that another server has: what clients see of them is what they see of a server's own."""

from __future__ import annotations

import asyncio

import grpc
import numpy as np
import pytest
import trustme
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mpc_test_codecs import BUG, GATES, Gate
from raw_wire import CODE, call_status, compress_messages, compress_one, decompress_messages, details, features, talk
from worker_process import until

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.active_items import ActiveItems
from mpcompress_server.settings import Settings, SettingsError
from mpcompress_server.stream import Stream

HEALTH = health_pb2.HealthCheckResponse
MIB = 1 << 20
FAR = {"id": "far", "family": "test_bytes", "options": {"salt": "far"}}
STAGE = pb.ItemProgress.Stage


def _to(*servers, codec="far", **options):
    target = "ipv4:" + ",".join(server.address for server in servers)
    return {"id": codec, "family": "remote", "options": {"target": target, **options}}


@pytest.fixture
def gate():
    GATES["far"] = Gate()
    yield GATES["far"]
    GATES["far"].open.set()


async def _arrived(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)


async def _list(channel):
    answer = await pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())
    return {info.codec_id: info for info in answer.codecs}


async def _health(channel, service):
    return (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))).status


async def _all_given_back(server):
    await until(lambda: not server.servicer.budget.used and not server.servicer.budget.items)


# --------------------------------------------------------------------------------------------------------- results


@pytest.mark.parametrize("rows", [4, 150_000], ids=["inline", "chunks"])
async def test_items_come_back_as_from_a_server_of_its_own(start_server, connect, rows):
    worker = await start_server([FAR])
    server = await start_server([_to(worker)])
    h = features(rows)
    coded = await compress_one(connect(server), h, codec="far", want_progress=True)
    own = await compress_one(connect(worker), h, codec="far", want_progress=True)
    assert coded.payload == own.payload == h.tobytes()
    assert coded.result.unit == own.result.unit
    assert coded.result.report.bpfp == own.result.report.bpfp > 0
    assert coded.stages == own.stages == [1, 2, 3]
    messages = decompress_messages(1, coded.result.unit, coded.payload)
    decoded = (await talk(connect(server), messages, "Decompress"))[1]
    np.testing.assert_array_equal(decoded.arrays()["h_hat"], h)
    half = decompress_messages(1, coded.result.unit, coded.payload, output_dtype=pb.DATA_TYPE_FLOAT16)
    decoded = (await talk(connect(server), half, "Decompress"))[1]
    np.testing.assert_array_equal(decoded.arrays()["h_hat"], h.astype(np.float16))
    assert worker.counters.items["compress", "ok"] == 2
    await _all_given_back(server)
    await _all_given_back(worker)


async def test_context_travels_too(start_server, connect):
    worker = await start_server([{**FAR, "options": {"context": True}}])
    server = await start_server([_to(worker)])
    h, ctx = features(40_000), features(5, dtype="float16")
    coded = await compress_one(connect(server), {"h": h, "ctx": ctx}, codec="far")
    assert coded.result.unit.ctx_hash
    messages = decompress_messages(1, coded.result.unit, coded.payload, {"ctx": ctx})
    decoded = (await talk(connect(server), messages, "Decompress"))[1]
    np.testing.assert_array_equal(decoded.arrays()["h_hat"], h)
    messages = decompress_messages(1, coded.result.unit, coded.payload, {"ctx": ctx + 1})
    wrong = details((await talk(connect(server), messages, "Decompress"))[1].error)
    assert wrong["reason"] == "CODEC_MISMATCH"


async def test_items_of_a_stream_go_to_the_workers_in_turn(start_server, connect):
    workers = [await start_server([FAR]) for _ in range(3)]
    server = await start_server([_to(*workers)])
    await until(lambda: len(_ready_addresses(server)) == 1)
    messages = [m for item in range(1, 61) for m in compress_messages(item, features(item), "far")]
    assert all(got.error is None for got in (await talk(connect(server), messages)).values())
    shares = [worker.counters.items["compress", "ok"] for worker in workers]
    assert sum(shares) == 60
    # The first items may come before the last connection is there.
    assert min(shares) >= 15


def _ready_addresses(server):
    return [loaded.id for loaded in server.fleet.codecs if server.fleet.ready(loaded)]


# ------------------------------------------------------------------------------------------------ listing and health


async def test_the_list_is_merged(start_server, connect):
    codecs = [FAR, {**FAR, "id": "broken", "options": {"missing": True}}, {**FAR, "id": "other"}]
    worker = await start_server(codecs)
    entries = [_to(worker), _to(worker, codec="broken"), _to(worker, codec="absent")]
    server = await start_server([{"id": "near", "family": "test_bytes"}, *entries])
    listed, own = await _list(connect(server)), await _list(connect(worker))
    assert sorted(listed) == ["absent", "broken", "far", "near"]
    assert listed["near"].local
    assert not listed["far"].local
    assert listed["far"].available
    listed["far"].local = True
    assert listed["far"] == own["far"]
    assert not listed["broken"].available
    assert "install the thing" in listed["broken"].unavailable_reason
    assert not listed["absent"].available
    assert "workers" in listed["absent"].unavailable_reason
    states = [await _health(connect(server), f"codec/{codec}") for codec in ("near", "far", "broken", "absent")]
    assert states == [HEALTH.SERVING, HEALTH.SERVING, HEALTH.NOT_SERVING, HEALTH.NOT_SERVING]
    broken = details((await compress_one(connect(server), features(4), codec="broken")).error)
    assert (broken["code"], broken["reason"]) == (CODE.FAILED_PRECONDITION, "CODEC_UNAVAILABLE")
    assert "install the thing" in broken["message"]


async def test_without_workers_a_server_serves_on(start_server, connect, unused_tcp_port):
    address = f"127.0.0.1:{unused_tcp_port}"
    remote = {"id": "far", "family": "remote", "options": {"target": address, "patience_s": 0.3}}
    server = await start_server([{"id": "near", "family": "test_bytes"}, remote])
    channel = connect(server)
    assert await _health(channel, "") == HEALTH.SERVING
    assert await _health(channel, "codec/far") == HEALTH.NOT_SERVING
    info = (await _list(channel))["far"]
    assert not info.available
    assert "reached" in info.unavailable_reason
    refused = details((await compress_one(channel, features(4), codec="far")).error)
    assert (refused["code"], refused["reason"]) == (CODE.UNAVAILABLE, "WORKER_UNREACHABLE")
    assert "RetryInfo" in refused["kinds"]
    assert (await compress_one(channel, features(4), codec="near")).error is None
    unit = (await compress_one(channel, features(4), codec="near")).result.unit
    unit.codec_id, unit.fingerprint = "far", b"unknown!"
    refused = details((await talk(channel, decompress_messages(1, unit, features(4).tobytes()), "Decompress"))[1].error)
    assert refused["reason"] == "WORKER_UNREACHABLE"
    # A worker that comes is found, and one that goes is missed.
    worker = await start_server([FAR], listen=address)
    await _until_health(channel, "codec/far", HEALTH.SERVING)
    assert (await _list(channel))["far"].available
    assert (await compress_one(channel, features(4), codec="far")).error is None
    await worker.stop(0.0)
    await _until_health(channel, "codec/far", HEALTH.NOT_SERVING)
    assert not (await _list(channel))["far"].available
    assert await _health(channel, "") == HEALTH.SERVING
    await _all_given_back(server)


async def _until_health(channel, service, status):
    async with asyncio.timeout(60):
        async for answer in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
            if answer.status == status:
                return


async def test_items_wait_a_moment_for_a_worker(start_server, connect, unused_tcp_port):
    address = f"127.0.0.1:{unused_tcp_port}"
    remote = {"id": "far", "family": "remote", "options": {"target": address, "patience_s": 60}}
    server = await start_server([remote])
    waiting = asyncio.create_task(compress_one(connect(server), features(4), codec="far"))
    await until(lambda: server.fleet.waiting()["far"] == 1)
    await start_server([FAR], listen=address)
    assert (await asyncio.wait_for(waiting, 60)).error is None


async def test_fingerprints_are_checked_before_anything_is_sent(start_server, connect):
    worker = await start_server([FAR])
    server = await start_server([_to(worker)])
    coded = await compress_one(connect(server), features(4), codec="far")
    unit = pb.CodedUnitHeader()
    for change, reason, field in [
        ({"fingerprint": b"another!"}, "CODEC_MISMATCH", "fingerprint"),
        ({"bitstream_version": 2}, "CODEC_MISMATCH", "version"),
        ({"fingerprint": b"another!", "codec_id": "nobody"}, "UNKNOWN_CODEC", "nobody"),
    ]:
        unit.CopyFrom(coded.result.unit)
        for name, value in change.items():
            setattr(unit, name, value)
        got = (await talk(connect(server), decompress_messages(1, unit, coded.payload), "Decompress"))[1]
        assert details(got.error)["reason"] == reason
        assert field in details(got.error)["message"]
    assert not [key for key in worker.counters.items if key[0] == "decompress"]
    # The fingerprint finds the codec, whatever the unit calls it.
    unit.CopyFrom(coded.result.unit)
    unit.codec_id = "another-name"
    got = (await talk(connect(server), decompress_messages(1, unit, coded.payload), "Decompress"))[1]
    assert got.error is None


# ---------------------------------------------------------------------------------------------------------- errors


async def test_errors_keep_their_details(start_server, connect, logs):
    worker = await start_server([FAR])
    server = await start_server([_to(worker)])
    bad = features(4)
    bad[1, 1] = np.nan
    cases = [
        (features(4), {"params": {"qp_eighths": 500}}),
        (features(4), {"params": {"klt": {"effort": 1}}}),
        (bad, {}),
        (features(4, BUG), {}),
        ({"h": features(4), "ctx": features(4)}, {}),
        (features(4), {"timeout": Duration(seconds=10**6)}),
    ]
    for h, fields in cases:
        metadata = (("x-request-id", "find-me-7"),)
        through, own = [
            (await talk(connect(where), compress_messages(1, h, "far", **fields), metadata=metadata))[1].error
            for where in (server, worker)
        ]
        assert through == own
        assert details(through)["reason"]
    # One id finds the call in both logs.
    assert {record["request_id"] for record in logs if record["event"] == "item failed"} == {"find-me-7"}
    coded = await compress_one(connect(server), features(4), codec="far")
    damaged = decompress_messages(1, coded.result.unit, coded.payload[:-1] + b"x")
    through, own = [(await talk(connect(where), damaged, "Decompress"))[1].error for where in (server, worker)]
    assert details(through)["reason"] == details(own)["reason"] == "CORRUPT_UNIT"
    assert server.counters.items["compress", "NON_FINITE"] == 1
    await _all_given_back(server)


async def test_the_codec_file_comes_through(start_server, connect):
    worker = await start_server([{**FAR, "options": {"file_bytes": 3 * MIB}}, {**FAR, "id": "none"}])
    server = await start_server([_to(worker), _to(worker, codec="none")])
    stub = pb_grpc.CompressionServiceStub(connect(server))
    header, *parts = [message async for message in stub.GetCodecFile(pb.GetCodecFileRequest(codec_id="far"))]
    assert header.header.size_bytes == 3 * MIB
    assert b"".join(part.data for part in parts) == b"x" * 3 * MIB
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [message async for message in stub.GetCodecFile(pb.GetCodecFileRequest(codec_id="none"))]
    assert call_status(caught.value)["reason"] == "CODEC_UNAVAILABLE"


# -------------------------------------------------------------------------------------------- giving up, and limits


@pytest.mark.parametrize("cause", ["item", "deadline", "call"])
@pytest.mark.parametrize("stage", ["queued", "running"])
async def test_giving_up_reaches_the_worker(start_server, connect, gate, cause, stage):
    worker = await start_server([{**FAR, "max_batch": 1, "options": {"gate": "far"}}])
    server = await start_server([_to(worker)])
    stub = pb_grpc.CompressionServiceStub(connect(server))
    before = stub.Compress()
    if stage == "queued":
        await before.write(compress_messages(9, features(2), "far")[0])
        await _arrived(gate)
    fields = {"timeout": Duration(seconds=1)} if cause == "deadline" else {}
    call = stub.Compress()
    await call.write(compress_messages(1, features(5), "far", want_progress=True, **fields)[0])
    wanted = STAGE.STAGE_QUEUED if stage == "queued" else STAGE.STAGE_STARTED
    if stage == "running":
        await _arrived(gate)
    while (await call.read()).progress.stage != wanted:
        pass
    if cause == "item":
        await call.write(pb.CompressRequest(cancel=pb.CancelItem(item_id=1)))
    elif cause == "call":
        call.cancel()
    if cause != "call":
        while (response := await call.read()).WhichOneof("event") != "error":
            pass
        reason = details(response.error)["reason"]
        assert reason == {"item": "ITEM_CANCELLED", "deadline": "ITEM_TIMEOUT"}[cause]
    # At the worker the item's call, or its own time, has ended, before its codec let go of it.
    await until(lambda: sum(count for key, count in worker.counters.cancelled.items() if key[1] == stage) == 1)
    gate.open.set()
    before.cancel()
    await _all_given_back(worker)
    await _all_given_back(server)


async def test_deadlines_travel(start_server, connect, gate, monkeypatch):
    worker = await start_server([{**FAR, "max_batch": 1, "options": {"gate": "far"}}])
    server = await start_server([_to(worker)], limits={"default_timeout_s": 77.0})
    calls, items = [], []
    run, admit = Stream.run, ActiveItems.admit

    async def spy_on_call(self, context):
        calls.append(context.time_remaining())
        await run(self, context)

    async def spy_on_item(self, item, call_deadline):
        items.append(item.deadline - item.accepted_at)
        await admit(self, item, call_deadline)

    monkeypatch.setattr(Stream, "run", spy_on_call)
    monkeypatch.setattr(ActiveItems, "admit", spy_on_item)
    for fields, options, most_s in [
        ({}, {}, 77),
        ({"timeout": Duration(seconds=33)}, {}, 33),
        ({"timeout": Duration(seconds=33)}, {"timeout": 22}, 22),
    ]:
        call = asyncio.create_task(talk(connect(server), compress_messages(1, features(4), "far", **fields), **options))
        await _arrived(gate)
        # The last of each is the worker's. gRPC rounds the time of each call up, to tenths of a second.
        assert most_s - 10 < calls[-1] <= most_s + 0.3
        assert most_s - 10 < items[-1] <= most_s + 0.3
        call.cancel()
        gate.open.set()
        await _all_given_back(worker)
        gate.open.clear()


async def test_memory_is_held_to_the_limit(start_server, connect):
    worker = await start_server([FAR])
    limits = {"max_item_bytes": 4 * MIB, "max_inflight_bytes": 24 * MIB, "reservation_timeout_s": 60.0}
    server = await start_server([_to(worker)], limits=limits)
    h = features(100_000)  # 3 MB, and as much again for its result
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, server.servicer.budget.used)
            await asyncio.sleep(0.001)

    watching = asyncio.create_task(watch())
    messages = [m for item in range(1, 31) for m in compress_messages(item, h, "far")]
    items = await asyncio.wait_for(talk(connect(server), messages), 120)
    watching.cancel()
    assert all(got.payload == h.tobytes() for got in items.values())
    assert 12 * MIB < most <= 24 * MIB
    big = details((await compress_one(connect(server), features(200_000), codec="far")).error)
    assert (big["code"], big["reason"]) == (CODE.RESOURCE_EXHAUSTED, "ITEM_TOO_LARGE")
    await _all_given_back(server)


async def test_a_worker_without_room_holds_the_item_back(start_server, connect, gate):
    """The second item's bytes wait here: the worker reserves before it reads, and says when that takes too long."""
    far = {**FAR, "max_batch": 1, "options": {"gate": "far"}}
    limits = {"max_item_bytes": 4 * MIB, "max_inflight_bytes": 8 * MIB, "reservation_timeout_s": 0.3}
    worker = await start_server([far], limits=limits)
    server = await start_server([_to(worker, attempts=2)])
    h = features(120_000)
    first = asyncio.create_task(compress_one(connect(server), h, codec="far"))
    await _arrived(gate)
    refused = details((await compress_one(connect(server), h, codec="far")).error)
    assert refused["reason"] == "NO_ROOM"
    assert "RetryInfo" in refused["kinds"]
    gate.open.set()
    assert (await first).payload == h.tobytes()
    await _all_given_back(server)


async def test_a_draining_worker_finishes_and_others_take_the_rest(start_server, connect, gate):
    draining = await start_server([{**FAR, "max_batch": 1, "options": {"gate": "far"}}])
    server = await start_server([_to(draining)])
    call = asyncio.create_task(compress_one(connect(server), features(4), codec="far"))
    await _arrived(gate)
    stopping = asyncio.create_task(draining.stop(60.0))
    await until(lambda: draining.servicer._draining_s is not None)
    gate.open.set()
    assert (await call).error is None
    await stopping


# ------------------------------------------------------------------------------------------- fairness and progress


async def test_a_worker_takes_the_streams_behind_a_server_in_turn(start_server, connect, gate):
    worker = await start_server([{**FAR, "max_batch": 1, "options": {"gate": "far"}}])
    server = await start_server([_to(worker)])
    stub = pb_grpc.CompressionServiceStub(connect(server))
    many, one = stub.Compress(), stub.Compress()
    for item in range(1, 21):
        await many.write(compress_messages(item, features(4), "far")[0])
    await until(lambda: worker.fleet.waiting()["far"] == 19)
    await one.write(compress_messages(1, features(4), "far", want_progress=True)[0])
    position = None
    while position is None:
        event = (await one.read()).progress
        position = event.queue_position if event.stage == STAGE.STAGE_QUEUED else None
    assert position <= 2
    gate.open.set()
    many.cancel()
    one.cancel()


# -------------------------------------------------------------------------------------------------- TLS and tokens


@pytest.fixture
def secured(tmp_path):
    """Settings of a worker with TLS, mutual TLS and tokens, and the options to reach it."""
    authority = trustme.CA()
    files = {"ca": authority.cert_pem.bytes()}
    for name in ("server", "client"):
        leaf = authority.issue_cert("worker.test")
        files[f"{name}.pem"] = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
        files[f"{name}.key"] = leaf.private_key_pem.bytes()
    files["tokens"] = b"main:a-token-of-the-server:*\n"
    files["token"] = b"a-token-of-the-server\n"
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    path = {name: str(tmp_path / name) for name in files}
    tls = {"cert": path["server.pem"], "key": path["server.key"], "client_ca": path["ca"]}
    options = {"ca": path["ca"], "cert": path["client.pem"], "key": path["client.key"], "server_name": "worker.test"}
    return {"tls": tls, "auth": {"tokens": path["tokens"]}}, {**options, "token_file": path["token"]}


async def test_tls_and_token(start_server, connect, secured, tmp_path, logs):
    listener, options = secured
    worker = await start_server([FAR], **listener)
    server = await start_server([_to(worker, **options)])
    assert (await compress_one(connect(server), features(4), codec="far")).payload == features(4).tobytes()
    # A token that the worker does not know is this server's fault, not its client's.
    (tmp_path / "token").write_text("a-token-of-nobody-at-all")
    refused = details((await compress_one(connect(server), features(4), codec="far")).error)
    assert (refused["code"], refused["reason"]) == (CODE.FAILED_PRECONDITION, "CODEC_UNAVAILABLE")
    assert "token" not in refused["message"]
    assert any("token_file" in record["event"] for record in logs if record["log_level"] == "error")
    assert "a-token-of" not in repr(logs)
    for missing in ("cert", "ca"):
        less = {key: value for key, value in options.items() if key not in (missing, "key" * (missing == "cert"))}
        blind = await start_server([_to(worker, **less, patience_s=0.5, tls=True)])
        assert not (await _list(connect(blind)))["far"].available


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "nowhere"}, "codecs[0]: options.target: 'nowhere' is no HOST:PORT"),
        ({"target": "a:1", "colour": 1}, "codecs[0]: options.colour: unknown key"),
        ({"target": "a:1", "cert": "x"}, "codecs[0]: options.mutual TLS needs both"),
        ({"target": "a:1", "server_name": "x"}, "codecs[0]: options.server_name without TLS"),
        ({"target": "a:1", "token_file": "x"}, "codecs[0]: options.the token would travel unencrypted"),
        ({}, "codecs[0]: options.target: Field required"),
    ],
)
def test_options_that_are_refused(options, words):
    with pytest.raises(ValueError, match="codecs") as caught:
        Settings.model_validate({"codecs": [{"id": "far", "family": "remote", "options": options}]})
    assert words.removeprefix("codecs[0]: ") in str(caught.value)


@pytest.mark.parametrize("key", ["ca", "token_file"])
async def test_files_that_are_missing(start_server, tmp_path, key):
    options = {"target": "127.0.0.1:1", key: str(tmp_path / "missing")}
    with pytest.raises(SettingsError, match=rf"codec far: options\.{key}: "):
        await start_server([{"id": "far", "family": "remote", "options": options}])


# ------------------------------------------------------------------------------------------------ patterns, reload


async def test_patterns_stand_for_shipped_codecs(start_server, connect, unused_tcp_port):
    options = {"target": f"127.0.0.1:{unused_tcp_port}"}
    entries = [
        {"id": "v*-dinov2-cls", "family": "remote", "options": options},
        {"id": "vtm-dinov2-cls", "family": "test_bytes"},
    ]
    server = await start_server(entries)
    listed = await _list(connect(server))
    assert {codec: info.local for codec, info in listed.items()} == {"vtm-dinov2-cls": True, "vvenc-dinov2-cls": False}
    with pytest.raises(SettingsError, match=r"codecs\[0\].id: 'q\*' fits no shipped codec"):
        await start_server([{"id": "q*", "family": "remote", "options": options}])


async def test_reloading_opens_and_closes_connections(start_server, connect):
    worker, other = await start_server([FAR]), await start_server([FAR])
    near = {"id": "near", "family": "test_bytes"}
    server = await start_server([near])

    def settings(*codecs):
        return server.settings.model_validate(
            {**server.settings.model_dump(exclude={"codecs"}), "codecs": [near, *codecs]}
        )

    channel = connect(server)
    change = await server.reload(settings(_to(worker), _to(worker, codec="again")))
    assert (change.added, change.kept) == (["again", "far"], ["near"])
    assert (await compress_one(channel, features(4), codec="far")).error is None
    assert await _health(channel, "codec/far") == HEALTH.SERVING
    change = await server.reload(settings(_to(worker), _to(worker, codec="again")))
    assert change.kept == ["again", "far", "near"]
    change = await server.reload(settings(_to(other)))
    assert (change.replaced, change.removed) == (["far"], ["again"])
    assert (await compress_one(channel, features(4), codec="far")).error is None
    assert other.counters.items["compress", "ok"] == 1
    await until(lambda: len(server.fleet._remotes._open) == 1)
    assert (await server.reload(settings())).removed == ["far"]
    await until(lambda: not server.fleet._remotes._open)
