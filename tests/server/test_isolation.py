"""Codecs in worker processes: what they do to themselves does not reach the server or other items."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from mpc_load_codecs import ALLOCATE, ALLOCATE_SOME
from mpc_test_codecs import BUG, CRASH, HANG
from raw_wire import CODE, compress_messages, compress_one, decompress_messages, details, features, talk

from mpcompress.codec import Coded, CodingParams
from mpcompress.errors import CodecCrashedError
from mpcompress.registry import CodecSpec
from mpcompress_server.calls import CompressCall
from mpcompress_server.process_executor import ProcessExecutor

RECKLESS = {"id": "store", "family": "test_bytes", "isolation": "process", "options": {"reckless": True}}
CONTEXT = {**RECKLESS, "id": "ctx", "options": {"context": True}}
OPEN_FILES = Path("/proc/self/fd")


def _workers():
    return [p for p in psutil.Process().children() if "mpcompress_server.worker" in " ".join(p.cmdline())]


async def test_results_are_those_of_a_thread(start_server, connect):
    channel = connect(await start_server([CONTEXT]))
    h, ctx = features(50_000), features(11)
    got = await compress_one(channel, {"h": h, "ctx": ctx}, codec="ctx")
    assert got.payload == h.tobytes()
    messages = decompress_messages(1, got.result.unit, got.payload, {"ctx": ctx})
    back = await talk(channel, messages, "Decompress")
    np.testing.assert_array_equal(back[1].arrays()["h_hat"], h)


@pytest.mark.parametrize("trigger", [CRASH, HANG])
async def test_only_the_item_that_kills_its_worker_fails(start_server, connect, trigger):
    executors = {"watchdog_s": 1.0 if trigger == HANG else 60.0}
    server = await start_server([RECKLESS, {"id": "other", "family": "test_bytes"}], executors=executors)
    channel = connect(server)
    (before,) = _workers()
    requests = [
        *compress_messages(1, features(5)),
        *compress_messages(2, features(5, trigger)),
        *compress_messages(3, features(6)),
        *compress_messages(4, features(7), codec="other"),
    ]
    answers = await talk(channel, requests)
    for item, size in ((1, 5), (3, 6), (4, 7)):
        assert answers[item].payload == features(size).tobytes()
    error = details(answers[2].error)
    assert error["code"] == CODE.UNAVAILABLE
    assert error["reason"] == "CODEC_CRASHED"
    assert "RetryInfo" in error["kinds"]
    (after,) = _workers()
    assert after.pid != before.pid
    assert server.servicer.budget.used == 0


async def test_a_worker_killed_between_calls_is_replaced(start_server, connect):
    channel = connect(await start_server([RECKLESS]))
    (worker,) = _workers()
    worker.kill()
    worker.wait()
    codes = {(await compress_one(channel, features())).error is None for _ in range(3)}
    assert True in codes
    assert (await compress_one(channel, features())).error is None


async def test_a_bug_in_a_worker_is_logged_here_and_hidden_there(start_server, connect):
    channel = connect(await start_server([RECKLESS]))
    (worker,) = _workers()
    got = await compress_one(channel, features(4, BUG))
    error = details(got.error)
    assert (error["code"], error["reason"]) == (CODE.INTERNAL, "INTERNAL")
    assert "/a/path" not in got.error.message
    assert _workers() == [worker]


async def test_workers_leave_nothing_behind(start_server, connect):
    server = await start_server([RECKLESS])
    channel = connect(server)
    assert (await compress_one(channel, features(1000))).error is None
    open_files = len(list(OPEN_FILES.iterdir()))
    for _ in range(3):
        assert (await compress_one(channel, features(5, CRASH))).error is not None
        assert (await compress_one(channel, features(1000))).error is None
    assert len(list(OPEN_FILES.iterdir())) <= open_files + 1
    (worker,) = _workers()
    await server.stop(grace_s=0.0)
    assert not worker.is_running()
    assert not list(Path("/dev/shm").glob("*mpcompress*"))


async def test_stopping_does_not_wait_for_a_hanging_worker(start_server, connect):
    server = await start_server([RECKLESS], executors={"watchdog_s": 3600.0})
    channel = connect(server)
    task = asyncio.create_task(compress_one(channel, features(5, HANG)))
    (worker,) = _workers()
    while server.servicer.budget.used == 0:
        await asyncio.sleep(0)
    await asyncio.wait_for(server.stop(grace_s=0.0), 20)
    assert not worker.is_running()
    with pytest.raises(grpc.aio.AioRpcError):
        await task


async def test_a_codec_that_dies_while_it_starts_is_unavailable(start_server, connect):
    codecs = [
        {**RECKLESS, "id": "dies", "options": {"dies_at_start": True}},
        {**RECKLESS, "id": "fails", "options": {"fails_to_warm_up": True}},
        {"id": "store", "family": "test_bytes"},
    ]
    channel = connect(await start_server(codecs))
    for codec in ("dies", "fails"):
        error = details((await compress_one(channel, features(), codec=codec)).error)
        assert (error["code"], error["reason"]) == (CODE.FAILED_PRECONDITION, "CODEC_UNAVAILABLE")
        assert "/a/path" not in error["message"]
    assert (await compress_one(channel, features())).error is None


# ------------------------------------------------------------------------------------------------ out of memory


def _staged(**entry):
    return {"id": "store", "family": "test_staged", "isolation": "process", **entry}


PLUGINS = ("mpc_test_codecs", "mpc_load_codecs")


@pytest.mark.parametrize("bound", [None, 256 << 20], ids=["machine", "max_worker_bytes"])
async def test_only_the_item_that_asks_for_too_much_memory_fails(start_server, connect, bound):
    trigger = ALLOCATE if bound is None else ALLOCATE_SOME
    server = await start_server([_staged(max_worker_bytes=bound)], plugins=PLUGINS)
    channel = connect(server)
    (before,) = _workers()
    requests = [
        *compress_messages(1, features(5)),
        *compress_messages(2, features(5, trigger)),
        *compress_messages(3, features(6)),
    ]
    answers = await talk(channel, requests)
    for item, size in ((1, 5), (3, 6)):
        assert answers[item].payload == features(size).tobytes()
    error = details(answers[2].error)
    assert (error["code"], error["reason"]) == (CODE.RESOURCE_EXHAUSTED, "OUT_OF_MEMORY")
    assert "RetryInfo" in error["kinds"]
    assert (await compress_one(channel, features(7))).payload == features(7).tobytes()
    (after,) = _workers()
    assert after.pid != before.pid  # what it still holds nobody knows
    assert server.servicer.budget.used == 0


async def test_a_worker_without_a_bound_takes_the_memory_it_needs(start_server, connect):
    channel = connect(await start_server([_staged()], plugins=PLUGINS))
    assert (await compress_one(channel, features(5, ALLOCATE_SOME))).error is None


async def test_a_codec_that_crashes_again_and_again_is_started_at_longer_intervals():
    spec = CodecSpec(id="store", family="test_bytes", options={"reckless": True})
    executor = ProcessExecutor(spec, plugins=("mpc_test_codecs",), watchdog_s=60.0, start_timeout_s=60.0)
    await executor.start()
    pauses = []
    try:
        for _ in range(3):
            result = await executor.run(_call(features(5, CRASH)), lambda: None)
            assert isinstance(result.outcomes[0], CodecCrashedError)
            pauses.append(executor.pause_s)
        result = await executor.run(_call(features(5)), lambda: None)  # waits for the pause
        assert isinstance(result.outcomes[0], Coded)
        await executor.run(_call(features(5, CRASH)), lambda: None)
        pauses.append(executor.pause_s)
    finally:
        await executor.close()
    assert pauses == [0.0, 0.5, 1.0, 0.0]
    assert executor.restarts == 4


def _call(h):
    return CompressCall(inputs=[{"h": h}], params=[CodingParams()])
