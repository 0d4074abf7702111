"""The filter behind the decoder: on real features, on a small codec that learnt one, and on hostile numbers."""

import dataclasses

import numpy as np
import pytest

from mpcompress.calibrate import calibrate
from mpcompress.codec import CodingParams, Unit
from mpcompress.errors import CodecFileError, CorruptBitstreamError
from mpcompress.metrics import nmse
from mpcompress.transforms.klt_codec import KltCodec
from mpcompress.transforms.klt_filter import Filter, hidden_units
from mpcompress.transforms.klt_filter_network import Example, Network, near_sums
from mpcompress.transforms.klt_model_file import read_model, write_model
from mpcompress.transforms.klt_sample import Symbols
from mpcompress.transforms.klt_search import _strength


@pytest.fixture(scope="module")
def filtered_codec(tools) -> KltCodec:
    """A small codec with a filter that learnt little; 2 prefix tokens, 7 x 5 patches."""
    rng = np.random.default_rng(1)
    tensors = [tools.smooth(rng, 7, 5, 2) for _ in range(30)]
    options = {"codec_id": "tiny-grid", "description": "d", "prefix_tokens": 2, "token_res": (7, 5)}
    return KltCodec(read_model(calibrate(tensors, filter_steps=40, **options).file))


@pytest.mark.parametrize("qp", [208, 240, 288, 384])
def test_it_lowers_the_error_of_real_features(shipped, tools, qp):
    codec, features = shipped
    errors = []
    for h in features:
        coded, unit, h_hat = tools.code(codec, h, qp_eighths=qp)
        assert coded.report.nmse == pytest.approx(nmse(h, h_hat), rel=0.01)
        errors.append((nmse(h, h_hat), nmse(h, tools.unfiltered(codec, unit))))
    filtered, plain = np.mean(errors, axis=0)
    assert filtered < 0.97 * plain


def test_fine_steps_are_not_filtered(shipped, tools):
    codec, features = shipped
    for qp in (0, 96, 192):
        _, unit, h_hat = tools.code(codec, features[0], qp_eighths=qp)
        assert np.array_equal(h_hat, tools.unfiltered(codec, unit))


@pytest.mark.parametrize(
    ("height", "width", "prefix", "samples"), [(7, 5, 2, 1), (1, 1, 0, 1), (3, 9, 1, 2), (1, 40, 0, 3)]
)
def test_every_grid_is_filtered_and_the_error_is_told(filtered_codec, tools, height, width, prefix, samples):
    rng = np.random.default_rng(9)
    x = np.stack([tools.smooth(rng, height, width, prefix) for _ in range(samples)])
    coded, _, out = tools.code(filtered_codec, x, qp_eighths=260, token_res=(height, width), prefix_tokens=prefix)
    assert coded.report.nmse == pytest.approx(nmse(x, out), rel=0.02)


def test_far_tokens_stay_as_they_were_coded(shipped, tools):
    codec, features = shipped
    h = features[0].astype(np.float32)
    h[[19, 206], 7] = 480
    _, unit, out = tools.code(codec, h, qp_eighths=240)
    assert len(unit.pstate["far_tokens"]) == 2
    plain = tools.unfiltered(codec, unit)
    assert np.array_equal(out[[19, 206]], plain[[19, 206]])
    assert not np.array_equal(out, plain)


def test_a_filter_that_does_harm_is_weakened():
    """It would add twice what is missing, or the opposite of it."""
    none = np.zeros(0, np.int32)
    for cross, power, strength, left in (
        (50, 200, 2, 87.5),
        (-50, 100, 0, 100),
        (100, 100, 8, 0),
        (99, 98, 8, 0),
        (0, 0, 8, 100),
    ):
        symbols = Symbols(none, none.astype(np.uint16), none, 100.0, cross, power)
        found = _strength([symbols])
        assert found == (strength, pytest.approx(left))


