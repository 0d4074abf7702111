import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import CorruptBitstreamError, InvalidInputError, NonFiniteError, OutOfRangeError
from mpcompress.metrics import cosine, nmse

# NMSE at qp 12, 24, 36 that no tensor of tests/data may exceed.
BOUNDS = {"klt-imgfocus-vits14-block6": (0.013, 0.14, 0.45), "klt-imgfocus-vits14-final": (0.01, 0.05, 0.15)}


def decode_checked(codec, unit):
    codec.check_unit(unit)
    return codec.decompress([unit])[0]["h_hat"]


def test_real_features_keep_their_quality_and_their_size(shipped, tools):
    codec, features = shipped
    for qp, bound in zip((96, 192, 288), BOUNDS[codec.id], strict=True):
        for h in features:
            coded, _, h_hat = tools.code(codec, h, qp_eighths=qp)
            assert nmse(h, h_hat) < bound
            assert coded.pstate == {"qp_eighths": qp}
            assert not coded.report.warnings
    bpfp = [8 * (len(tools.code(codec, h)[0].strings[0]) + 48) / h.size for h in features]
    assert max(bpfp) < 0.9
    assert cosine(features[0][0], tools.code(codec, features[0])[2][0]) > 0.98


def test_size_and_quality_fall_with_every_qp(shipped, tools):
    codec, features = shipped
    sizes, errors = [], []
    for qp in range(0, 385, 48):
        coded, _, h_hat = tools.code(codec, features[1], qp_eighths=qp)
        sizes.append(len(coded.strings[0]))
        errors.append(nmse(features[1], h_hat))
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert errors[0] < 0.002


def test_prefix_tokens_have_their_own_step(shipped, tools):
    codec, features = shipped
    h = features[2].astype(np.float32)

    def prefix_error(offset):
        coded, _, h_hat = tools.code(codec, h, family=(("prefix_qp_offset_eighths", offset),))
        return float(np.square(h_hat[0] - h[0]).mean()), coded.pstate

    (fine, fine_state), (coarse, coarse_state) = prefix_error(-192), prefix_error(96)
    assert fine < coarse / 4
    assert fine_state["prefix_qp_offset_eighths"] == -192
    assert coarse_state["prefix_qp_offset_eighths"] == 96
    assert "prefix_qp_offset_eighths" not in prefix_error(codec.model.prefix_qp_offset_eighths)[1]


def test_a_batch_dimension_is_the_samples_in_one_stream(shipped, tools):
    codec, features = shipped
    together, _, h_hat = tools.code(codec, features)
    assert len(together.strings) == 1
    assert h_hat.shape == features.shape
    for h, decoded in zip(features, h_hat, strict=True):
        assert np.array_equal(tools.code(codec, h)[2], decoded)
    assert np.array_equal(tools.code(codec, features[:1])[2], tools.code(codec, features[0])[2][None])


def test_tensors_of_another_tap_are_reported(shipped, tools):
    codec, features = shipped
    assert tools.code(codec, features[0])[0].report.domain_distance < 2
    foreign = tools.code(codec, np.roll(features[0], 1, axis=1))[0].report
    assert foreign.domain_distance > codec.model.domain_bound
    assert codec.id in foreign.warnings[0]


@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    prefix=st.integers(0, 4),
    samples=st.integers(0, 2),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    qp=st.integers(0, 192),
)
@settings(max_examples=60, deadline=None)
def test_every_grid_prefix_batch_and_dtype(grid_codec, tools, height, width, prefix, samples, dtype, qp):
    rng = np.random.default_rng(0)
    one = tools.smooth(rng, height, width, prefix)
    x = np.stack([one] * samples) if samples else one
    x = x.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    coded, _, out = tools.code(grid_codec, x, qp_eighths=qp, token_res=(height, width), prefix_tokens=prefix)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    step = 2.0 ** ((grid_codec.model.base_log2 + qp) / 48)
    rounding = 2.0**-7 if dtype == "bfloat16" else 2.0**-10
    error = np.square(out.astype(np.float64) - x.astype(np.float64)).mean()
    assert error < 0.5 * step**2 + rounding**2 * np.square(x.astype(np.float64)).mean()
    assert ("token_width" in coded.pstate) == (width != 5)
    assert ("prefix_tokens" in coded.pstate) == (prefix != 2)


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 129, 1000])
def test_sequences_of_any_length(sequence_codec, tools, length):
    x = tools.smooth(np.random.default_rng(3), 1, length)
    coded, _, out = tools.code(sequence_codec, x)
    assert coded.pstate == {"qp_eighths": 192}
    assert np.square(out - x).mean() < 0.5 * 2.0 ** ((sequence_codec.model.base_log2 + 192) / 24)


