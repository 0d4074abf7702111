"""Checkpoints and untrained networks of every documented neural class, through the command line and a real server."""

from __future__ import annotations

import base64
import importlib.util
import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from raw_wire import CODE, compress_messages, compress_one, decompress_messages, details, talk

if any(importlib.util.find_spec(name) is None for name in ("torch", "compressai")):
    pytest.skip("needs the extra codecs", allow_module_level=True)

import torch
from safetensors.torch import load

from mpcompress_client.cli import run
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {
    "vit_union": {"h_dim": 64, "y_dim": 16, "z_dim": 8, "groups": 8, "num_prefix_tokens": 1},
    "vit_union_ctx": {"h_dim": 64, "y_dim": 16, "z_dim": 8, "ctx_dim": 8, "groups": 8, "num_prefix_tokens": 2},
    "feature_hyperprior": {"N": 8, "M": 12, "model_type": "dinov2", "trun_low": -5.0, "trun_high": 5.0},
    "hyper_latent_ctx": {"y_channels": 16, "z_channels": 8, "ctx_channels": 8},
    "hyperprior_latent_ctx": {"y_channels": 16, "z_channels": 8, "ctx_channels": 8},
}
SIZES |= {f"{family}_exact": SIZES[family] for family in ("vit_union", "vit_union_ctx")}
# Absolute tolerances of tests/golden/README.md.
TOLERANCE = {"h_hat": 1e-4, "h_hat_share": 2e-5, "params": 2e-5, "y_hat": 2e-5, "x_hat": 5e-6}


def leaves(value) -> list[bytes]:
    return [x for part in value for x in leaves(part)] if isinstance(value, list) else [base64.b64decode(value)]


def golden_cases(name: str) -> list[tuple[dict, dict]]:
    """Facts and arrays of each case of a folder."""
    cases = []
    for case in json.loads((GOLDEN / name / "config.json").read_text())["cases"]:
        with np.load(GOLDEN / name / f"{case}.npz") as arrays:
            cases.append((json.loads((GOLDEN / name / f"{case}.json").read_text()), dict(arrays)))
    return cases


def checkpoint(name: str, path: Path) -> Path:
    """The golden weights as a training script on several GPUs saves them."""
    weights = load(lzma.decompress((GOLDEN / name / "weights.safetensors.xz").read_bytes()))
    torch.save({"epoch": 7, "state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    return path


def inputs_of(arrays: dict) -> dict[str, np.ndarray]:
    """What goes over the wire, as float32 so that it comes back so; in the ViT folders y is a latent."""
    features = next(arrays[key] for key in ("h", "x", "y") if key in arrays)
    found = {"h": features, **({"ctx": arrays["ctx"]} if "ctx" in arrays else {})}
    return {name: array.astype(np.float32) for name, array in found.items()}


def expected_of(arrays: dict, facts: dict, output: str) -> tuple[np.ndarray, float]:
    if output == "h_hat" and "h_hat_crop_after" in arrays:
        return arrays["h_hat_crop_after"], TOLERANCE["h_hat"]
    key = output if output in arrays else "x_hat" if "x_hat" in arrays else "y_hat"
    return arrays[key], TOLERANCE[key]


@pytest.mark.parametrize(
    "name",
    [
        "vit_union_a",
        "vit_union_b",
        "vit_union_ctx",
        "feature_scale_hyperprior",
        "hyper_latent_ctx",
        "hyperprior_latent_ctx",
    ],
)
async def test_a_checkpoint_is_served_by_one_config_entry(start_server, connect, tmp_path, name):
    path = tmp_path / "golden.safetensors"
    assert run(["import-checkpoint", str(checkpoint(name, tmp_path / "weights.pth")), "-o", str(path)]) == 0
    family = {"vit_union_a": "vit_union", "vit_union_b": "vit_union", "feature_scale_hyperprior": "feature_hyperprior"}
    entry = {"id": "golden", "family": family.get(name, name), "weights": str(path)}
    channel = connect(await start_server([entry]))
    (info,) = (await pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())).codecs
    assert (info.trained, info.available) == (True, True)
    assert info.arithmetic == pb.ARITHMETIC_FLOAT32
    for facts, arrays in golden_cases(name):
        inputs = inputs_of(arrays)
        params = pb.CodingParams()
        if "token_res" in facts:
            params.token_res.height, params.token_res.width = facts["token_res"]
        got = await compress_one(channel, inputs, codec="golden", params=params)
        assert got.error is None, got.error
        strings = facts["strings"]
        expected = leaves([strings["y"], strings["z"]] if isinstance(strings, dict) else strings)
        assert got.payload == b"".join(expected)
        assert list(got.result.unit.stream_bytes or [len(got.payload)]) == [len(string) for string in expected]
        context = {key: array for key, array in inputs.items() if key == "ctx"}
        messages = decompress_messages(1, got.result.unit, got.payload, context)
        back = (await talk(channel, messages, "Decompress"))[1]
        assert back.error is None, back.error
        assert [port.name for port in info.outputs] == list(back.arrays())
        for output, array in back.arrays().items():
            reference, tolerance = expected_of(arrays, facts, output)
            np.testing.assert_allclose(array, reference, atol=tolerance, rtol=0)


def untrained_entries(**isolation: str) -> list[dict]:
    """One codec per family; `isolation` by family, a thread otherwise."""
    return [
        {
            "id": family.replace("_", "-"),
            "family": family,
            "options": {**sizes, "seed": 3},
            "isolation": isolation.get(family, "thread"),
        }
        for family, sizes in SIZES.items()
    ]


def features_for(family: str, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], pb.CodingParams]:
    params = pb.CodingParams()
    if family.startswith("vit_union"):
        params.token_res.height, params.token_res.width = 5, 6
        sizes = SIZES[family]
        inputs = {"h": rng.standard_normal((2, sizes["num_prefix_tokens"] + 30, 64)).astype(np.float16)}
        if "ctx_dim" in sizes:
            inputs["ctx"] = rng.standard_normal((2, 8, 5, 6)).astype(np.float32)
        return inputs, params
    if family == "feature_hyperprior":
        return {"h": 3 * rng.standard_normal((2, 33, 40)).astype(np.float32)}, params
    return {name: rng.standard_normal((c, 5, 6)).astype(np.float32) for name, c in (("h", 16), ("ctx", 8))}, params