def test_strength_is_in_the_state(filtered_codec, grid_codec, tools):
    x = tools.smooth(np.random.default_rng(5), 7, 5, 2)
    _, unit, out = tools.code(filtered_codec, x, qp_eighths=300)
    twice = Unit(strings=unit.strings, pstate={"qp_eighths": 300, "filter_strength_eighths": 4}, specs=unit.specs)
    plain = tools.unfiltered(filtered_codec, unit)
    share = 1 + unit.pstate.get("filter_strength_eighths", 0) / 8
    filtered_codec.check_unit(twice)
    more = filtered_codec.decompress([twice])[0]["h_hat"]
    assert np.allclose((more - plain) * share, (out - plain) * 1.5, atol=1e-5)
    for strength in (-9, 8):
        bad = Unit(strings=unit.strings, pstate={**unit.pstate, "filter_strength_eighths": strength}, specs=unit.specs)
        with pytest.raises(CorruptBitstreamError, match="filter_strength"):
            filtered_codec.check_unit(bad)
    _, unit, _ = tools.code(grid_codec, x)
    bad = Unit(strings=unit.strings, pstate={**unit.pstate, "filter_strength_eighths": 1}, specs=unit.specs)
    with pytest.raises(CorruptBitstreamError, match="filter_strength"):
        grid_codec.check_unit(bad)


def test_targets_are_reached_where_the_filter_begins(shipped, tools):
    codec, features = shipped
    h = features[1].astype(np.float32)
    begins = tools.code(codec, h, qp_eighths=200)[0].report.nmse
    for target in (0.95 * begins, begins, 1.05 * begins):
        coded, _, out = tools.code(codec, h, target_nmse=float(target))
        assert coded.report.target_reached
        assert nmse(h, out) == pytest.approx(target, rel=0.032)


def test_versions_and_fingerprints(filtered_codec, grid_codec):
    assert (grid_codec.bitstream_version, filtered_codec.bitstream_version) == (4, 5)
    model = filtered_codec.model
    again = read_model(write_model(model))
    assert again.fingerprint() == model.fingerprint() == filtered_codec.fingerprint
    assert dataclasses.replace(model, filter=None).fingerprint() != model.fingerprint()
    for name, array in model.filter.arrays():
        changed = array.copy()
        changed.flat[0] = -changed.flat[0] if changed.flat[0] else 1
        other = dataclasses.replace(model, filter=dataclasses.replace(model.filter, **{name: changed}))
        assert other.fingerprint() != model.fingerprint(), name
    later = dataclasses.replace(model.filter, start=model.filter.start + 1)
    assert dataclasses.replace(model, filter=later).fingerprint() != model.fingerprint()


@pytest.mark.parametrize("name", ["near", "bias", "gain", "inner_scale", "context_scale", "outer_scale"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -1e7])
def test_numbers_that_could_make_features_infinite_are_refused(filtered_codec, name, value):
    model = filtered_codec.model
    changed = getattr(model.filter, name).copy()
    changed.flat[-1] = value
    with pytest.raises(CodecFileError, match="filter_"):
        dataclasses.replace(model, filter=dataclasses.replace(model.filter, **{name: changed}))


def test_shapes_that_do_not_fit_are_refused(filtered_codec):
    model = filtered_codec.model
    for name, array in model.filter.arrays():
        for changed in (array[:-1], array.astype(np.float64)):
            with pytest.raises(CodecFileError):
                dataclasses.replace(model, filter=dataclasses.replace(model.filter, **{name: changed}))
    for start in (-1000, 1000):
        with pytest.raises(CodecFileError):
            dataclasses.replace(model, filter=dataclasses.replace(model.filter, start=start))


