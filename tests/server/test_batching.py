"""Batches: who shares one, whose turn it is, what overlaps, and that nothing of it shows in the results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from mpc_load_codecs import BATCHES, LOADED
from mpc_test_codecs import GATES, BytesCodec, Gate
from raw_wire import compress_messages, decompress_messages, details, features, talk

from mpcompress import registry
from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import InvalidInputError
from mpcompress.transforms.klt_basis import Bases
from mpcompress_server.batching import Batching, BatchScheduler
from mpcompress_server.calls import Call, CallResult, CompressCall, DecompressCall, run_call
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.scheduler import CompressWork, Job
from mpcompress_server.settings import CodecEntry

PLUGINS = ("mpc_test_codecs", "mpc_load_codecs")
STAGED = {"id": "store", "family": "test_staged"}
KLT = "klt-imgfocus-vits14-final"


class Recorder:
    """An executor that notes who came together, and takes the next batch when it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.gate = asyncio.Semaphore(0)

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def run(self, call: Call, next_may_begin: Callable[[], None]) -> CallResult:
        assert isinstance(call, CompressCall)
        self.batches.append([name for item in call.inputs for name in item])
        await self.gate.acquire()
        return CallResult(outcomes=[InvalidInputError("done")] * len(call), coding_s=0.0)


def _job(stream: str, name: str, key: str = "k") -> Job:
    work = CompressWork(tensors={name: None}, params=CodingParams())  # type: ignore[dict-item]
    loaded = LoadedCodec(entry=CodecEntry(id="codec"))
    return Job(loaded=loaded, work=work, deadline=0.0, key=key, stream=stream)


async def _run(batching: Batching, jobs: list[Job], *later: Job) -> list[list[str]]:
    """Batches in which an executor gets jobs; `later` ones come while the first batch runs."""
    executor = Recorder()
    scheduler = BatchScheduler({"codec": [executor]}, {"codec": batching})
    await scheduler.start()
    for job in jobs:
        scheduler.submit(job)
    while not executor.batches:
        await asyncio.sleep(0)
    for job in later:
        scheduler.submit(job)
    for _ in [*jobs, *later]:
        executor.gate.release()
    for job in [*jobs, *later]:
        with pytest.raises(InvalidInputError):
            await job.result
    await scheduler.close()
    return executor.batches


async def test_equal_keys_share_a_batch_and_streams_keep_their_order():
    keys = "kkmkmk"
    batches = await _run(Batching(max_batch=3), [_job("a", f"{key}{i}", key) for i, key in enumerate(keys)])
    assert batches == [["k0", "k1", "k3"], ["m2", "m4"], ["k5"]]


async def test_streams_take_turns_within_a_batch():
    jobs = [_job("a", f"a{i}") for i in range(4)] + [_job("b", "b0"), _job("c", "c0"), _job("c", "c1")]
    assert await _run(Batching(max_batch=4), jobs) == [["a0", "b0", "c0", "a1"], ["c1", "a2", "a3"]]


@pytest.mark.parametrize("key", ["k", "another"])
@pytest.mark.parametrize("max_batch", [1, 8])
async def test_ten_thousand_items_delay_another_stream_by_one_batch(key, max_batch):
    many = [_job("a", f"a{i}") for i in range(10_000)]
    batches = await _run(Batching(max_batch=max_batch), many, _job("b", "single", key))
    assert "single" in batches[1]
    assert sum(map(len, batches)) == 10_001


