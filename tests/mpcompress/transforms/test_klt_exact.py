"""Units of the shipped codecs decode to the same symbols for ever and everywhere."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mpcompress.codec import TensorSpec, Unit
from mpcompress.entropy.rans import encode
from mpcompress.errors import CorruptBitstreamError
from mpcompress.registry import load, preset
from mpcompress.transforms.klt_codec import KltCodec
from mpcompress.transforms.klt_model_file import read_model

HERE = Path(__file__).resolve().parent
GOLDEN = [
    (path, version)
    for path in sorted((HERE / "golden").glob("*.json"))
    for version in json.loads(path.read_text(encoding="utf-8"))["fingerprints"]
]


def beside(name: str):
    """A module of this folder, which importlib mode does not find by name."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


reference = beside("klt_reference")
as_of_version = beside("write_golden").as_of_version


@pytest.fixture(params=GOLDEN, ids=lambda unit: f"{unit[0].stem}-v{unit[1]}")
def golden(request):
    path, version = request.param
    known = json.loads(path.read_text(encoding="utf-8"))
    file = as_of_version(load(preset(known["codec"])).codec_file(), int(version))
    codec = KltCodec(read_model(file), file)
    spec = TensorSpec(name="h", dtype="float16", shape=tuple(known["shape"]))
    stream = path.with_suffix(f".v{version}.bin").read_bytes()
    unit = Unit(strings=[stream], pstate=known["pstate"], specs=(spec,))
    return codec, unit, known, np.load(path.with_suffix(".npz"))


def symbols_of(codec, unit) -> tuple[np.ndarray, ...]:
    """Index, class and value of the symbols that are not 0, as the codec reads them."""
    (decoded,) = codec.read_symbols(unit)
    return decoded.index, decoded.classes, decoded.values


def test_there_are_golden_units():
    assert Counter(version for _, version in GOLDEN) == {"2": 1, "3": 8, "4": 1, "5": 8}


def test_golden_units_decode_to_their_symbols(golden):
    codec, unit, known, arrays = golden
    assert codec.fingerprint.hex() == known["fingerprints"][str(codec.bitstream_version)]
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
    q, _, h_hat = reference.decode(codec.codec_file(), unit.strings[0], known["pstate"], known["shape"])
    assert np.array_equal(np.flatnonzero(q) + q.shape[1], arrays["index"])
    assert np.array_equal(q[q != 0], arrays["values"])
    (out,) = codec.decompress([unit])
    assert np.allclose(out["h_hat"], h_hat, atol=2e-3 * float(np.abs(h_hat).max()), rtol=2e-3)


def test_an_independent_decoder_agrees_on_fresh_units(shipped, tools):
    codec, features = shipped
    for qp, tokens, params in ((300, 257, {}), (200, 54, {"token_res": (1, 53)}), (250, 26, {"token_res": (5, 5)})):
        _, unit, out = tools.code(codec, features[3][:tokens].astype(np.float32), qp_eighths=qp, **params)
        q, _, h_hat = reference.decode(codec.codec_file(), unit.strings[0], dict(unit.pstate), unit.specs[0].shape)
        assert np.array_equal(q[q != 0], symbols_of(codec, unit)[2])
        assert np.allclose(out, h_hat, atol=2e-3)


@pytest.mark.parametrize("qp", [96, 192, 240, 288])
def test_sizes_are_within_one_per_cent_of_the_ideal_code_length(shipped, tools, qp):
    """All tensors together: of one of 250 bytes the byte that a stream fills up is half a per cent."""
    codec, features = shipped
    sizes = [8 * len(tools.code(codec, h, qp_eighths=qp)[0].strings[0]) for h in features]
    assert sum(sizes) < 1.01 * sum(tools.ideal_bits(codec, h, qp) for h in features)


@pytest.mark.parametrize("qp", [96, 192, 288, 376])
def test_codecs_of_older_versions_write_what_they_did(shipped, tools, qp):
    """The same symbols with the long ending."""
    codec, features = shipped
    older = KltCodec(read_model(as_of_version(codec.codec_file(), codec.bitstream_version - 2)))
    found = tools.symbols(codec, features[1], qp)
    units = [tools.code(which, features[1], qp_eighths=qp)[1] for which in (codec, older)]
    for which, unit, ending in zip((codec, older), units, ("short", "long"), strict=True):
        assert encode(found.values, found.classes, codec.model.tables, ending) == unit.strings[0]
        assert which.model.ending == ending
    assert units[0].pstate == units[1].pstate
    assert len(units[0].strings[0]) <= len(units[1].strings[0])


def test_streams_of_other_versions_are_refused(shipped, tools):
    codec, features = shipped
    older = KltCodec(read_model(as_of_version(codec.codec_file(), codec.bitstream_version - 2)))
    for one, other in ((codec, older), (older, codec)):
        _, unit, _ = tools.code(one, features[2], qp_eighths=200)
        with pytest.raises(CorruptBitstreamError):
            other.decompress([unit])
