"""A worker for pictures: as many encoders as slots, one line for all codecs, and progress on the way."""

from __future__ import annotations

import asyncio
import os
import zlib

import numpy as np
import psutil
import pytest
from google.protobuf.duration_pb2 import Duration
from prometheus_client.parser import text_string_to_metric_families
from raw_wire import CODE, compress_messages, compress_one, decompress_messages, details, talk
from worker_process import needs_encoders, stand_in, until, worker_processes

from mpcompress.picture.decode import OWN_STREAMS
from mpcompress.picture.engine import engine
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc
from mpcompress_server.codecs import entries_of
from mpcompress_server.settings import Settings, SettingsError

pytestmark = needs_encoders

STAGE = pb.ItemProgress.Stage
VTM, X265 = "vtm-dinov2-cls", "x265-dinov2-cls"
H = (5 * np.random.default_rng(0).standard_normal((96, 128))).astype(np.float32)


@pytest.fixture
def start_worker(start_server):
    """Workers in this process."""

    async def start(codecs=(VTM, X265), **settings):
        entries = [{"id": codec} if isinstance(codec, str) else codec for codec in codecs]
        return await start_server(entries, role="vtm-worker", plugins=[], **settings)

    return start


def _vtm(folder, **options):
    return {"id": VTM, "options": {"vtm_path": str(folder), **options}}


def _encoders():
    children = psutil.Process().children(recursive=True)
    found = []
    for child in children:
        try:
            found += [child.pid] if "EncoderApp" in " ".join(child.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


async def _events(call, until_event):
    """Events of item 1 up to the one that is waited for."""
    found = []
    async with asyncio.timeout(60):
        while not found or not until_event(found[-1]):
            response = await call.read()
            if response.WhichOneof("event") == "progress":
                found.append(response.progress)
    return found


async def test_as_many_encoders_as_slots_and_the_others_hear_their_place(start_worker, connect, tmp_path):
    slow = stand_in().install(tmp_path, encoder="slow")
    worker = await start_worker([_vtm(slow), X265], worker={"slots": 2})
    worker.fleet.slots._heartbeat_s = 0.1
    stub = pb_grpc.CompressionServiceStub(connect(worker))
    calls = [stub.Compress() for _ in range(4)]
    for call in calls[:2]:
        await call.write(compress_messages(1, H, VTM, want_progress=True)[0])
        await _events(call, lambda event: event.stage == STAGE.STAGE_STARTED)
    # One line for all codecs.
    await calls[2].write(compress_messages(1, H, VTM, want_progress=True)[0])
    assert (await _events(calls[2], lambda e: e.stage == STAGE.STAGE_QUEUED))[-1].queue_position == 0
    await calls[3].write(compress_messages(1, H, X265, want_progress=True)[0])
    assert (await _events(calls[3], lambda e: e.stage == STAGE.STAGE_QUEUED))[-1].queue_position == 1
    await until(lambda: len(_encoders()) == 2)
    assert len(worker.fleet.slots.running) == 2
    assert worker.fleet.waiting() == {VTM: 1, X265: 1}
    # Those that run tell that they are alive, those that wait where they are.
    running = await _events(calls[0], lambda e: e.stage == STAGE.STAGE_PROGRESS)
    assert running[-1].elapsed.ToTimedelta().total_seconds() > 0
    # The one in front goes away, and the one behind it hears of that.
    await calls[2].write(pb.CompressRequest(cancel=pb.CancelItem(item_id=1)))
    await _events(calls[3], lambda e: e.stage == STAGE.STAGE_QUEUED and e.queue_position == 0)
    # A slot is free when its item is given up, encoder and all.
    encoders = _encoders()
    calls[0].cancel()
    async with asyncio.timeout(60):
        while (response := await calls[3].read()).WhichOneof("event") != "result":
            assert response.WhichOneof("event") == "progress"
    await until(lambda: len(set(encoders) & set(_encoders())) == 1)
    calls[1].cancel()
    await until(lambda: not _encoders() and not worker.fleet.slots.running)
    await until(lambda: not worker.servicer.budget.used)


async def test_strips_are_told_as_they_are_done(start_server, start_worker, connect):
    worker = await start_worker([X265], worker={"slots": 1})
    remote = {"id": X265, "family": "remote", "options": {"target": worker.address}}
    server = await start_server([remote])
    for place in (worker, server):
        call = pb_grpc.CompressionServiceStub(connect(place)).Compress()
        params = {"picture": {"strips": 3}}
        await call.write(compress_messages(1, H, X265, want_progress=True, params=params)[0])
        found = await _events(call, lambda e: e.parts_done == 3)
        counts = [(e.parts_done, e.parts_total) for e in found if e.parts_total]
        assert list(dict.fromkeys(counts)) == [(1, 3), (2, 3), (3, 3)]
        stages = [e.stage for e in found]
        assert stages == sorted(stages)
        elapsed = [e.elapsed.ToTimedelta() for e in found]
        assert elapsed == sorted(elapsed)
        call.cancel()


async def test_an_item_is_one_process_unless_it_asks_for_more(start_worker, connect):
    worker = await start_worker([X265])
    large = np.tile(H, (8, 8))
    (loaded,) = worker.fleet.codecs
    assert loaded.spec.options["parallel"] == 1
    got = await compress_one(connect(worker), large, codec=X265, params={"qp_eighths": 0})
    assert not got.result.unit.picture.strip_heights
    assert got.result.unit.payload_bytes > 100_000  # many cores would have coded it in strips


async def test_without_vtm_a_worker_says_so_and_decodes(start_server, start_worker, connect, tmp_path, monkeypatch):
    monkeypatch.delenv("VTM_HOME", raising=False)
    with_vtm = await start_worker([_vtm(stand_in().install(tmp_path / "good"))])
    without = await start_worker([VTM])
    behind = await start_server(
        [{"id": VTM, "family": "remote", "options": {"target": without.address}}],
    )
    coded = await compress_one(connect(with_vtm), H, codec=VTM)
    for place in (without, behind):
        channel = connect(place)
        answer = await pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())
        assert not answer.codecs[0].available
        assert "VTM_HOME" in answer.codecs[0].unavailable_reason
        refused = details((await compress_one(channel, H, codec=VTM)).error)
        assert (refused["code"], refused["reason"]) == (CODE.FAILED_PRECONDITION, "CODEC_UNAVAILABLE")
        assert "VTM_HOME" in refused["message"]
        got = (await talk(channel, decompress_messages(1, coded.result.unit, coded.payload), "Decompress"))[1]
        assert np.square(got.arrays()["h_hat"] - H).mean() < np.square(H).mean()
        assert place.fleet.ready(next(iter(place.fleet.codecs)))


