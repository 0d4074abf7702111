import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from mpcompress.calibrate import calibrate
from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import InvalidInputError
from mpcompress.metrics import nmse
from mpcompress.registry import CodecSpec, load
from mpcompress.transforms.klt_fit_sensitivity import prefix_offset_for

CHANNELS = 10
MIXING = np.random.default_rng(3).normal(size=(CHANNELS, CHANNELS)) * 2.0 ** -np.arange(CHANNELS)[:, None]
DATA = Path(__file__).resolve().parents[1] / "data"


def tensors(count: int, height: int = 6, width: int = 6, prefix: int = 0, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        noise = rng.normal(size=(height, width, CHANNELS))
        for axis in (0, 1):
            noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
        tokens = np.concatenate([rng.normal(size=(prefix, CHANNELS)), noise.reshape(-1, CHANNELS)])
        found.append((tokens @ MIXING).astype(np.float32))
    return found


def round_trip(path: Path, codec_id: str, x: np.ndarray, **params) -> tuple[int, np.ndarray]:
    codec = load(CodecSpec(id=codec_id, family="klt", weights=str(path)))
    spec = TensorSpec(name="h", dtype=x.dtype.name, shape=x.shape)
    (coded,) = codec.compress([{"h": x}], codec.resolve([spec], CodingParams(**params)))
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
    codec.check_unit(unit)
    return len(coded.strings[0]), codec.decompress([unit])[0]["h_hat"]


def test_sixteen_tensors_make_a_codec(tmp_path):
    result = calibrate(tensors(16), codec_id="mine", description="My model, last layer.", token_res=(6, 6))
    result.save(tmp_path / "mine.safetensors")
    (fresh,) = tensors(1, seed=9)
    size, out = round_trip(tmp_path / "mine.safetensors", "mine", fresh)
    assert nmse(fresh, out) < 0.2
    assert size < fresh.nbytes / 8
    report = result.report
    assert (report.tensors, report.held_out, report.channels) == (14, 2, CHANNELS)
    assert any("256 are recommended" in warning for warning in report.warnings)
    errors = [point.nmse for point in report.points]
    rates = [point.bpfp for point in report.points]
    assert errors == sorted(errors)
    assert rates == sorted(rates, reverse=True)
    card = (tmp_path / "mine.md").read_text(encoding="utf-8")
    assert "My model, last layer." in card
    assert "14 tensors" in card
    assert result.fingerprint.hex() in card
    assert all(f"| {point.qp_eighths / 8:g} |" in card for point in report.points)


def test_the_report_tells_what_coding_gives(tmp_path):
    training, held_out = tensors(40), tensors(8, seed=5)
    result = calibrate(training, codec_id="mine", description="d", token_res=(6, 6), held_out=held_out)
    result.save(tmp_path / "c.safetensors")
    (point,) = [point for point in result.report.points if point.qp_eighths == 192]
    coded = [round_trip(tmp_path / "c.safetensors", "mine", x) for x in held_out]
    measured = [nmse(x, out) for x, (_, out) in zip(held_out, coded, strict=True)]
    rates = [8 * (size + 34) / held_out[0].size for size, _ in coded]
    assert np.isclose(point.nmse, np.mean(measured), rtol=1e-3)
    assert np.isclose(point.worst_nmse, max(measured), rtol=1e-3)
    assert np.isclose(point.bpfp, np.mean(rates))
    assert result.report.tensors == 40


def test_files_lists_and_iterators_give_the_same_codec(tmp_path):
    training = tensors(20, prefix=1)
    for number, x in enumerate(training):
        np.save(tmp_path / f"{number:02d}.npy", x)
    options = {"codec_id": "mine", "description": "d", "token_res": (6, 6), "prefix_tokens": 1}
    from_files = calibrate(tmp_path, **options)
    assert calibrate(training, **options).file == from_files.file
    assert calibrate((x for x in training), **options).file == from_files.file
    assert calibrate([np.stack(training)], **options).file == from_files.file
    assert calibrate(sorted(tmp_path.iterdir()), **options).file == from_files.file


def test_real_features_calibrate_and_a_foreign_tensor_is_reported(tmp_path):
    features = np.load(DATA / "features_final.npy").astype(np.float32)[:, 1:, :48]
    crops = [
        features[n].reshape(16, 16, 48)[a : a + 8, b : b + 8].reshape(64, 48)
        for n in range(3)
        for a in (0, 4, 8)
        for b in (0, 4, 8)
    ]
    result = calibrate(crops, codec_id="crops", description="d", token_res=(8, 8))
    result.save(tmp_path / "c.safetensors")
    fresh = features[3].reshape(16, 16, 48)[:8, :8].reshape(64, 48)
    assert nmse(fresh, round_trip(tmp_path / "c.safetensors", "crops", fresh)[1]) < 0.3
    assert nmse(features[3], round_trip(tmp_path / "c.safetensors", "crops", features[3], token_res=(16, 16))[1]) < 0.3


def test_sequences_of_many_lengths(tmp_path):
    rng = np.random.default_rng(0)
    training = [rng.normal(size=(int(n), CHANNELS)).cumsum(axis=0) @ MIXING for n in rng.integers(20, 120, size=20)]
    result = calibrate(training, codec_id="text", description="d")
    assert result.report.token_res is None
    assert any("lengths from" in warning for warning in result.report.warnings)
    result.save(tmp_path / "c.safetensors")
    x = (rng.normal(size=(333, CHANNELS)).cumsum(axis=0) @ MIXING).astype(np.float32)
    assert nmse(x, round_trip(tmp_path / "c.safetensors", "text", x)[1]) < 0.2


def test_short_sequences_say_nothing_about_the_domain(tmp_path):
    """Too short to tell how far they are, they must not pass for tensors that are at no distance."""
    rng = np.random.default_rng(0)
    lengths = [10, 150] * 10 + [10] * 20
    training = [rng.normal(size=(n, CHANNELS)).cumsum(axis=0) @ MIXING for n in lengths]
    calibrate(training, codec_id="text", description="d", held_out=training[:20]).save(tmp_path / "c.safetensors")
    codec = load(CodecSpec(id="text", family="klt", weights=str(tmp_path / "c.safetensors")))

    def distance(x: np.ndarray) -> float | None:
        spec = TensorSpec(name="h", dtype="float32", shape=x.shape)
        (coded,) = codec.compress([{"h": x.astype(np.float32)}], codec.resolve([spec], CodingParams()))
        return coded.report.domain_distance

    assert distance(training[0]) is None
    assert np.median([distance(x) for x in training[1:20:2]]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("channels", [16, 1100, pytest.param(8192, marks=pytest.mark.slow)])
def test_any_number_of_channels(tmp_path, channels):
    """Above 1024 the basis is one of groups of channels; a file stays some megabytes."""
    rng = np.random.default_rng(0)
    factors = rng.normal(size=(12, channels)) * 2.0 ** -(np.arange(12) / 4)[:, None]

    def walk() -> np.ndarray:
        return (rng.normal(size=(20, 12)).cumsum(axis=0) @ factors + 0.05 * rng.normal(size=(20, channels))).astype(
            "f4"
        )

    result = calibrate([walk() for _ in range(16)], codec_id="wide", description="d")
    result.save(tmp_path / "c.safetensors")
    fresh = walk()
    size, out = round_trip(tmp_path / "c.safetensors", "wide", fresh)
    assert nmse(fresh, out) < 0.2
    assert size < fresh.size / 8
    assert len(result.file) < 60_000 + 4_200 * channels
    batch = np.stack([fresh, walk()])
    assert nmse(batch, round_trip(tmp_path / "c.safetensors", "wide", batch)[1]) < 0.2


def test_square_token_counts_without_a_grid_are_pointed_out():
    report = calibrate(tensors(16, prefix=1), codec_id="mine", description="d").report
    assert any("1 prefix tokens and 6 x 6 patches" in warning for warning in report.warnings)


def test_few_tokens_for_many_channels_are_pointed_out():
    training = [np.random.default_rng(n).normal(size=(4, 60)).astype(np.float32) for n in range(16)]
    report = calibrate(training, codec_id="mine", description="d", token_res=(2, 2)).report
    assert any("56 tokens for 60 channels" in warning for warning in report.warnings)
    assert report.points[0].nmse < 0.5


def test_progress_is_told():
    told = []
    calibrate(tensors(16), codec_id="mine", description="d", token_res=(6, 6), progress=lambda *args: told.append(args))
    stages = list(dict.fromkeys(stage for _, _, stage in told))
    assert stages == ["means", "covariances", "scales", "contexts", "tables", "held out"]
    assert all(0 <= done <= total for done, total, _ in told)
    assert {stage for done, total, stage in told if done == total} == set(stages)


@pytest.mark.parametrize(
    ("prefix_weight", "patch_weight", "offset"),
    [(1, 1, 0), (4, 1, -96), (1, 2, 48), (8, 1, -144), (0, 1, 48), (1, 0, -192), (1000, 1, -192)],
)
def test_prefix_tokens_are_as_fine_as_the_answer_asks_for(prefix_weight, patch_weight, offset):
    """Squared changes of the answer stand as squared weights: steps as the weights' inverse, 48 to the octave."""
    weights = np.array([[prefix_weight]] * 2 + [[patch_weight]] * 36, np.float32)
    found = prefix_offset_for(lambda x: weights * x, tensors(30, prefix=2), 2)
    assert found == pytest.approx(offset, abs=3)


def test_calibration_asks_the_answer(tmp_path):
    options = {"codec_id": "mine", "description": "d", "token_res": (6, 6), "prefix_tokens": 1}
    answer = lambda x: np.concatenate([4 * x[:1], x[1:]])  # noqa: E731
    result = calibrate(tensors(16, prefix=1), **options, answer=answer)
    result.save(tmp_path / "c.safetensors")
    model = load(CodecSpec(id="mine", family="klt", weights=str(tmp_path / "c.safetensors"))).model
    assert model.prefix_qp_offset_eighths == pytest.approx(-96, abs=3)
    for bad in (lambda x: np.zeros(3), lambda x: x * np.nan):
        with pytest.raises(InvalidInputError, match="the answer"):
            calibrate(tensors(16, prefix=1), **options, answer=bad)


def test_massive_channels_do_not_ruin_the_others(tmp_path):
    """As in language models: one channel of +-500, which calibration has seen."""

    def massive(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[:, 3] = np.sign(x[:, 3]) * (480 + 20 * np.abs(x[:, 3]))
        return x

    clean, (fresh,) = tensors(40), tensors(1, seed=9)
    results = {}
    for name, training, x in (("clean", clean, fresh), ("massive", [massive(x) for x in clean], massive(fresh))):
        calibrate(training, codec_id=name, description="d", token_res=(6, 6)).save(tmp_path / f"{name}.safetensors")
        spec = TensorSpec(name="h", dtype="float32", shape=x.shape)
        codec = load(CodecSpec(id=name, family="klt", weights=str(tmp_path / f"{name}.safetensors")))
        # The same step for both: what was massive may cost bits of its own, no more.
        qp = round(192 + results.setdefault("base", codec.model.base_log2) - codec.model.base_log2)
        (coded,) = codec.compress([{"h": x}], codec.resolve([spec], CodingParams(qp_eighths=max(qp, 0))))
        (out,) = codec.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])
        others = np.delete(np.arange(CHANNELS), 3)
        results[name] = nmse(x[:, others], out["h_hat"][:, others]), len(coded.strings[0])
        assert np.abs(out["h_hat"][:, 3] - x[:, 3]).max() < 20
    assert results["massive"][0] < 1.3 * results["clean"][0]


def test_notes_and_report_are_in_the_file(tmp_path):
    result = calibrate(tensors(16), codec_id="mine", description="d", token_res=(6, 6), notes={"Licence": "CC0"})
    assert "- **Licence**: CC0" in result.model_card()
    result.save(tmp_path / "c.safetensors")
    codec = load(CodecSpec(id="mine", family="klt", weights=str(tmp_path / "c.safetensors")))
    assert codec.model.card["notes"] == {"Licence": "CC0"}
    assert codec.model.card["tensors"] == 14
    json.dumps(dict(codec.model.card))


NAN = np.full((36, CHANNELS), np.nan, np.float32)


@pytest.mark.parametrize(
    ("training", "options", "message"),
    [
        (tensors(15), {}, "15 tensors; at least 16"),
        ([], {}, "0 tensors"),
        ([*tensors(20), NAN], {}, r"array 20\[0, 0\] is nan"),
        ([np.ones((36, CHANNELS), np.float32)] * 20, {}, "constant"),
        ([*tensors(20), np.zeros((36, 11), np.float32)], {}, "array 20 has 11 channels, array 0 has 10"),
        (tensors(20, height=5), {}, "30 tokens: not 0 prefix tokens and a grid of 6 x 6"),
        (tensors(20), {"prefix_tokens": 1}, "36 tokens: not 1 prefix tokens"),
        (tensors(20), {"prefix_tokens": 36, "token_res": None}, "36 tokens: not 36 prefix tokens and any tokens"),
        (tensors(20), {"prefix_tokens": -1}, "-1 prefix tokens"),
        (tensors(20), {"token_res": (0, 6)}, r"grid \(0, 6\)"),
        (tensors(20), {"codec_id": "Not An Id"}, "codec id"),
        (tensors(20), {"held_out": []}, "no held-out tensors"),
        (tensors(20), {"prefix_tokens": 2000}, "2000 prefix tokens"),
        (tensors(20), {"held_out": [np.zeros((36, 11))]}, "11 channels"),
    ],
)
def test_nonsense_is_refused(training, options, message):
    with pytest.raises(InvalidInputError, match=message):
        calibrate(training, **{"codec_id": "mine", "description": "d", "token_res": (6, 6), **options})


def test_memory_does_not_grow_with_the_number_of_tensors(tmp_path):
    def peak(count: int) -> int:
        for number in range(count):
            np.save(
                tmp_path / f"{number}.npy", np.random.default_rng(number).normal(size=(1024, 32)).astype(np.float32)
            )
        tracemalloc.start()
        calibrate(tmp_path, codec_id="mine", description="d", token_res=(32, 32))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    # 40 tensors more are 5 MB more to read; what is kept of each is one tile, 32 kB.
    assert peak(60) < peak(20) + 2.5e6
