"""Small calibrated codecs and features like those they were calibrated on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpcompress.calibrate import CalibrationResult, calibrate
from mpcompress.codec import Coded, CodingParams, TensorSpec, Unit
from mpcompress.registry import load, preset
from mpcompress.transforms.klt_codec import KltCodec
from mpcompress.transforms.klt_encoder import NO_PASSES, Encoder
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_model_file import read_model
from mpcompress.transforms.klt_sample import Sample, Symbols
from mpcompress.transforms.klt_search import PASSES
from mpcompress.transforms.klt_statistics import Steps, statistics_at

DATA = Path(__file__).resolve().parents[2] / "data"
CHANNELS = 12
MIXING = np.random.default_rng(7).normal(size=(CHANNELS, CHANNELS)) * 2.0 ** -np.arange(CHANNELS)[:, None]


def smooth(rng: np.random.Generator, height: int, width: int, prefix: int = 0) -> np.ndarray:
    """(prefix + height * width, 12) features that are smooth over the grid and correlated over the channels."""
    noise = rng.normal(size=(height, width, CHANNELS))
    for axis in (0, 1):
        noise = noise + np.roll(noise, 1, axis) + np.roll(noise, -1, axis)
    tokens = noise.reshape(-1, CHANNELS) @ MIXING + 3
    return np.concatenate([rng.normal(size=(prefix, CHANNELS)) @ MIXING - 1, tokens]).astype(np.float32)


def calibrated(kind: str) -> CalibrationResult:
    rng = np.random.default_rng(1)
    if kind == "grid":
        tensors = [smooth(rng, 7, 5, 2) for _ in range(30)]
        return calibrate(tensors, codec_id="tiny-grid", description="d", prefix_tokens=2, token_res=(7, 5))
    lengths = rng.integers(60, 200, size=30)
    return calibrate([smooth(rng, 1, n) for n in lengths], codec_id="tiny-sequence", description="d")


@pytest.fixture(scope="session")
def grid_codec() -> KltCodec:
    """2 prefix tokens, 7 x 5 patches."""
    return KltCodec(read_model(calibrated("grid").file))


@pytest.fixture(scope="session", params=["short", "long"])
def ending_codec(request, grid_codec) -> KltCodec:
    """`grid_codec` with either ending of streams."""
    return KltCodec(replace(grid_codec.model, ending=request.param))


@pytest.fixture(scope="session")
def sequence_codec() -> KltCodec:
    """Sequences of any length."""
    return KltCodec(read_model(calibrated("sequence").file))


@pytest.fixture(scope="session", params=["block6", "final"])
def shipped(request) -> tuple[KltCodec, np.ndarray]:
    """A shipped codec and real features of its tap, float16 (4, 257, 384), of pictures it was not calibrated on."""
    codec = load(preset(f"klt-imgfocus-vits14-{request.param}"))
    assert isinstance(codec, KltCodec)
    return codec, np.load(DATA / f"features_{request.param}.npy")


def spec_of(x: np.ndarray) -> TensorSpec:
    return TensorSpec(name="h", dtype=x.dtype.name, shape=x.shape)


def code(codec: KltCodec, x: np.ndarray, **params) -> tuple[Coded, Unit, np.ndarray]:
    """Compresses, checks the unit, decompresses."""
    resolved = codec.resolve([spec_of(x)], CodingParams(**params))
    (coded,) = codec.compress([{"h": x}], resolved)
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec_of(x),))
    codec.check_unit(unit)
    return coded, unit, codec.decompress([unit])[0]["h_hat"]


def unfiltered(codec: KltCodec, unit: Unit) -> np.ndarray:
    """What a unit decodes to with the codec's filter, if it has one, switched off."""
    off = {"filter_strength_eighths": -8} if codec.model.filter is not None else {}
    plain = Unit(strings=unit.strings, pstate={**unit.pstate, **off}, specs=unit.specs)
    codec.check_unit(plain)
    return codec.decompress([plain])[0]["h_hat"]


def symbols(codec: KltCodec, x: np.ndarray, qp: int, rate: float | None = None) -> Symbols:
    """What effort 1 makes of a tensor on the codec's own grid; with `rate`, one pass at that rate."""
    height, width = codec.token_res
    steps = Steps.of(codec.model, qp, codec.model.prefix_qp_offset_eighths, 0)
    sample = Sample(x.astype(np.float32), codec.prefix_tokens, height, width, np.zeros(0, np.int64))
    rate, passes = (codec.model.rate, PASSES[1]) if rate is None else (rate, NO_PASSES)
    found = Encoder(Engine(codec.model)).quantise(sample, steps, statistics_at(codec.model, steps), rate, None, passes)
    assert found is not None
    return found


def ideal_bits(codec: KltCodec, x: np.ndarray, qp: int) -> float:
    """Sum of -log2 of the probabilities of the symbols of a tensor."""
    found, tables = symbols(codec, x, qp), codec.model.tables
    begins = np.cumsum(tables.lengths) - tables.lengths
    at = found.values - tables.offsets[found.classes]
    inside = (at >= 0) & (at < tables.lengths[found.classes] - 1)
    freqs = tables.freqs[begins[found.classes] + np.where(inside, at, tables.lengths[found.classes] - 1)]
    return float(-np.log2(freqs / 2.0**tables.precision).sum())


@pytest.fixture(scope="session")
def tools():
    """The helpers of this file, for tests that importlib mode keeps from importing it."""

    class Tools:
        smooth = staticmethod(smooth)
        spec_of = staticmethod(spec_of)
        code = staticmethod(code)
        unfiltered = staticmethod(unfiltered)
        symbols = staticmethod(symbols)
        ideal_bits = staticmethod(ideal_bits)

    return Tools