async def test_a_batch_waits_for_company_no_longer_than_it_may():
    executor = Recorder()
    scheduler = BatchScheduler({"codec": [executor]}, {"codec": Batching(max_batch=2, max_delay_s=3600.0)})
    await scheduler.start()
    scheduler.submit(_job("a", "a"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert executor.batches == []
    scheduler.submit(_job("b", "b"))
    while not executor.batches:
        await asyncio.sleep(0)
    assert executor.batches == [["a", "b"]]
    executor.gate.release()
    await scheduler.close()
    assert await _run(Batching(max_batch=2, max_delay_s=0.01), [_job("a", "alone")]) == [["alone"]]


async def test_consecutive_batches_overlap_in_their_stages(start_server, connect):
    first, second = GATES["first"], GATES["second"] = Gate(), Gate()
    server = await start_server(
        [{**STAGED, "max_batch": 1, "options": {"first": "first", "second": "second"}}], plugins=PLUGINS
    )
    requests = [message for item in range(3) for message in compress_messages(item, features(3 + item))]
    answers = asyncio.create_task(talk(connect(server), requests))
    first.open.set()
    # The first batch is held in its second stage, and the second batch has been through its first.
    for gate in (second, first, first):
        assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
    second.open.set()
    assert [got.payload for got in (await answers).values()] == [features(3 + item).tobytes() for item in range(3)]


async def test_a_batch_too_large_for_its_device_is_halved_and_the_next_ones_are_smaller(start_server, connect):
    GATES["hold"] = hold = Gate()
    codec = {**STAGED, "max_batch": 8, "max_delay_ms": 60_000, "options": {"capacity": 4, "first": "hold"}}
    server = await start_server([codec], plugins=PLUGINS)
    BATCHES.clear()
    hold.open.set()
    requests = [message for item in range(16) for message in compress_messages(item, features(4))]
    answers = await talk(connect(server), requests)
    assert all(got.payload == features(4).tobytes() for got in answers.values())
    assert BATCHES[:3] == [8, 4, 4]
    assert server.counters.shrunk == {"store": 1}
    assert max(BATCHES[3:]) <= 4


async def test_an_item_too_large_for_its_device_fails_alone(start_server, connect):
    server = await start_server([{**STAGED, "options": {"capacity": 0}}], plugins=PLUGINS)
    got = await talk(connect(server), compress_messages(1, features(4)))
    error = details(got[1].error)
    assert error["reason"] == "OUT_OF_MEMORY"
    assert "RetryInfo" in error["kinds"]


async def test_every_device_has_its_instances(start_server, connect):
    LOADED.clear()
    codec = {**STAGED, "devices": ["cuda:0", "cuda:1"], "instances": 2}
    server = await start_server([codec], plugins=PLUGINS)
    assert sorted(device for device in LOADED if device) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    got = await talk(connect(server), compress_messages(1, features(4)))
    assert got[1].error is None


# --------------------------------------------------------------------------------------------- bit for bit


def _klt_items(codec) -> tuple[list[dict[str, np.ndarray]], list[CodingParams]]:
    random = np.random.default_rng(7)
    inputs, params = [], []
    for tokens, grid, qp in ((257, (16, 16), 160), (41, (5, 8), 240), (257, (16, 16), 160), (8, (1, 7), 192)):
        h = random.standard_normal((tokens, codec.model.channels)).astype(np.float32)
        spec = TensorSpec(name="h", dtype="float32", shape=h.shape)
        inputs.append({"h": h})
        params.append(codec.resolve([spec], CodingParams(token_res=grid, qp_eighths=qp)))
    return inputs, params


def test_shapes_that_share_a_klt_batch_give_the_bits_of_single_calls(monkeypatch):
    codec = registry.load(registry.preset(KLT))
    inputs, params = _klt_items(codec)
    shared: list[int] = []
    forward_few = Bases.forward_few

    def spy(self, slot, rows, depths):
        shared.append(len(rows))
        return forward_few(self, slot, rows, depths)

    monkeypatch.setattr(Bases, "forward_few", spy)
    together = run_call(codec, CompressCall(inputs=inputs, params=params)).outcomes
    assert shared[0] == len(inputs)  # the roots of all, in one product
    alone = [codec.compress([item], own)[0] for item, own in zip(inputs, params, strict=True)]
    assert [coded.strings for coded in together] == [coded.strings for coded in alone]
    assert [coded.pstate for coded in together] == [coded.pstate for coded in alone]
    specs = [(TensorSpec(name="h", dtype="float32", shape=item["h"].shape),) for item in inputs]
    units = [Unit(strings=c.strings, pstate=c.pstate, specs=s) for c, s in zip(together, specs, strict=True)]
    outputs = [codec.check_unit(unit) for unit in units]
    decoded = run_call(codec, DecompressCall(units=units, outputs=outputs)).outcomes
    for tensors, unit in zip(decoded, units, strict=True):
        np.testing.assert_array_equal(tensors["h_hat"], codec.decompress([unit])[0]["h_hat"])


def test_a_codec_without_a_call_for_mixed_params_gets_one_for_each_run():
    class Noting(BytesCodec):
        def begin_compress(self, batch, params, cancel):
            noted.append(
                (params.qp_eighths, [int(item["h"][0]) for item in batch], [token.is_set() for token in cancel])
            )
            return super().begin_compress(batch, params, cancel)

    noted: list[tuple[int | None, list[int], list[bool]]] = []
    spec = registry.CodecSpec(id="noting", family="test_bytes", options={})
    inputs = [{"h": np.full(4, n, np.float32)} for n in range(5)]
    params = [CodingParams(qp_eighths=qp) for qp in (8, 8, 16, 8, 8)]
    call = CompressCall(inputs=inputs, params=params)
    outcomes = run_call(Noting(spec), call).outcomes
    assert noted == [(8, [0, 1], [False] * 2), (16, [2], [False]), (8, [3, 4], [False] * 2)]
    assert [coded.strings for coded in outcomes] == [Noting(spec).compress([i], params[0])[0].strings for i in inputs]


async def test_batches_of_a_server_give_the_bits_of_the_library(start_server, connect):
    codec = registry.load(registry.preset(KLT))
    # Long enough that all come together, and no longer once they have.
    server = await start_server([{"id": KLT, "max_batch": 3, "max_delay_ms": 60_000}])
    channel = connect(server)
    shapes = [(257, 384), (42, 384), (2, 42, 384)]
    random = np.random.default_rng(3)
    tensors = [random.standard_normal(shape).astype(np.float32) for shape in shapes]
    from mpcompress_proto.v1 import compression_pb2 as pb

    requests = []
    for item, h in enumerate(tensors):
        grid = pb.TokenGrid(height=16, width=16) if h.shape[-2] == 257 else pb.TokenGrid(height=1, width=41)
        requests += compress_messages(item, h, codec=KLT, params=pb.CodingParams(token_res=grid))
    answers = await talk(channel, requests)
    units = []
    for item, h in enumerate(tensors):
        spec = TensorSpec(name="h", dtype="float32", shape=h.shape)
        grid = (16, 16) if h.shape[-2] == 257 else (1, 41)
        params = codec.resolve([spec], CodingParams(token_res=grid))
        (coded,) = codec.compress([{"h": h}], params)
        assert answers[item].payload == b"".join(coded.strings)
        units.append(Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,)))
    requests = [
        message
        for item in range(3)
        for message in decompress_messages(item, answers[item].result.unit, answers[item].payload)
    ]
    back = await talk(channel, requests, "Decompress")
    for item, unit in enumerate(units):
        np.testing.assert_array_equal(back[item].arrays()["h_hat"], codec.decompress([unit])[0]["h_hat"])
    assert server.counters.batches[KLT, 3] == 2
