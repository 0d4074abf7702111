"""Pictures, features and real VTM streams of the reference data."""

import numpy as np
import pytest

from mpcompress.latent_codecs.vtm import VtmFeatureCodec
from mpcompress.picture.decode import PictureDecoder
from mpcompress.picture.packing import packing
from mpcompress.picture.quantize import QUANTIZERS, Bounds
from mpcompress.picture.vtm_tools import VtmTools

UNIFORM = QUANTIZERS["uniform"]


def test_the_picture_is_the_references_or_one_level_above(golden):
    bounds = Bounds.of(golden.about["trun_low"], golden.about["trun_high"])
    layout = packing(golden.about["model_type"])
    picture = layout.pack(UNIFORM.quantize(golden.features, bounds, golden.about["bit_depth"]))
    difference = picture.astype(int) - golden.picture
    assert list(picture.shape) == golden.about["pack_shape"]
    assert difference.min() >= 0
    assert difference.max() <= 1


def test_rounding_halves_the_largest_error(golden):
    bounds = Bounds.of(golden.about["trun_low"], golden.about["trun_high"])
    depth = golden.about["bit_depth"]
    low, span = bounds.shaped(golden.features.shape)
    clipped = np.clip(golden.features.astype(np.float64), low, low + span)
    error = np.abs(UNIFORM.dequantize(UNIFORM.quantize(golden.features, bounds, depth), bounds, depth) - clipped)
    assert (error <= span / (2**depth - 1) * 0.5 + 1e-5 * span).all()


def test_features_from_the_references_picture(golden):
    bounds = Bounds.of(golden.about["trun_low"], golden.about["trun_high"])
    samples = packing(golden.about["model_type"]).unpack(golden.picture, golden.features.shape)
    h_hat = UNIFORM.dequantize(samples, bounds, golden.about["bit_depth"])
    step = 2.0**-9 * np.abs(golden.h_hat.astype(float)) if golden.h_hat.dtype == np.float16 else 0
    assert (np.abs(h_hat - golden.h_hat.astype(float)) <= 1e-5 * golden.span + step).all()


@pytest.mark.parametrize("qp", [22, 37])
def test_vtm_streams_decode_exactly(golden, qp):
    height, width = golden.picture.shape
    decoded = PictureDecoder().decode(
        golden.stream(qp), form="vvc", height=height, width=width, bit_depth=golden.about["bit_depth"]
    )
    np.testing.assert_array_equal(decoded, golden.reconstruction(qp))


@pytest.mark.parametrize("qp", [22, 37])
def test_documented_class_decodes_vtm_streams_without_an_encoder(golden, qp, without_vtm, tmp_path):
    codec = VtmFeatureCodec(golden.cfg)
    trap = tmp_path / "not-yours.bin"
    trap.write_bytes(b"secret")
    # What the reference implementation keeps: no bounds, no packing, and a path on the encoder's machine.
    pstate = {key: golden.about[key] for key in ("pack_shape", "feat_shape", "bit_depth")} | {"bin_path": str(trap)}
    decoded = codec.decompress({"vtm": golden.stream(qp)}, pstate)
    bounds = Bounds.of(golden.about["trun_low"], golden.about["trun_high"])
    samples = packing(golden.about["model_type"]).unpack(golden.reconstruction(qp), golden.features.shape)
    np.testing.assert_array_equal(decoded["h_hat"], UNIFORM.dequantize(samples, bounds, golden.about["bit_depth"]))
    assert trap.read_bytes() == b"secret"


@pytest.mark.parametrize("qp", [22, 37])
def test_real_vtm_decodes_its_streams_as_stored(golden, qp, real_vtm):
    raw, _ = VtmTools.find(real_vtm).decode(
        golden.stream(qp),
        bit_depth=golden.about["bit_depth"],
        raw_bytes=golden.picture.size * (1 if golden.about["bit_depth"] == 8 else 2),
    )
    dtype = np.uint8 if golden.about["bit_depth"] == 8 else "<u2"
    np.testing.assert_array_equal(np.frombuffer(raw, dtype).reshape(golden.picture.shape), golden.reconstruction(qp))


@pytest.mark.parametrize("qp", [22, 37])
def test_real_vtm_writes_the_stored_streams(golden, qp, real_vtm):
    tools = VtmTools.find(real_vtm)
    if tools.banner() != "VTM 23.13":
        pytest.skip("the stored streams are of VTM 23.13")
    depth = golden.about["bit_depth"]
    height, width = golden.picture.shape
    stream, _ = tools.encode(
        golden.picture.astype(np.uint8 if depth == 8 else "<u2").tobytes(),
        width=width,
        height=height,
        qp=qp,
        bit_depth=depth,
    )
    assert stream == golden.stream(qp)
