"""What every registered codec promises, checked on every preset's format: a new preset needs no new test file."""

import re
import struct
from contextlib import suppress
from dataclasses import fields
from functools import cache

import numpy as np
import pytest

from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec, Unit
from mpcompress.errors import CodecUnavailableError, CorruptBitstreamError, InvalidInputError, NonFiniteError
from mpcompress.registry import load, preset, preset_ids


@cache
def codec_of(codec_id: str) -> FeatureCodec | str:
    try:
        codec = load(preset(codec_id))
    except CodecUnavailableError as error:
        return str(error)
    return getattr(codec, "unavailable_reason", "") or codec


def one_of_each_format() -> list[str]:
    """The first preset of each bitstream format: those of one fingerprint differ in their defaults only."""
    first: dict[tuple[str, bytes], str] = {}
    for codec_id in preset_ids():
        codec = codec_of(codec_id)
        fingerprint = codec.fingerprint if isinstance(codec, FeatureCodec) else b""
        first.setdefault((preset(codec_id).family, fingerprint), codec_id)
    return list(first.values())


@pytest.fixture(params=one_of_each_format())
def codec(request) -> FeatureCodec:
    found = codec_of(request.param)
    if isinstance(found, str):
        pytest.skip(found)
    return found


@cache
def shape_of(codec: FeatureCodec) -> tuple[int, ...]:
    """A small shape that the codec takes: of its own grid where it has one."""
    channels = codec.inputs[0].channels or 16
    candidates = [(48, channels), (channels, 32, 32), (1, 4, 48, channels)]
    if codec.token_res:
        candidates = [(codec.prefix_tokens + codec.token_res[0] * codec.token_res[1], channels)]
    for shape in candidates:
        with suppress(InvalidInputError):
            codec.resolve([TensorSpec(name="h", dtype="float32", shape=shape)], CodingParams())
            return shape
    raise AssertionError(f"{codec.id} takes none of {candidates}: add a shape that it takes")