async def test_every_documented_class_untrained(start_server, connect):
    channel = connect(await start_server(untrained_entries(vit_union_ctx="process"), allow_untrained=True))
    listed = await pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())
    assert {info.family: (info.trained, info.available) for info in listed.codecs} == dict.fromkeys(
        SIZES, (False, True)
    )
    assert all("UNTRAINED" in info.description for info in listed.codecs)
    rng = np.random.default_rng(0)
    for family in SIZES:
        inputs, params = features_for(family, rng)
        got = await compress_one(channel, inputs, codec=family.replace("_", "-"), params=params)
        assert got.error is None, (family, got.error)
        context = {name: array for name, array in inputs.items() if name == "ctx"}
        requests = decompress_messages(1, got.result.unit, got.payload, context)
        requests += decompress_messages(2, got.result.unit, got.payload, {name: a + 1 for name, a in context.items()})
        back = await talk(channel, requests, "Decompress")
        outputs = back[1].arrays()
        assert all(np.isfinite(array.astype(np.float32)).all() for array in outputs.values())
        if family != "hyper_latent_ctx":
            assert outputs["h_hat"].shape == inputs["h"].shape
            assert outputs["h_hat"].dtype == inputs["h"].dtype
        assert len(got.result.unit.ctx_hash) == (8 if context else 0)
        if context:
            assert details(back[2].error)["code"] == CODE.FAILED_PRECONDITION
            assert details(back[2].error)["reason"] == "CODEC_MISMATCH"


async def test_untrained_codecs_are_refused_unless_allowed(start_server, connect):
    entries = untrained_entries()[:1]
    channel = connect(await start_server(entries))
    (info,) = (await pb_grpc.CompressionServiceStub(channel).ListCodecs(pb.ListCodecsRequest())).codecs
    assert (info.trained, info.available) == (False, False)
    assert "--allow-untrained" in info.unavailable_reason
    inputs, params = features_for("vit_union", np.random.default_rng(0))
    got = await compress_one(channel, inputs, codec="vit-union", params=params)
    assert details(got.error)["code"] == CODE.FAILED_PRECONDITION


async def test_bad_items_are_refused_with_their_field(start_server, connect):
    channel = connect(await start_server(untrained_entries(), allow_untrained=True))
    rng = np.random.default_rng(0)
    inputs, params = features_for("vit_union_ctx", rng)
    no_grid, qp = pb.CodingParams(), pb.CodingParams(qp_eighths=192)
    qp.token_res.CopyFrom(params.token_res)
    broken = {"h": inputs["h"].copy(), "ctx": inputs["ctx"].copy()}
    broken["h"][1, 3, 5] = np.nan
    huge = {"h": np.full((1, 32, 64), 3e38, np.float32), "ctx": inputs["ctx"][:1]}
    cases = {
        1: (inputs, no_grid, "params.token_res"),
        2: (inputs, qp, "params.qp_eighths"),
        3: ({"h": inputs["h"][..., :32], "ctx": inputs["ctx"]}, params, "tensors[0].shape"),
        4: ({"ctx": inputs["ctx"][:, :, :4], "h": inputs["h"]}, params, "tensors[0].shape"),
        5: ({"h": inputs["h"]}, params, "tensors"),
        6: (broken, params, "tensors[0]"),
        7: (huge, params, "tensors[0]"),
    }
    requests = []
    for item_id, (tensors, item_params, _) in cases.items():
        requests += compress_messages(item_id, tensors, codec="vit-union-ctx", params=item_params)
    answers = await talk(channel, requests)
    for item_id, (_, _, field) in cases.items():
        found = details(answers[item_id].error)
        assert (found["code"], found["fields"]) == (CODE.INVALID_ARGUMENT, [field]), (item_id, found)
