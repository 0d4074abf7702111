"""Codecs on a real GPU behind a real server: documented classes, batches, workers, memory. Skipped without one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from mpc_load_codecs import BATCHES
from raw_wire import compress_messages, compress_one, decompress_messages, details, features, talk
from test_neural_end_to_end import SIZES, checkpoint, expected_of, golden_cases, inputs_of

if any(importlib.util.find_spec(name) is None for name in ("torch", "compressai")):
    pytest.skip("needs the extra codecs", allow_module_level=True)

import torch

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

from mpcompress import registry
from mpcompress.codec import CodingParams, TensorSpec
from mpcompress.metrics import nmse
from mpcompress_client.cli import run
from mpcompress_proto.v1 import compression_pb2 as pb

EXACT = Path(__file__).parents[1] / "mpcompress/exact/golden"
GOLDEN_FAMILIES = {
    "vit_union_a": "vit_union",
    "vit_union_b": "vit_union",
    "vit_union_ctx": "vit_union_ctx",
    "feature_scale_hyperprior": "feature_hyperprior",
    "hyper_latent_ctx": "hyper_latent_ctx",
    "hyperprior_latent_ctx": "hyperprior_latent_ctx",
}


async def there_and_back(channel, inputs, codec, **options):
    """The unit's header and payload, and the features that it gives."""
    got = await compress_one(channel, inputs, codec=codec, **options)
    assert got.error is None, got.error
    context = {name: array for name, array in inputs.items() if name == "ctx"}
    messages = decompress_messages(1, got.result.unit, got.payload, context)
    back = (await talk(channel, messages, "Decompress"))[1]
    assert back.error is None, back.error
    return got, back.arrays()


@pytest.mark.parametrize("name", GOLDEN_FAMILIES)
async def test_a_checkpoint_on_a_gpu_gives_the_features_that_it_gives_on_a_cpu(start_server, connect, tmp_path, name):
    path = tmp_path / "golden.safetensors"
    assert run(["import-checkpoint", str(checkpoint(name, tmp_path / "weights.pth")), "-o", str(path)]) == 0
    entry = {"id": "golden", "family": GOLDEN_FAMILIES[name], "weights": str(path), "options": {"device": "cuda"}}
    channel = connect(await start_server([entry]))
    for facts, arrays in golden_cases(name):
        params = pb.CodingParams()
        if "token_res" in facts:
            params.token_res.height, params.token_res.width = facts["token_res"]
        got, outputs = await there_and_back(channel, inputs_of(arrays), "golden", params=params)
        # A rounding may move a latent across the border of a bin, so strings differ here and there, not in the mass.
        assert len(got.payload) == pytest.approx(facts_bytes(facts), rel=0.02, abs=4)
        for output, array in outputs.items():
            assert nmse(expected_of(arrays, facts, output)[0], array) < 1e-3
    assert torch.cuda.memory_allocated() > 0


def facts_bytes(facts: dict) -> int:
    """Size of all recorded strings."""

    def leaves(value) -> int:
        return sum(map(leaves, value)) if isinstance(value, list) else len(value) * 3 // 4 - value.count("=")

    strings = facts["strings"]
    return leaves([strings["y"], strings["z"]] if isinstance(strings, dict) else strings)


@pytest.mark.parametrize("family", ["vit_union_exact", "vit_union_ctx_exact"])
async def test_exact_units_travel_between_a_gpu_and_a_cpu(start_server, connect, family):
    entries = [
        {"id": name, "family": family, "options": {**SIZES[family], "seed": 3, "device": device}}
        for name, device in (("there", "cuda"), ("here", "cpu"))
    ]
    grid, prefix = (9, 7), SIZES[family]["num_prefix_tokens"]
    rng = np.random.default_rng(5)
    inputs = {"h": rng.standard_normal((prefix + grid[0] * grid[1], 64)).astype(np.float32)}
    if family == "vit_union_ctx_exact":
        inputs["ctx"] = rng.standard_normal((8, *grid)).astype(np.float32)
    channel = connect(await start_server(entries, allow_untrained=True))
    params = pb.CodingParams(token_res=pb.TokenGrid(height=grid[0], width=grid[1]))
    units, decoded = {}, {}
    for name in ("there", "here"):
        units[name], decoded[name] = await there_and_back(channel, inputs, name, params=params)
    context = {name: array for name, array in inputs.items() if name == "ctx"}
    for made, read in (("there", "here"), ("here", "there")):
        header = pb.CodedUnitHeader()
        header.CopyFrom(units[made].result.unit)
        header.codec_id = read
        messages = decompress_messages(1, header, units[made].payload, context)
        back = (await talk(channel, messages, "Decompress"))[1]
        assert back.error is None, back.error  # the checksums of the latents agree
        for output, array in back.arrays().items():
            np.testing.assert_allclose(array, decoded[made][output], atol=1e-3)


def test_the_recorded_exact_stream_decodes_on_a_gpu():
    """What was encoded on another machine's CPU."""
    facts = json.loads((EXACT / "unit.json").read_text())
    decoded = []
    for device in ("cpu", "cuda"):
        spec = registry.CodecSpec(
            id="golden",
            family="vit_union_ctx_exact",
            weights=str(EXACT / "codec.safetensors"),
            options={"device": device},
        )
        net = registry.load(spec)._net
        from mpcompress.latent_codecs._vit_base import VitGeometry

        height, width = facts["token_res"]
        ctx = torch.tensor(facts["ctx"], dtype=torch.int16).view(1, net.ctx_dim, height, width).to(device)
        y_hat = net._decode([bytes.fromhex(facts["stream"])], (ctx,), VitGeometry(token_res=(height, width)))
        decoded.append(y_hat.cpu())
    assert torch.equal(*decoded)