async def test_errors_of_an_encoder_reach_the_client(start_server, start_worker, connect, tmp_path):
    worker = await start_worker([_vtm(stand_in().install(tmp_path, encoder="fails"))])
    options = {"target": worker.address}
    server = await start_server([{"id": VTM, "family": "remote", "options": options}])
    failed = details((await compress_one(connect(server), H, codec=VTM)).error)
    assert (failed["code"], failed["reason"]) == (CODE.UNAVAILABLE, "CODEC_CRASHED")
    assert "told to fail" in failed["message"]
    assert "RetryInfo" in failed["kinds"]
    # What kills an encoder may well be the item: not every worker has to learn that.
    assert worker.counters.items["compress", "CODEC_CRASHED"] == 2


async def test_metrics_of_a_worker(start_worker, connect, logs):
    worker = await start_worker([X265], worker={"slots": 3}, metrics={"listen": "127.0.0.1:0"})
    assert (await compress_one(connect(worker), H, codec=X265)).error is None
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.metrics.port)
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    text = (await reader.read()).decode().partition("\r\n\r\n")[2]
    writer.close()
    samples = {
        (sample.name, sample.labels.get("stage", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["mpcompress_slots", ""] == 3
    assert samples["mpcompress_slots_busy", ""] == 0
    assert samples["mpcompress_stage_seconds_count", "external"] == 1
    assert samples["mpcompress_stage_seconds_count", "queue"] == 1
    (job,) = [record for record in logs if record["event"] == "job done"]
    assert job["codec"] == X265
    assert job["took_s"] > 0


def test_a_worker_has_all_shipped_picture_codecs_and_nothing_else():
    entries = entries_of(Settings.model_validate({"role": "vtm-worker"}))
    assert {entry.id.partition("-")[0] for entry in entries.values()} == {"vtm", "vvenc", "x265"}
    klt = Settings.model_validate({"role": "vtm-worker", "codecs": [{"id": "klt-imgfocus-vits14-final"}]})
    with pytest.raises(SettingsError, match=r"codecs\[0\]: a vtm-worker codes pictures"):
        entries_of(klt)


async def test_a_broken_instance_fails_its_items_only(start_worker, connect, monkeypatch):
    worker = await start_worker([X265], worker={"slots": 2})
    (codec,) = [running.scheduler for running in worker.fleet._current()]

    def fail():
        raise MemoryError

    monkeypatch.setattr(codec, "_load", fail)
    messages = [m for item in range(1, 7) for m in compress_messages(item, H, X265)]
    items = await talk(connect(worker), messages)
    reasons = {details(got.error)["reason"] for got in items.values() if got.error is not None}
    assert reasons <= {"OUT_OF_MEMORY"}
    assert any(got.error is None for got in items.values())
    await until(lambda: not worker.servicer.budget.used)


KINDS = [
    "stand_in",
    pytest.param("vtm", marks=pytest.mark.skipif(not os.environ.get("VTM_HOME"), reason="no VTM_HOME")),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cause", ["item", "deadline", "call"])
async def test_giving_up_ends_the_encoder(start_server, connect, tmp_path, kind, cause):
    """From the client through the server and its worker to the encoder's process."""
    home = os.environ["VTM_HOME"] if kind == "vtm" else stand_in().install(tmp_path / "vtm", encoder="slow")
    with worker_processes() as start:
        process = start(tmp_path / "worker", vtm=home, slots=1)
        await process.ready()
        server = await start_server([{"id": VTM, "family": "remote", "options": {"target": process.address}}])
        call = pb_grpc.CompressionServiceStub(connect(server)).Compress()
        # Noise at a low QP: a minute of VTM.
        fields = {"params": {"qp_eighths": 80}} | ({"timeout": Duration(seconds=10)} if cause == "deadline" else {})
        await call.write(compress_messages(1, np.tile(H, (4, 4)), VTM, **fields)[0])
        await until(process.encoders)
        (pid,) = process.encoders()
        if cause == "call":
            call.cancel()
        else:
            if cause == "item":
                await call.write(pb.CompressRequest(cancel=pb.CancelItem(item_id=1)))
            response = await call.read()
            reason = {"item": "ITEM_CANCELLED", "deadline": "ITEM_TIMEOUT"}[cause]
            assert details(response.error)["reason"] == reason
        await until(lambda: not psutil.pid_exists(pid))
        await until(lambda: process.events("job failed"))
        await until(lambda: not server.servicer.budget.used)


async def test_hostile_bitstreams_through_a_worker(start_server, start_worker, connect):
    """Nobody's decoder hangs or dies of them, and the next item finds its worker as it was."""
    worker = await start_worker([X265])
    server = await start_server([{"id": X265, "family": "remote", "options": {"target": worker.address}}])
    coded = await compress_one(connect(server), H, codec=X265)
    right = coded.payload
    hostile = {
        "empty": b"",
        "garbage": b"\0\0\1" + bytes(range(256)) * 4,
        "text": b"no bitstream at all" * 50,
        "truncated": right[: len(right) // 2],
        "concatenated": right + right,
        "another": bytes(engine("x265").encode(np.zeros((640, 1280), np.uint16), bit_depth=10, qp=51)),
    }
    for name, payload in hostile.items():
        unit = pb.CodedUnitHeader()
        unit.CopyFrom(coded.result.unit)
        unit.payload_bytes, unit.payload_crc32 = len(payload), zlib.crc32(payload)
        OWN_STREAMS.forget()  # the worker is in this process, and must not know them
        got = (await talk(connect(server), decompress_messages(1, unit, payload), "Decompress"))[1]
        assert got.error is not None, name
        assert details(got.error)["reason"] == "CORRUPT_BITSTREAM", name
    got = (await talk(connect(server), decompress_messages(1, coded.result.unit, right), "Decompress"))[1]
    assert got.error is None
    await until(lambda: not worker.servicer.budget.used and not server.servicer.budget.used)
