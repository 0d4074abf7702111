"""Exchanging codecs while a server serves: all or nothing, and no item notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from mpc_test_codecs import GATES, Gate
from raw_wire import CODE, call_status, compress_messages, compress_one, decompress_messages, details, features, talk

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.settings import Settings, SettingsError

HEALTH = health_pb2.HealthCheckResponse
HERE = Path(__file__).parent


def _settings(codecs, **others):
    values = {"listen": "127.0.0.1:0", "plugins": ["mpc_test_codecs"], "codecs": codecs, **others}
    return Settings.model_validate(values)


def _entry(codec_id, isolation="thread", **options):
    return {"id": codec_id, "family": "test_bytes", "isolation": isolation, "options": options}


async def _health(channel, service):
    try:
        request = health_pb2.HealthCheckRequest(service=service)
        return (await health_pb2_grpc.HealthStub(channel).Check(request)).status
    except grpc.aio.AioRpcError as error:
        return error.code()


async def _compress(channel, codec):
    return (await talk(channel, compress_messages(1, features(4), codec)))[1]


async def _result(call):
    while (response := await call.read()).WhichOneof("event") == "progress":
        pass
    return response.result


async def test_health_of_each_codec(start_server, connect):
    channel = connect(await start_server([_entry("store"), _entry("absent", missing=True)]))
    assert await _health(channel, "codec/store") == HEALTH.SERVING
    assert await _health(channel, "codec/absent") == HEALTH.NOT_SERVING
    assert await _health(channel, "codec/other") == CODE.NOT_FOUND


async def test_codecs_come_and_go(start_server, connect):
    server = await start_server([_entry("kept"), _entry("changed", salt="1"), _entry("removed")])
    channel = connect(server)
    kept = server.fleet.codecs.find("kept").codec
    unit = await _compress(channel, "removed")
    change = await server.reload(_settings([_entry("changed", salt="2"), _entry("added"), _entry("kept")]))
    assert (change.added, change.replaced, change.removed, change.kept) == (
        ["added"],
        ["changed"],
        ["removed"],
        ["kept"],
    )
    assert server.fleet.codecs.find("kept").codec is kept
    answer = await pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())
    assert [info.codec_id for info in answer.codecs] == ["added", "changed", "kept"]
    for codec in ("added", "changed", "kept"):
        assert (await _compress(channel, codec)).payload == features(4).tobytes()
        assert await _health(channel, f"codec/{codec}") == HEALTH.SERVING
    assert details((await _compress(channel, "removed")).error)["code"] == CODE.NOT_FOUND
    assert await _health(channel, "codec/removed") == HEALTH.SERVICE_UNKNOWN
    # Its id is gone, but another codec has its fingerprint.
    got = await talk(channel, decompress_messages(1, unit.result.unit, unit.payload), "Decompress")
    assert got[1].arrays()["h_hat"].tobytes() == features(4).tobytes()


async def test_weights_that_changed_are_loaded(start_server, tmp_path):
    weights = tmp_path / "weights"
    weights.write_bytes(b"1")
    entry = {**_entry("store"), "weights": str(weights)}
    server = await start_server([entry])
    before = server.fleet.codecs.find("store").codec
    assert (await server.reload(_settings([entry]))).kept == ["store"]
    weights.write_bytes(b"22")
    assert (await server.reload(_settings([entry]))).replaced == ["store"]
    assert server.fleet.codecs.find("store").codec is not before


async def test_items_under_way_keep_their_codec(start_server, connect, logs):
    gate = GATES["reload"] = Gate()
    server = await start_server([_entry("store", gate="reload"), _entry("other")])
    channel = connect(server)
    half = pb_grpc.CompressionServiceStub(channel).Compress()
    header, *chunks = compress_messages(7, features(4), chunk=64)
    header.header.want_progress = True
    await half.write(header)
    assert (await half.read()).WhichOneof("event") == "progress"  # accepted: it has found its codec
    inside = asyncio.create_task(compress_one(channel, features(5)))
    assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    waits = pb_grpc.CompressionServiceStub(channel).Compress()
    await waits.write(compress_messages(1, features(6), want_progress=True)[0])
    while (await waits.read()).progress.stage != pb.ItemProgress.STAGE_QUEUED:
        pass
    await server.reload(_settings([_entry("other")]))
    assert details((await compress_one(channel, features(4))).error)["code"] == CODE.NOT_FOUND
    (retiring,) = server.fleet._retiring.values()
    gate.open.set()
    assert (await inside).payload == features(5).tobytes()
    assert (await _result(waits)).inline_payload == features(6).tobytes()
    assert not retiring.done()  # one item still sends its bytes
    for chunk in chunks:
        await half.write(chunk)
    await half.done_writing()
    assert (await _result(half)).inline_payload == features(4).tobytes()
    await asyncio.wait_for(retiring, 30)
    assert {"event": "codec closed", "codec": "store", "log_level": "info"} in logs
    assert server.servicer.budget.used == 0


async def test_worker_processes_end_with_their_codec(start_server, connect):
    me = psutil.Process()
    before = {child.pid for child in me.children()}
    server = await start_server([_entry("store", "process")])
    (old,) = {child.pid for child in me.children()} - before
    await server.reload(_settings([_entry("store", "process", salt="2")]))
    for retiring in list(server.fleet._retiring.values()):
        await asyncio.wait_for(retiring, 30)
    (new,) = {child.pid for child in me.children()} - before
    assert old != new
    assert (await compress_one(connect(server), features(4))).error is None


@pytest.mark.parametrize(
    ("codecs", "message"),
    [
        ([_entry("new"), {"id": "x", "family": "nope"}], "codecs[1].family"),
        ([_entry("new"), {"id": "no-such-preset"}], "codecs[1].id"),
        ([_entry("new"), _entry("broken", missing=True)], "codecs[1] (broken): install the thing"),
        ([_entry("new"), _entry("broken", fails_to_warm_up=True)], "codecs[1] (broken): it failed to start"),
        ([_entry("new"), {**_entry("broken"), "weights": "/no/such/file"}], "codecs[1] (broken): its codec file"),
        ([_entry("new"), _entry("store", "process", dies_at_start=True)], "codecs[1] (store): "),
    ],
)
async def test_a_failed_reload_changes_nothing(start_server, connect, logs, codecs, message):
    server = await start_server([_entry("store"), _entry("absent", missing=True)])
    channel = connect(server)
    threads = len(psutil.Process().threads())
    before = server.fleet.codecs
    with pytest.raises(SettingsError) as caught:
        await server.reload(_settings(codecs))
    assert str(caught.value).startswith(message)
    assert server.fleet.codecs is before
    assert not server.fleet._retiring
    assert (await _compress(channel, "store")).error is None
    assert details((await _compress(channel, "new")).error)["code"] == CODE.NOT_FOUND
    assert await _health(channel, "codec/store") == HEALTH.SERVING
    (record,) = [record for record in logs if record["event"].startswith("reload failed")]
    assert record["error"].startswith(message)
    # What did not work before and still does not is no reason to refuse the rest.
    change = await server.reload(_settings([_entry("store"), _entry("absent", missing=True), _entry("new")]))
    assert (change.added, change.kept, change.replaced) == (["new"], ["store"], ["absent"])
    assert len(psutil.Process().threads()) <= threads + 2


async def test_what_needs_a_restart_is_said(start_server, logs):
    server = await start_server([_entry("store")])
    await server.reload(_settings([_entry("store")], grace_s=1.0, listen="127.0.0.1:1"))
    assert [r["keys"] for r in logs if r["event"].startswith("these settings")] == [["listen", "grace_s"]]


async def test_no_item_is_lost_while_codecs_change(start_server, connect):
    server = await start_server([_entry("store", salt="0")])
    channel = connect(server)
    call = pb_grpc.CompressionServiceStub(channel).Compress()
    fingerprints = set()
    for number in range(1, 31):
        if number % 3 == 0:
            change = await server.reload(_settings([_entry("store", salt=str(number))]))
            assert change.replaced == ["store"]
        await call.write(compress_messages(number, features(number))[0])
        answer = await call.read()
        assert answer.result.inline_payload == features(number).tobytes()
        fingerprints.add(answer.result.unit.fingerprint)
    assert len(fingerprints) == 11
    await call.done_writing()
    for retiring in list(server.fleet._retiring.values()):
        await asyncio.wait_for(retiring, 30)


def test_sighup(tmp_path):
    config, port_file = tmp_path / "server.toml", tmp_path / "port"
    text = 'plugins = ["mpc_test_codecs"]\n[[codecs]]\nid = "store"\nfamily = "test_bytes"\n'
    config.write_text(text)
    words = ("serve", "--config", str(config), "--listen", "127.0.0.1:0", "--port-file", str(port_file))
    process = subprocess.Popen(
        [sys.executable, "-m", "mpcompress_server", *words, "--log-format", "json"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )

    def wait_for(start):
        return next(line for line in map(json.loads, process.stderr) if line["event"].startswith(start))

    try:
        wait_for("ready")
        for content, event, words in [
            (text + '[[codecs]]\nid = "more"\nfamily = "test_bytes"\n', "reloaded", ["more"]),
            (text + "[[codecs]]\nid = 5\n", "reload failed", "codecs[1].id: "),
            ("codecs = [", "reload failed", "not TOML"),
            (text, "reloaded", []),
        ]:
            config.write_text(content)
            process.send_signal(signal.SIGHUP)
            record = wait_for(event)
            assert words == record["added"] if event == "reloaded" else words in record["error"]
        with grpc.insecure_channel(port_file.read_text().strip()) as channel:
            answer = pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())
            assert [info.codec_id for info in answer.codecs] == ["store"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


async def test_the_rpc_needs_its_own_permission(start_server, connect, tmp_path, monkeypatch):
    tokens = tmp_path / "tokens"
    tokens.write_text("user:user-0123456789abcdef:*\nroot:root-0123456789abcdef:@admin\n")
    server = await start_server([_entry("store")], auth={"tokens": str(tokens)})
    found = [_settings([_entry("store"), _entry("more")]), _settings([_entry("store", fails_to_warm_up=True)])]
    monkeypatch.setattr(server, "_source", lambda: found.pop(0))
    stub = pb_grpc.AdminServiceStub(connect(server))

    async def ask(name):
        metadata = (("authorization", f"Bearer {name}-0123456789abcdef"),)
        return await stub.ReloadCodecs(pb.ReloadCodecsRequest(), metadata=metadata)

    for name, code in [("user", CODE.PERMISSION_DENIED), ("nobody", CODE.UNAUTHENTICATED)]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(name)
        assert caught.value.code() == code
    assert await ask("root") == pb.ReloadCodecsResponse(added=["more"], kept=["store"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask("root")
    assert (caught.value.code(), call_status(caught.value)["reason"]) == (CODE.FAILED_PRECONDITION, "RELOAD_FAILED")
    assert [loaded.id for loaded in server.fleet.codecs] == ["more", "store"]


async def test_without_tokens_there_is_no_admin_service(start_server, connect):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await pb_grpc.AdminServiceStub(connect(await start_server())).ReloadCodecs(pb.ReloadCodecsRequest())
    assert caught.value.code() == CODE.UNIMPLEMENTED