def test_neighbourhoods_end_at_the_border():
    rng = np.random.default_rng(0)
    units, near = rng.normal(size=(2, 4, 3, 5)), rng.normal(size=(3, 3, 5))
    padded = np.pad(units, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, i : i + 4, j : j + 3] * near[i, j] for i in range(3) for j in range(3))
    assert np.allclose(near_sums(units, near), expected)
    assert np.allclose(near_sums(units[:, :1, :1], near), units[:, :1, :1] * near[1, 1])
    shift, gain = rng.normal(size=(2, 5)).astype(np.float32)
    out = np.empty((4, 3, 5), np.float32)
    hidden_units(units[0].astype(np.float32), near.astype(np.float32), shift, gain, out)
    assert np.allclose(out, np.maximum(expected[0] + shift, 0) * gain, atol=1e-5)


def test_learning_follows_the_gradient():
    """Every gradient is that of the loss, as small differences tell it."""
    rng = np.random.default_rng(0)
    network = Network(np, 6, 2)
    for name, part in network._parts.items():
        network._parts[name] = (part + rng.normal(size=part.shape) / 4).astype(np.float64)
    batch = [
        Example(
            grid=rng.normal(size=(3, 4, 6)),
            head=rng.normal(size=6),
            missing=rng.normal(size=(3, 4, 6)),
            t=t,
            weight=weight,
        )
        for t, weight in ((0.2, 1.0), (0.7, 3.0))
    ]

    def loss() -> float:
        total, parts = 0.0, network._parts
        for item in batch:
            grid = item.grid.astype(np.float32)
            powers = np.array([1, item.t, item.t**2])
            context = grid.mean((0, 1)) @ parts["context"][0] + item.head @ parts["context"][1]
            hidden = near_sums(grid @ parts["inner"], parts["near"]) + context + powers @ parts["bias"]
            change = (np.maximum(hidden, 0) * (powers @ parts["gain"])) @ parts["outer"]
            total += item.weight * float(np.square(item.missing - change).mean()) / len(batch)
        return total

    gradients = network._gradients(batch)
    for name, part in network._parts.items():
        for at in rng.integers(part.size, size=6):
            kept = part.flat[at]
            part.flat[at] = kept + 1e-5
            above = loss()
            part.flat[at] = kept - 1e-5
            slope = (above - loss()) / 2e-5
            part.flat[at] = kept
            assert gradients[name].flat[at] == pytest.approx(slope, rel=2e-3, abs=2e-5), name


def test_calibration_learns_what_helps(tools):
    """Tokens on a curve, which a linear transform does not know."""
    rng, mixing = np.random.default_rng(3), np.random.default_rng(4).normal(size=(3, 12))

    def curve() -> np.ndarray:
        x = (tools.smooth(rng, 6, 6)[:, :1] - 3) / 3
        return (np.concatenate([x, np.sin(2.5 * x), np.cos(2.5 * x)], axis=1) @ mixing).astype(np.float32)

    training, held_out = [curve() for _ in range(40)], [curve() for _ in range(8)]
    options = {"codec_id": "curve", "description": "d", "token_res": (6, 6), "held_out": held_out}
    told = []
    plain = calibrate(training, **options)
    filtered = calibrate(training, filter_steps=200, progress=lambda *at: told.append(at), **options)
    coarse = [next(p.nmse for p in result.report.points if p.qp_eighths == 240) for result in (filtered, plain)]
    assert coarse[0] < 0.93 * coarse[1]
    assert (200, 200, "filter") in told
    assert "Filter behind the decoder**: from qp 25 on" in filtered.model_card()
    assert "Filter" not in plain.model_card()


def test_a_filter_may_be_used_by_many_threads(filtered_codec):
    model = filtered_codec.model.filter
    grid = np.random.default_rng(0).normal(size=(7, 5, 12)).astype(np.float32)
    before = grid.copy()
    change = Filter(model).correction(grid, grid[0, 0], model.start + 100)
    assert np.array_equal(grid, before)
    assert change.shape == grid.shape
    assert not np.shares_memory(change, grid)


def test_params_name_no_filter(filtered_codec, tools):
    x = tools.smooth(np.random.default_rng(5), 7, 5, 2)
    assert filtered_codec.resolve([tools.spec_of(x)], CodingParams()).family == (
        ("effort", 1),
        ("prefix_qp_offset_eighths", -96),
    )
