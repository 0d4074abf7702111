"""VtmCodec and VtmFeatureCodec as documented, against the stand-in and, where there is one, the real VTM."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from mpcompress.errors import CodecUnavailableError, CorruptBitstreamError, InvalidInputError, NonFiniteError
from mpcompress.latent_codecs.vtm import VtmCodec, VtmFeatureCodec
from mpcompress.picture.cancel import CodingCancelledError


@pytest.fixture
def cfg(vtm_home):
    return {
        "vtm_path": str(vtm_home),
        "trun_flag": True,
        "trun_low": -20,
        "trun_high": 20,
        "bit_depth": 10,
        "model_type": "dinov2",
    }


def features(*shape, seed=0, scale=4.0):
    rows = np.random.default_rng(seed).normal(size=(*shape[:-1], 1)) + np.zeros(shape)
    return (scale * rows).astype(np.float32)


def test_documented_keys(cfg):
    x = features(1, 1, 17, 24)
    coded = VtmFeatureCodec(cfg).compress(x, 27)
    assert set(coded) == {"strings", "pstate"}
    assert isinstance(coded["strings"]["vtm"], bytes)
    assert coded["pstate"].keys() >= {"bin_path", "pack_shape", "feat_shape", "bit_depth"}
    assert coded["pstate"]["bin_path"] == ""
    assert coded["pstate"]["pack_shape"] == (17, 24)
    assert coded["pstate"]["feat_shape"] == (1, 1, 17, 24)
    assert coded["pstate"]["encoder"].startswith("VTM ")


def test_another_machine_decodes_it_twice(cfg, without_vtm):
    x = features(2, 1, 9, 24)
    coded = VtmFeatureCodec(cfg).compress(x, 10)
    # Another configuration altogether, and no VTM: the unit carries what decoding needs.
    elsewhere = VtmFeatureCodec({"model_type": "sd3", "trun_flag": False, "bit_depth": 8})
    first, second = (elsewhere.decompress(**coded, unused=1)["h_hat"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert first.shape == x.shape
    assert first.dtype == np.float32
    assert np.abs(first - x).mean() < 0.2


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_dtype_comes_back(cfg, dtype):
    x = features(1, 1, 9, 24).astype(dtype)
    codec = VtmFeatureCodec(cfg)
    assert codec.decompress(**codec.compress(x, 40))["h_hat"].dtype == dtype


def test_a_configuration_of_attributes_and_list_like_bounds(cfg):
    class Bounds(SimpleNamespace):
        def __iter__(self):
            return iter(self.values)

    cfg |= {"trun_low": Bounds(values=[-1, -2]), "trun_high": Bounds(values=[1, 2])}
    x = features(1, 2, 9, 24, scale=0.3)
    codec = VtmFeatureCodec(SimpleNamespace(**cfg))
    coded = codec.compress(x, 4)
    assert coded["pstate"]["trun_low"] == [-1.0, -2.0]
    assert np.abs(codec.decompress(**coded)["h_hat"] - np.clip(x, -1, 1)).mean() < 0.05


def test_without_truncation_the_range_is_measured(cfg):
    x = features(1, 2, 9, 24, scale=100)
    for bounds in ({"trun_low": None, "trun_high": None}, {"trun_low": [0, 0], "trun_high": [1, 1]}):
        codec = VtmFeatureCodec(cfg | {"trun_flag": False} | bounds)
        coded = codec.compress(x, 4)
        assert max(coded["pstate"]["trun_high"]) == x.max()
        assert np.abs(codec.decompress(**coded)["h_hat"] - x).max() < 0.1 * np.ptp(x)


@pytest.mark.parametrize(("model_type", "shape"), [("llama3", (2, 3, 4, 16)), ("sd3", (2, 8, 6, 10))])
def test_any_batch_layers_and_channels(cfg, model_type, shape):
    codec = VtmFeatureCodec(cfg | {"model_type": model_type})
    x = features(*shape)
    assert np.abs(codec.decompress(**codec.compress(x, 4))["h_hat"] - x).mean() < 0.5


def test_strips_travel_in_one_string(cfg):
    x, told = features(1, 1, 70, 24), []
    codec = VtmFeatureCodec(cfg | {"strips": 3, "speed": "faster"})
    coded = codec.compress(x, 10, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (3, 3)
    assert sum(coded["pstate"]["strip_bytes"]) == len(coded["strings"]["vtm"])
    assert np.abs(VtmFeatureCodec(cfg).decompress(**coded)["h_hat"] - x).mean() < 0.2


def test_forward_test_times_both_ways(cfg):
    coded_unit, decoded = VtmFeatureCodec(cfg).forward_test(features(1, 1, 9, 24), 37)
    assert coded_unit["time_s"] > 0
    assert decoded["time_s"] > 0
    assert decoded["h_hat"].shape == (1, 1, 9, 24)


def test_cancel(cfg):
    token = threading.Event()
    token.set()
    with pytest.raises(CodingCancelledError):
        VtmFeatureCodec(cfg).compress(features(1, 1, 9, 24), 37, cancel=token)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "vgg"}, "unknown packing 'vgg'"),
        ({"bit_depth": 17}, "15, 16 bits, not 17"),
        ({"trun_low": [1, 2]}, "2 lower but 1 upper"),
        ({"trun_low": None}, "needs trun_low"),
        ({"trun_high": -30}, "low below high"),
        ({"quant_type": "cubic"}, "unknown quant_type"),
        ({"speed": "warp"}, "warp"),
    ],
)
def test_bad_configurations(cfg, change, message):
    with pytest.raises(InvalidInputError, match=message):
        VtmFeatureCodec(cfg | change)


def test_bad_features(cfg):
    codec = VtmFeatureCodec(cfg)
    x = features(1, 1, 9, 24)
    x[0, 0, 3, 4] = np.nan
    with pytest.raises(NonFiniteError, match=r"\(0, 0, 3, 4\)"):
        codec.compress(x, 37)
    with pytest.raises(InvalidInputError, match="shape"):
        codec.compress(x[0, 0, 0], 37)
    with pytest.raises(InvalidInputError, match="qp"):
        codec.compress(np.zeros_like(x), 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feat_shape": None}, "feat_shape"),
        ({"feat_shape": (1, 1, 9, 25)}, "picture of"),
        ({"pack_shape": (8, 24)}, "picture of"),
        ({"bit_depth": 17}, "bit_depth"),
        ({"packing": "elsewhere"}, "unknown packing"),
        ({"trun_low": [float("nan")]}, "bounds"),
        ({"trun_low": [-1.0, -1.0]}, "bounds"),
        ({"format": "gif"}, "format"),
        ({"strip_heights": [4, 4]}, "strips of 8"),
        ({"strip_heights": [-1, 10]}, "strip heights"),
        ({"strip_bytes": [1, 2]}, "strips of"),
        ({"picture_crc32": 12345}, "CRC-32"),
        ({"dtype": "object"}, "object"),
    ],
)
def test_states_that_no_encoder_writes(cfg, change, message):
    codec = VtmFeatureCodec(cfg)
    coded = codec.compress(features(1, 1, 9, 24), 45)
    with pytest.raises(CorruptBitstreamError, match=message):
        codec.decompress(coded["strings"], coded["pstate"] | change)


@pytest.mark.parametrize("strings", [{}, {"vtm": None}, {"vtm": "text"}, {"vtm": b""}, {"y": b"x"}])
def test_strings_without_a_stream(cfg, strings):
    codec = VtmFeatureCodec(cfg)
    pstate = {"feat_shape": (1, 1, 9, 24), "bin_path": "/dev/null"}
    with pytest.raises(CorruptBitstreamError):
        codec.decompress(strings, pstate)


def test_files_there_and_back(vtm_home, tmp_path, smooth):
    codec, picture = VtmCodec(str(vtm_home)), smooth(20, 24)
    raw, stream, rec = (tmp_path / name for name in ("raw with spaces; $(x).yuv", "a.vvc", "b.yuv"))
    raw.write_bytes(picture.astype("<u2").tobytes())
    codec.compress(str(raw), str(stream), 24, 20, 10, bitdepth=10)
    codec.decompress(str(stream), str(rec), bit_depth=10)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == sorted([raw.name, "a.vvc", "b.yuv"])
    # The stand-in extends frames to even sides of at least 16; VTM does not.
    decoded = np.frombuffer(rec.read_bytes(), "<u2").reshape(20, 24)
    assert np.abs(decoded.astype(int) - picture).mean() < 20


def test_files_of_another_size_leave_nothing(vtm_home, tmp_path):
    (tmp_path / "raw").write_bytes(bytes(10))
    with pytest.raises(InvalidInputError, match="10 bytes"):
        VtmCodec(vtm_home).compress(tmp_path / "raw", tmp_path / "bin", 24, 20, 37)
    (tmp_path / "garbage").write_bytes(b"garbage" * 100)
    with pytest.raises(CorruptBitstreamError):
        VtmCodec(vtm_home).decompress(tmp_path / "garbage", tmp_path / "rec")
    assert not (tmp_path / "bin").exists()
    assert not (tmp_path / "rec").exists()


def test_a_missing_vtm_shows_on_use(tmp_path, without_vtm):
    codec = VtmFeatureCodec({"vtm_path": str(tmp_path), "trun_flag": False, "model_type": "dinov2", "bit_depth": 10})
    with pytest.raises(CodecUnavailableError, match="VTM_HOME"):
        codec.compress(features(1, 1, 9, 24), 37)
    with pytest.raises(CodecUnavailableError, match="VTM_HOME"):
        VtmCodec(tmp_path).tools.banner()


def test_needs_no_torch():
    code = "import sys, mpcompress.latent_codecs.vtm; sys.exit('torch' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
