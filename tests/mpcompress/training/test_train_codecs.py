"""Short runs on features with structure: they learn, resume exactly, and give files that code as they promised."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import CodecFileError, InvalidInputError
from mpcompress.metrics import nmse
from mpcompress.neural.codec_file import NeuralFile
from mpcompress.registry import CodecSpec, load
from mpcompress.training import TrainingConfig, train
from mpcompress.training.data import FeatureSet

SMALL = {"y_dim": 16, "z_dim": 8, "groups": [4, 12]}
BASE = TrainingConfig(
    family="vit_union",
    codec_id="t",
    lmbda=20,
    steps=4,
    batch_size=2,
    learning_rate=1e-3,
    sizes=SMALL,
    prefix_tokens=1,
    device="cpu",
    validation_tensors=2,
)
MAPS = replace(
    BASE,
    family="feature_hyperprior",
    sizes={"N": 8, "M": 8},
    prefix_tokens=0,
    condition="dinov2-cls",
    patch=(64, 64),
)


def features(count: int, seed: int = 0) -> np.ndarray:
    """(count, 1 + 4x4, 64): a few directions, smooth over the grid, and a mean."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(99).standard_normal((6, 64))
    weights = np.repeat(np.repeat(rng.standard_normal((count, 2, 2, 6)), 2, axis=1), 2, axis=2).reshape(count, 16, 6)
    tokens = weights @ directions + 0.1 * rng.standard_normal((count, 16, 64))
    return np.concatenate([np.full((count, 1, 64), 0.5), tokens], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders with features and their contexts."""
    folder = tmp_path_factory.mktemp("features")
    for name in ("h", "ctx"):
        (folder / name).mkdir()
    for number, h in enumerate(features(20)):
        np.save(folder / "h" / f"{number:02d}.npy", h.astype(np.float16))
        ctx = np.random.default_rng(number).standard_normal((8, 4, 4)).astype(np.float32)
        np.save(folder / "ctx" / f"{number:02d}.npy", ctx)
    return folder


def decoded(file: NeuralFile, item: dict[str, np.ndarray], folder) -> tuple[int, np.ndarray]:
    path = folder / "codec.safetensors"
    path.write_bytes(file.to_bytes())
    codec = load(CodecSpec(id=file.id, family=file.family, weights=str(path)))
    specs = [TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in item.items()]
    (coded,) = codec.compress([item], codec.resolve(specs, CodingParams()))
    context = {name: array for name, array in item.items() if name != "h"}
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(specs[0],), ctx_hash=coded.ctx_hash, context=context)
    codec.check_unit(unit)
    return sum(map(len, coded.strings)), codec.decompress([unit])[0]["h_hat"]


@pytest.mark.parametrize("family", ["vit_union", "vit_union_ctx", "feature_hyperprior"])
def test_every_family_gives_a_codec_file_that_does_what_the_card_says(data, tmp_path, family):
    config = MAPS if family == "feature_hyperprior" else replace(BASE, family=family)
    contexts = data / "ctx" if family == "vit_union_ctx" else None
    source = FeatureSet.open(data / "h", contexts)
    seen, points = [], []
    result = train(config, source, progress=lambda *step: seen.append(step), on_point=points.append)
    assert [step[:2] for step in seen] == [(number + 1, 4) for number in range(4)]
    assert result.report.points == tuple(points)
    (point,) = points
    held_out = source.item(2)
    size, h_hat = decoded(result.file, held_out, tmp_path)
    assert 0 < 8 * size / held_out["h"].size < point.bpfp * 2
    assert nmse(held_out["h"], h_hat) < 2 * point.worst_nmse + 0.1
    card = result.model_card()
    assert f"{point.nmse:.4f}" in card
    assert result.fingerprint.hex() in card
    assert (result.report.tensors, result.report.validation_tensors) == (18, 2)
    json.dumps(result.report.to_dict())


def test_training_lowers_the_loss():
    config = replace(BASE, steps=80, warm_start=False, learning_rate=5e-3, batch_size=4)
    losses = []
    train(config, features(30), progress=lambda _, __, rate, error: losses.append(rate + config.lmbda * error))
    assert np.mean(losses[-20:]) < 0.85 * np.mean(losses[:20])


def test_the_warm_start_codes_at_once():
    points = {}
    for warm in (True, False):
        config = replace(BASE, steps=1, warm_start=warm, learning_rate=1e-9)
        points[warm] = train(config, features(40)).report.points[-1]
    assert points[True].nmse < 0.15
    assert points[False].nmse > 0.8


@pytest.mark.parametrize("config", [BASE, MAPS], ids=lambda config: config.family)
def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path, config):
    whole = train(config, data / "h")
    checkpoint = tmp_path / "run.ckpt"

    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, data / "h", checkpoint=checkpoint, progress=stop)
    steps = []
    resumed = train(
        config, data / "h", checkpoint=checkpoint, resume=True, progress=lambda step, *_: steps.append(step)
    )
    assert steps == [3, 4]
    assert resumed.fingerprint == whole.fingerprint
    for name, tensor in whole.file.tensors.items():
        np.testing.assert_array_equal(resumed.file.tensors[name], tensor, err_msg=name)
    with pytest.raises(CodecFileError, match="lmbda"):
        train(replace(config, lmbda=3), data / "h", checkpoint=checkpoint, resume=True)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(CodecFileError, match="not a checkpoint of this run"):
        train(config, data / "h", checkpoint=checkpoint, resume=True)


def test_a_run_leaves_the_callers_random_numbers_alone(data):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    train(replace(BASE, steps=1), data / "h")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_mixed_precision_keeps_entropy_models_out(data):
    result = train(replace(BASE, precision="bfloat16", steps=3), data / "h")
    assert result.report.points[-1].nmse < 1
    assert {tensor.dtype.name for tensor in result.file.tensors.values()} == {"float32", "int32"}


BAD = [
    ({"family": "klt"}, "family"),
    ({"lmbda": 0}, "lmbda"),
    ({"lmbda": float("nan")}, "lmbda"),
    ({"steps": 0}, "steps"),
    ({"codec_id": "No Id"}, "codec_id"),
    ({"precision": "int8"}, "precision"),
    ({"condition": "dinov2-cls"}, "condition"),
    ({"prefix_tokens": 3}, "token_res"),
    ({"token_res": (3, 5)}, "token_res"),
    ({"sizes": {"y_dim": 17, "groups": 4}}, "options.groups"),
    ({"family": "vit_union_ctx"}, "context"),
    ({"family": "feature_hyperprior", "prefix_tokens": 0, "sizes": {}}, "condition"),
    ({"family": "feature_hyperprior", "prefix_tokens": 0, "sizes": {}, "condition": "nope"}, "condition"),
]


@pytest.mark.parametrize(("changes", "field"), BAD)
def test_bad_configurations_are_refused_with_their_field(data, changes, field):
    with pytest.raises(InvalidInputError) as caught:
        train(replace(BASE, **changes), data / "h")
    assert caught.value.field == field


def test_bad_features_are_refused(data, tmp_path):
    for sources in ([], features(3), [features(4)[0], features(4)[0, :5]], tmp_path):
        with pytest.raises(InvalidInputError):
            train(BASE, sources)
    with pytest.raises(InvalidInputError, match="no context"):
        FeatureSet.open(data / "h", tmp_path)
    with pytest.raises(InvalidInputError, match="validation"):
        train(BASE, data / "h", validation=features(2)[:, :10])


def test_the_command_trains_and_its_codec_is_usable(data, tmp_path, capsys):
    from mpcompress_client.cli import run

    output = tmp_path / "My Codec.safetensors"
    arguments = ["train", "--family", "vit_union", "--features", str(data / "h"), "--lmbda", "20", "-o", str(output)]
    arguments += ["--prefix-tokens", "1", "--steps", "2", "--batch-size", "2", "--validation-tensors", "2", "--json"]
    arguments += ["--size", "y_dim=16", "--size", "z_dim=8", "--size", "groups=[4,12]", "--device", "cpu"]
    assert run(arguments) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["id"], facts["steps"], facts["config"]["lmbda"]) == ("my-codec", 2, 20)
    assert output.with_suffix(".ckpt").is_file()
    assert facts["fingerprint"] in output.with_suffix(".md").read_text()
    coded, back = tmp_path / "h.mpc", tmp_path / "h.npy"
    source = data / "h" / "00.npy"
    assert run(["compress", str(source), "-o", str(coded), "--codec", str(output), "--local"]) == 0
    assert run(["decompress", str(coded), "-o", str(back), "--codec", str(output), "--local"]) == 0
    assert np.load(back).shape == np.load(source).shape
    capsys.readouterr()
    assert run([*arguments, "--resume", "--lmbda", "5"]) == 1
    assert "lmbda" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", [BASE, MAPS], ids=lambda config: config.family)
def test_a_gpu_trains_and_codes(data, config):
    result = train(replace(config, device="cuda"), data / "h")
    assert result.report.device == "cuda"
    assert np.isfinite(result.report.points[-1].nmse)