def features(codec: FeatureCodec, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Features that are smooth along the tokens."""
    shape = shape_of(codec)
    return (np.cumsum(np.random.default_rng(seed).normal(size=shape), axis=-2) / 4).astype(dtype)


def spec_of(x: np.ndarray) -> TensorSpec:
    return TensorSpec(name="h", dtype=x.dtype.name, shape=x.shape)


def compress(codec: FeatureCodec, *tensors: np.ndarray, **params):
    resolved = codec.resolve([spec_of(tensors[0])], CodingParams(**params))
    return codec.compress([{"h": x} for x in tensors], resolved)


def unit_of(coded, x: np.ndarray, **changes) -> Unit:
    kept = {"strings": coded.strings, "pstate": coded.pstate, "specs": (spec_of(x),), "ctx_hash": coded.ctx_hash}
    return Unit(**{**kept, **changes})


def test_describes_itself(codec):
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", codec.id)
    assert 1 <= codec.bitstream_version <= 63
    assert codec.arithmetic in {"exact", "float32"}
    assert codec.description
    assert codec.inputs[0].name == "h"
    assert codec.outputs[0].name == "h_hat"
    if codec.qp is not None:
        assert codec.qp.minimum <= codec.qp.default <= codec.qp.maximum


def test_resolving_fills_in_and_is_idempotent(codec):
    x = features(codec)
    params = codec.resolve([spec_of(x)], CodingParams())
    assert codec.resolve([spec_of(x)], params) == params
    assert hash(params) == hash(codec.resolve([spec_of(x)], CodingParams()))
    if codec.qp is not None:
        assert params.qp_eighths == codec.qp.default


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_round_trip_keeps_shape_and_dtype(codec, dtype):
    x = features(codec, dtype=dtype)
    (coded,) = compress(codec, x)
    unit = unit_of(coded, x)
    (spec,) = codec.check_unit(unit)
    assert (spec.name, spec.dtype, spec.shape) == ("h_hat", dtype, x.shape)
    (out,) = codec.decompress([unit])
    assert list(out) == ["h_hat"]
    assert (out["h_hat"].shape, out["h_hat"].dtype) == (x.shape, x.dtype)
    assert np.isfinite(out["h_hat"].astype(np.float32)).all()


def test_coding_is_pure_and_leaves_its_input_alone(codec):
    x = features(codec)
    before = x.copy()
    first, second = compress(codec, x)[0], compress(codec, x)[0]
    assert np.array_equal(x, before)
    assert (first.strings, first.pstate) == (second.strings, second.pstate)


def test_a_batch_is_its_items(codec):
    tensors = [features(codec, seed) for seed in range(3)]
    batch = compress(codec, *tensors)
    singles = [compress(codec, x)[0] for x in tensors]
    assert [(c.strings, c.pstate) for c in batch] == [(c.strings, c.pstate) for c in singles]
    units = [unit_of(c, x) for c, x in zip(batch, tensors, strict=True)]
    together = codec.decompress(units)
    for unit, out in zip(units, together, strict=True):
        assert np.array_equal(codec.decompress([unit])[0]["h_hat"], out["h_hat"])


def test_empty_batches(codec):
    x = features(codec)
    assert codec.compress([], codec.resolve([spec_of(x)], CodingParams())) == []
    assert codec.decompress([]) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_refused_by_name(codec, value):
    x = features(codec)
    where = tuple(min(1, side - 1) for side in x.shape)
    x[where] = value
    with pytest.raises(NonFiniteError) as caught:
        compress(codec, x)
    assert caught.value.field == "tensors[0]"
    assert ", ".join(map(str, where)) in str(caught.value)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"shape": ()}, "tensors[0].shape"),
        ({"shape": (5,)}, "tensors[0].shape"),
        ({"shape": (0, 384)}, "tensors[0].shape"),
        ({"shape": (2, 2, 2, 2, 2, 2)}, "tensors[0].shape"),
        ({"dtype": "int64"}, "tensors[0].dtype"),
    ],
)
def test_bad_specs_are_refused_by_field(codec, change, field):
    good = spec_of(features(codec))
    bad = TensorSpec(**{f.name: getattr(good, f.name) for f in fields(good)} | change)
    with pytest.raises(InvalidInputError) as caught:
        codec.resolve([bad], CodingParams())
    assert caught.value.field == field


def test_no_tensor_and_unknown_parameters_are_refused(codec):
    with pytest.raises(InvalidInputError):
        codec.resolve([], CodingParams())
    with pytest.raises(InvalidInputError):
        codec.resolve([spec_of(features(codec))], CodingParams(family=(("no_such_parameter", 1),)))


def test_qp_outside_the_range_is_refused(codec):
    if codec.qp is None:
        pytest.skip("no qp")
    for qp in (codec.qp.minimum - 8, codec.qp.maximum + 8):
        with pytest.raises(InvalidInputError) as caught:
            codec.resolve([spec_of(features(codec))], CodingParams(qp_eighths=qp))
        assert caught.value.field == "params.qp_eighths"


def test_damaged_units_end_in_an_error_or_in_a_tensor(codec):
    x = features(codec)
    (coded,) = compress(codec, x)
    rng = np.random.default_rng(0)
    stream = coded.strings[0]
    damaged = [b"", stream[:-1], stream[: len(stream) // 2], stream + b"\0\0", stream[::-1], struct.pack("<I", 1 << 31)]
    for _ in range(10):
        flipped = bytearray(stream)
        flipped[rng.integers(len(stream))] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for bad in damaged:
        unit = unit_of(coded, x, strings=[bad, *coded.strings[1:]])
        try:
            codec.check_unit(unit)
            (out,) = codec.decompress([unit])
        except CorruptBitstreamError:
            continue
        assert out["h_hat"].shape == x.shape


def test_units_of_another_make_are_refused(codec):
    x = features(codec)
    (coded,) = compress(codec, x)
    for changes in (
        {"strings": []},
        {"specs": ()},
        {"pstate": {}},
        {"specs": (TensorSpec(name="h", dtype="float32", shape=(1,)),)},
        {"specs": (TensorSpec(name="h", dtype="float32", shape=(1 << 20, 1 << 20)),)},
    ):
        with pytest.raises(CorruptBitstreamError):
            codec.check_unit(unit_of(coded, x, **changes))


def test_quality_rises_and_size_grows_as_qp_falls(codec):
    if codec.qp is None:
        pytest.skip("no qp")
    x = features(codec)
    sizes, errors = [], []
    for qp in (codec.qp.default + 64, codec.qp.default, codec.qp.default - 64):
        (coded,) = compress(codec, x, qp_eighths=qp)
        (out,) = codec.decompress([unit_of(coded, x)])
        sizes.append(sum(map(len, coded.strings)))
        errors.append(float(np.square(out["h_hat"] - x).mean()))
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