@pytest.mark.parametrize("family", ["vit_union", "vit_union_ctx", "vit_union_exact", "vit_union_ctx_exact"])
def test_a_batch_gives_the_strings_of_single_calls(family):
    options = {**SIZES[family], "seed": 3, "device": "cuda"}
    codec = registry.load(registry.CodecSpec(id="c", family=family, options=options))
    rng = np.random.default_rng(6)
    batch = []
    for _ in range(5):
        item = {"h": 3 * rng.standard_normal((SIZES[family]["num_prefix_tokens"] + 63, 64)).astype(np.float32)}
        if "ctx" in family:
            item["ctx"] = rng.standard_normal((8, 9, 7)).astype(np.float32)
        batch.append(item)
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=array.shape) for name, array in batch[0].items())
    params = codec.resolve(specs, CodingParams(token_res=(9, 7)))
    together = codec.compress(batch, params)
    alone = [codec.compress([item], params)[0] for item in batch]
    assert [coded.strings for coded in together] == [coded.strings for coded in alone]


async def test_many_clients_share_two_instances_of_one_device(start_server, connect):
    options = {**SIZES["vit_union_exact"], "seed": 3}
    entry = {"id": "c", "family": "vit_union_exact", "options": options, "devices": ["cuda:0"], "instances": 2}
    server = await start_server([{**entry, "max_batch": 8, "max_delay_ms": 5}], allow_untrained=True)
    rng = np.random.default_rng(7)
    tensors = [rng.standard_normal((2, 64, 64)).astype(np.float32)[0] for _ in range(24)]
    params = pb.CodingParams(token_res=pb.TokenGrid(height=9, width=7))

    async def client(h):
        return (await compress_one(connect(server), h, codec="c", params=params)).payload

    first, second = [await asyncio.gather(*map(client, tensors)) for _ in range(2)]
    assert first == second
    assert len(set(first)) == len(first)


async def test_a_worker_process_has_the_gpu_again_after_it_was_killed(start_server, connect):
    options = {**SIZES["vit_union_exact"], "seed": 3, "device": "cuda"}
    entry = {"id": "c", "family": "vit_union_exact", "isolation": "process", "options": options}
    server = await start_server([entry], allow_untrained=True)
    channel = connect(server)
    params = pb.CodingParams(token_res=pb.TokenGrid(height=9, width=7))
    h = {"h": np.random.default_rng(8).standard_normal((64, 64)).astype(np.float32)}
    before, _ = await there_and_back(channel, h, "c", params=params)
    (pid,) = children_of_this_process()
    os.kill(pid, signal.SIGKILL)
    for _ in range(200):
        after = await compress_one(channel, h, codec="c", params=params)
        if after.error is None:
            break
        await asyncio.sleep(0.2)
    assert after.payload == before.payload


def children_of_this_process() -> list[int]:
    return [int(pid) for children in Path("/proc/self/task").glob("*/children") for pid in children.read_text().split()]


async def test_a_batch_too_large_for_a_real_gpu_is_halved_and_an_item_too_large_fails_alone(start_server, connect):
    each = 256 << 20
    torch.cuda.empty_cache()
    taken, total = torch.cuda.memory_reserved(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((taken + 4.5 * each) / total)
    try:
        codecs = [
            {"id": "store", "family": "test_staged", "options": {"gpu_bytes": each}},
            {"id": "large", "family": "test_staged", "options": {"gpu_bytes": 5 * each}},
        ]
        codecs[0] |= {"max_batch": 8, "max_delay_ms": 60_000}
        server = await start_server(codecs, plugins=("mpc_test_codecs", "mpc_load_codecs"))
        channel = connect(server)
        BATCHES.clear()
        answers = await talk(channel, [m for item in range(16) for m in compress_messages(item, features(4))])
        assert all(got.payload == features(4).tobytes() for got in answers.values())
        assert BATCHES[:3] == [8, 4, 4]
        assert max(BATCHES[3:]) <= 4
        assert server.counters.shrunk == {"store": 1}
        error = details((await talk(channel, compress_messages(1, features(4), codec="large")))[1].error)
        assert (error["reason"], "RetryInfo" in error["kinds"]) == ("OUT_OF_MEMORY", True)
        (got,) = (await talk(channel, compress_messages(1, features(4), codec="large"))).values()
        assert details(got.error)["reason"] == "OUT_OF_MEMORY"
        assert torch.cuda.memory_reserved() <= taken + 4.5 * each
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_filter_learns_on_a_gpu():
    """CuPy takes the steps that NumPy takes."""
    cupy = pytest.importorskip("cupy")
    from mpcompress.transforms.klt_filter_network import Example, Network

    rng = np.random.default_rng(0)
    examples = [
        {
            "grid": rng.standard_normal((5, 7, 24)).astype(np.float16),
            "head": rng.standard_normal(24).astype(np.float16),
            "missing": rng.standard_normal((5, 7, 24)).astype(np.float16),
        }
        for _ in range(6)
    ]
    networks = []
    for xp in (np, cupy):
        network = Network(xp, 24, 2, 16)
        for step in range(30):
            batch = [
                Example(**{name: xp.asarray(array) for name, array in example.items()}, t=n / 6, weight=1 + n)
                for n, example in enumerate(examples)
            ]
            network.learn(batch[step % 3 :], 1e-3)
        networks.append(network.model(0, np.ones(24, np.float32), 1.0))
    for (name, here), (_, there) in zip(networks[0].arrays(), networks[1].arrays(), strict=True):
        np.testing.assert_allclose(
            here.astype(np.float32), there.astype(np.float32), rtol=1e-2, atol=1.01, err_msg=name
        )
