"""Units of the shipped codecs decode to the same symbols for ever and everywhere."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from mpcompress.codec import TensorSpec, Unit
from mpcompress.entropy.rans import encode
from mpcompress.registry import load, preset

HERE = Path(__file__).resolve().parent
GOLDEN = sorted((HERE / "golden").glob("*.json"))


def reference():
    """The module `klt_reference`, which importlib mode does not find by name."""
    spec = importlib.util.spec_from_file_location("klt_reference", HERE / "klt_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    path = request.param
    known = json.loads(path.read_text(encoding="utf-8"))
    codec = load(preset(known["codec"]))
    spec = TensorSpec(name="h", dtype="float16", shape=tuple(known["shape"]))
    unit = Unit(strings=[path.with_suffix(".bin").read_bytes()], pstate=known["pstate"], specs=(spec,))
    return codec, unit, known, np.load(path.with_suffix(".npz"))


def symbols_of(codec, unit) -> tuple[np.ndarray, ...]:
    """Index, class and value of the symbols that are not 0, as the codec reads them."""
    (decoded,) = codec.read_symbols(unit)
    return decoded.index, decoded.classes, decoded.values


def test_there_are_golden_units():
    assert len(GOLDEN) == 9


def test_golden_units_decode_to_their_symbols(golden):
    codec, unit, known, arrays = golden
    assert codec.fingerprint.hex() == known["fingerprint"]
    for name, found in zip(("index", "classes", "values"), symbols_of(codec, unit), strict=True):
        assert np.array_equal(found, arrays[name])


def test_golden_units_decode_to_their_features(golden):
    codec, unit, _, arrays = golden
    codec.check_unit(unit)
    (out,) = codec.decompress([unit])
    step = 2.0 ** ((codec.model.base_log2 + unit.pstate["qp_eighths"]) / 48)
    # Symbols are exact, floats are not: any machine's may round differently.
    assert np.allclose(out["h_hat"][::9, ::16], arrays["sample"], atol=0.01 * step, rtol=2e-3)


def test_an_independent_decoder_agrees(golden):
    codec, unit, known, arrays = golden
    q, h_hat = reference().decode(codec.codec_file(), unit.strings[0], known["pstate"], known["shape"])
    assert np.array_equal(np.flatnonzero(q) + q.shape[1], arrays["index"])
    assert np.array_equal(q[q != 0], arrays["values"])
    (out,) = codec.decompress([unit])
    assert np.allclose(out["h_hat"], h_hat, atol=2e-3 * float(np.abs(h_hat).max()), rtol=2e-3)


def test_an_independent_decoder_agrees_on_fresh_units(shipped, tools):
    codec, features = shipped
    for qp, tokens, params in ((300, 257, {}), (200, 54, {"token_res": (1, 53)}), (250, 26, {"token_res": (5, 5)})):
        _, unit, out = tools.code(codec, features[3][:tokens].astype(np.float32), qp_eighths=qp, **params)
        q, h_hat = reference().decode(codec.codec_file(), unit.strings[0], dict(unit.pstate), unit.specs[0].shape)
        assert np.array_equal(q[q != 0], symbols_of(codec, unit)[2])
        assert np.allclose(out, h_hat, atol=2e-3)


def test_sizes_are_within_one_per_cent_of_the_ideal_code_length(shipped, tools):
    codec, features = shipped
    for qp in (96, 192, 288):
        coded, unit, _ = tools.code(codec, features[0], qp_eighths=qp)
        (decoded,) = codec.read_symbols(unit)
        bits = tools.ideal_bits(codec, features[0], qp)
        assert decoded.values.size
        assert len(coded.strings[0]) * 8 < 1.01 * bits + 64


def test_symbols_that_are_put_together_again_give_the_bytes(shipped, tools):
    codec, features = shipped
    found = tools.symbols(codec, features[1], 192)
    coded, _, _ = tools.code(codec, features[1], qp_eighths=192)
    assert encode(found.values, found.classes, codec.model.tables) == coded.strings[0]
