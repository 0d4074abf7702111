"""Features as maps: packings and bounds of the published test conditions, and what a unit says about them."""

from dataclasses import replace

import numpy as np
import pytest

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.neural.maps import CONDITIONS, MapForm
from mpcompress.registry import CodecSpec, load

SHAPES = {
    "dinov2-cls": (2, 17, 24),
    "dinov2-seg": (2, 1, 17, 24),
    "dinov2-dpt": (2, 4, 17, 24),
    "llama3-csr": (33, 40),
    "sd3-tti": (16, 24, 20),
}


def codec_for(condition: str):
    options = {"N": 8, "M": 8, **CONDITIONS[condition].settings}
    return load(CodecSpec(id="maps", family="feature_hyperprior", options=options))


def coded(codec, x, **params):
    spec = TensorSpec(name="h", dtype=x.dtype.name, shape=x.shape)
    (item,) = codec.compress([{"h": x}], codec.resolve([spec], CodingParams(**params)))
    return Unit(strings=item.strings, pstate=item.pstate, specs=(spec,))


@pytest.mark.parametrize("condition", CONDITIONS)
def test_packing_is_undone_but_for_truncation(condition):
    form = MapForm.of(CONDITIONS[condition].settings)
    x = 4 * np.random.default_rng(0).standard_normal(SHAPES[condition]).astype(np.float32)
    maps = form.pack(x)
    assert maps.shape == (form.shape(x.shape)[0], 1, *form.shape(x.shape)[1:])
    assert (maps.min(), maps.max()) == (0, 1)
    low, high = np.array(CONDITIONS[condition].trun_low), np.array(CONDITIONS[condition].trun_high)
    if len(low) > 1:
        low, high = low[:, None, None], high[:, None, None]
    np.testing.assert_allclose(form.unpack(maps, x.shape), np.clip(x, low, high), atol=2e-6)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_units_carry_bounds_and_packing(condition):
    codec = codec_for(condition)
    x = 2 * np.random.default_rng(1).standard_normal(SHAPES[condition]).astype(np.float32)
    unit = coded(codec, x)
    assert unit.pstate["trun_low"] == pytest.approx(CONDITIONS[condition].trun_low)
    codec.check_unit(unit)
    (out,) = codec.decompress([unit])
    # Another codec of the same weights and other bounds decodes it all the same.
    other = codec_for("sd3-tti" if condition == "llama3-csr" else "llama3-csr")
    assert other.fingerprint == codec.fingerprint
    (same,) = other.decompress([unit])
    np.testing.assert_array_equal(out["h_hat"], same["h_hat"])


def test_bounds_of_a_request_win():
    codec = codec_for("dinov2-cls")
    x = np.random.default_rng(1).standard_normal((17, 24)).astype(np.float32)
    unit = coded(codec, x, family=(("trun_high", (2.0,)), ("trun_low", (-1.0,))))
    assert (unit.pstate["trun_low"], unit.pstate["trun_high"]) == ([-1.0], [2.0])
    (out,) = codec.decompress([unit])
    assert out["h_hat"].min() >= -1
    assert out["h_hat"].max() <= 2
    for bounds in ({"trun_low": (1.0,)}, {"trun_low": (1.0,), "trun_high": (0.0,)}, {"trun_low": (0.0, 1.0)}):
        with pytest.raises(InvalidInputError) as caught:
            coded(codec, x, family=tuple(sorted(bounds.items())))
        assert caught.value.field.startswith("params.")


def test_a_state_that_contradicts_its_tensor_is_refused():
    codec = codec_for("dinov2-cls")
    unit = coded(codec, np.zeros((17, 24), np.float32))
    for change in (
        {"packing": "latent_tiles"},
        {"packing": "nope"},
        {"packing": ""},
        {"trun_low": [3.0], "trun_high": [1.0]},
        {"trun_low": []},
        {"map_shape": (24, 17)},
        {"batch": 3},
    ):
        with pytest.raises(CorruptBitstreamError):
            codec.check_unit(replace(unit, pstate={**unit.pstate, **change}))