def test_a_sequence_codec_takes_grids_and_a_grid_codec_sequences(sequence_codec, grid_codec, tools):
    x = tools.smooth(np.random.default_rng(3), 6, 9)
    coded, _, out = tools.code(sequence_codec, x, token_res=(6, 9))
    assert coded.pstate["token_width"] == 9
    assert nmse(x, out) < 0.2
    coded, _, out = tools.code(grid_codec, x, token_res=(1, 54), prefix_tokens=0)
    assert (coded.pstate["token_width"], coded.pstate["prefix_tokens"]) == (54, 0)
    assert nmse(x, out) < 0.2


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 30.0, 1000.0, 1e6])
def test_tensors_of_any_size_keep_an_error_of_a_step(grid_codec, tools, scale):
    """Out of domain, the gain keeps what is not coded below what quantising costs anyway."""
    x = np.random.default_rng(5).normal(size=(37, 12)).astype(np.float32) * np.float32(scale)
    coded, _, out = tools.code(grid_codec, x)
    step = 2.0 ** ((grid_codec.model.base_log2 + 192) / 48)
    assert np.square(out - x).mean() < 0.5 * step**2 + 1e-3 * np.square(x).mean()
    if scale >= 30:
        assert coded.pstate["gain_eighths"] > 0


def test_one_huge_value_is_kept(grid_codec, tools):
    x = tools.smooth(np.random.default_rng(5), 7, 5, 2)
    x[11, 3] = 5000
    _, _, out = tools.code(grid_codec, x)
    assert abs(out[11, 3] - 5000) < 100


@pytest.mark.parametrize(
    ("value", "error"), [(np.nan, NonFiniteError), (np.inf, NonFiniteError), (3e38, OutOfRangeError)]
)
def test_what_cannot_be_coded_is_named(grid_codec, tools, value, error):
    x = np.zeros((3, 37, 12), np.float32)
    x[1, 20, 7] = value
    with pytest.raises(error, match=r"h\[1, 20, 7\]") as caught:
        tools.code(grid_codec, x)
    assert caught.value.field == "tensors[0]"


def test_float16_output_does_not_overflow(grid_codec, tools):
    x = np.full((37, 12), 65504, np.float16)
    x[::2] = -65504
    assert np.isfinite(tools.code(grid_codec, x, qp_eighths=384)[2]).all()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"token_res": (7, 6)}, "params.token_res"),
        ({"token_res": (0, 5)}, "params.token_res"),
        ({"token_res": (70000, 1)}, "params.token_res"),
        ({"prefix_tokens": 3}, "params.token_res"),
        ({"prefix_tokens": -1}, "params.prefix_tokens"),
        ({"prefix_tokens": 37}, "params.prefix_tokens"),
        ({"qp_eighths": -1}, "params.qp_eighths"),
        ({"qp_eighths": 385}, "params.qp_eighths"),
        ({"target_bpfp": 0.1}, "params.target_bpfp"),
        ({"target_nmse": 0.1}, "params.target_nmse"),
        ({"family": (("effort", 2),)}, "params.effort"),
        ({"family": (("prefix_qp_offset_eighths", 385),)}, "params.prefix_qp_offset_eighths"),
        ({"family": (("prefix_qp_offset_eighths", 1.5),)}, "params.prefix_qp_offset_eighths"),
    ],
)
def test_bad_params_are_refused_by_field(grid_codec, changes, field):
    spec = TensorSpec(name="h", dtype="float32", shape=(37, 12))
    with pytest.raises(InvalidInputError) as caught:
        grid_codec.resolve([spec], CodingParams(**changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec(name="x", dtype="float32", shape=(37, 12)),
        TensorSpec(name="h", dtype="float64", shape=(37, 12)),
        TensorSpec(name="h", dtype="float32", shape=(37, 11)),
        TensorSpec(name="h", dtype="float32", shape=(1 << 21, 37, 12)),
        TensorSpec(name="h", dtype="float32", shape=(-1, 37, 12)),
        TensorSpec(name="h", dtype="float32", shape=(36, 12)),
    ],
)
def test_bad_tensors_are_refused(grid_codec, spec):
    with pytest.raises(InvalidInputError):
        grid_codec.resolve([spec], CodingParams())


STATES = {
    "qp_eighths": st.integers(-900, 1700) | st.just(None),
    "token_width": st.integers(-1, 40),
    "prefix_tokens": st.integers(-1, 40),
    "prefix_qp_offset_eighths": st.integers(-400, 400),
    "gain_eighths": st.integers(-1, 2000),
    "strange": st.just(1),
}


@given(st.fixed_dictionaries({}, optional=STATES), st.binary(max_size=200), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_hostile_units_end_in_an_error_or_in_a_tensor(grid_codec, pstate, payload, samples):
    shape = (samples, 37, 12) if samples else (37, 12)
    unit = Unit(strings=[payload], pstate=pstate, specs=(TensorSpec(name="h", dtype="float16", shape=shape),))
    try:
        out = decode_checked(grid_codec, unit)
    except CorruptBitstreamError:
        return
    assert out.shape == shape
    assert np.isfinite(out).all()


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_streams_end_in_an_error_or_in_a_tensor(grid_codec, tools, data):
    x = tools.smooth(np.random.default_rng(0), 7, 5, 2)
    _, unit, _ = tools.code(grid_codec, x, qp_eighths=48)
    stream = bytearray(unit.strings[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(stream) - 1))
        stream[at] ^= data.draw(st.integers(1, 255))
    kept = data.draw(st.integers(0, len(stream)))
    damaged = Unit(strings=[bytes(stream[:kept])], pstate=unit.pstate, specs=unit.specs)
    try:
        out = decode_checked(grid_codec, damaged)
    except CorruptBitstreamError:
        return
    assert np.isfinite(out).all()


@pytest.mark.parametrize("tail", [b"\0", b"\0\0", b"abcd", b"\0" * 6000])
def test_extended_and_truncated_streams_are_refused(grid_codec, tools, tail):
    x = tools.smooth(np.random.default_rng(0), 7, 5, 2)
    _, unit, _ = tools.code(grid_codec, x)
    for stream in (unit.strings[0] + tail, unit.strings[0][:-2], b""):
        bad = Unit(strings=[stream], pstate=unit.pstate, specs=unit.specs)
        with pytest.raises(CorruptBitstreamError):
            decode_checked(grid_codec, bad)


def test_plans_are_kept_within_bounds(grid_codec, tools):
    for qp in range(40):
        tools.code(grid_codec, tools.smooth(np.random.default_rng(0), 7, 5, 2), qp_eighths=qp)
    assert len(grid_codec._planner._plans) <= 16


def test_warming_up_and_the_codec_file(grid_codec, shipped):
    grid_codec.warm_up()
    codec, _ = shipped
    codec.warm_up()
    assert 500_000 < len(codec.codec_file()) < 2_000_000


def test_a_few_bytes_do_not_make_a_decoder_allocate_gigabytes(shipped):
    codec, _ = shipped
    spec = TensorSpec(name="h", dtype="float16", shape=(349521, 384))
    tracemalloc.start()
    with pytest.raises(CorruptBitstreamError, match="a payload of 6 bytes"):
        codec.check_unit(Unit(strings=[b"abcdef"], pstate={"qp_eighths": 0}, specs=(spec,)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
