"""Fixed-point layers: every engine gives the integers of an int64 evaluation, at the ends of every range."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_reference import conv_int64

from mpcompress.errors import CodecFileError
from mpcompress.exact import engines
from mpcompress.exact.board import checkerboard_taps
from mpcompress.exact.engines import ConvEngine, Engine, GemmEngine, LimbEngine, choose_engine
from mpcompress.exact.fixed import ACTIVATION_LIMIT, WEIGHT_LIMIT, FixedConv

ENGINES = [LimbEngine(), GemmEngine(), ConvEngine(), ConvEngine(channels_last=True)]


def layer_of(seed: int, channels: int, outputs: int, **options: object) -> FixedConv:
    layer = FixedConv(channels, outputs, **options)
    random = np.random.default_rng(seed)
    weight = random.integers(-WEIGHT_LIMIT, WEIGHT_LIMIT + 1, layer.weight.shape)
    weight[: outputs // 2] = np.where(random.random(weight[: outputs // 2].shape) < 0.5, WEIGHT_LIMIT, -WEIGHT_LIMIT)
    layer.weight.copy_(torch.from_numpy(weight))
    layer.bias.copy_(torch.from_numpy(random.integers(-(2**31), 2**31, outputs)))
    layer.format.copy_(torch.tensor([9, 17, 9 if options.get("wide") else 4]))
    layer.prove("layer")
    return layer


def activations(seed: int, *shape: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    x = random.integers(-ACTIVATION_LIMIT, ACTIVATION_LIMIT + 1, shape)
    x[..., ::3] = np.where(random.random(x[..., ::3].shape) < 0.5, ACTIVATION_LIMIT, -ACTIVATION_LIMIT)
    return x


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 1},
        {"kernel": 5, "relu": True},
        {"kernel": 3, "wide": True},
        {"kernel": 3, "stride": 2},
        {"kernel": 3, "shuffle": True, "relu": True},
    ],
    ids=str,
)
def test_a_layer_is_its_int64_evaluation(engine: Engine, options: dict) -> None:
    layer = layer_of(1, 7, 8, **options)
    x = activations(2, 2, 5, 9, 7)
    out = engine.conv(torch.from_numpy(x).to(engine.dtype), layer)
    np.testing.assert_array_equal(out.to(torch.int64).numpy(), conv_int64(x, layer))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
def test_a_masked_layer_at_some_squares(engine: Engine) -> None:
    layer = layer_of(3, 5, 6, kernel=5, taps=checkerboard_taps())
    x = activations(4, 2, 6, 7, 5)
    squares = torch.tensor([0, 3, 40, 41])
    planes = engine.pad(torch.from_numpy(x).to(engine.dtype), 2)
    out = engine.taps(planes, layer, squares).to(torch.int64).numpy().reshape(2, 4, 6)
    np.testing.assert_array_equal(out, conv_int64(x, layer).reshape(2, 42, 6)[:, squares.numpy()])


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
def test_small_windows_give_the_same(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(5, 4, 6, kernel=5)
    x = torch.from_numpy(activations(6, 3, 11, 6, 4)).to(engine.dtype)
    whole = engine.conv(x, layer)
    for size in (1, 9000, 40000):
        monkeypatch.setattr(engines, "_WINDOW_BYTES", size)
        assert torch.equal(engine.conv(x, layer), whole)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weight", WEIGHT_LIMIT + 1),
        ("weight", -(2**15)),
        ("format", -1),
        ("format", 60),
    ],
)
def test_numbers_out_of_range_are_refused(field: str, value: int) -> None:
    layer = layer_of(7, 4, 4)
    getattr(layer, field)[-1] = value
    with pytest.raises(CodecFileError):
        layer.prove("layer")


def test_an_accumulator_that_could_round_is_refused() -> None:
    layer = FixedConv(1 << 12, 2, kernel=9)
    layer.format.copy_(torch.tensor([12, 12, 12]))
    layer.weight.fill_(WEIGHT_LIMIT)
    with pytest.raises(CodecFileError, match="would round"):
        layer.prove("layer")


def test_the_bound_covers_the_largest_accumulator() -> None:
    layer = layer_of(8, 6, 5, kernel=3)
    bound = layer.prove("layer")
    signs = np.sign(layer.weight[0].numpy().astype(np.int64))
    largest = int((layer.weight[0].numpy() * signs * ACTIVATION_LIMIT).sum()) + abs(int(layer.bias[0]))
    assert largest <= bound < 2**53


def test_the_engine_follows_the_machine() -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        assert type(choose_engine(torch.device("cpu"))) is GemmEngine
    assert isinstance(choose_engine(torch.device("cpu")), (LimbEngine, GemmEngine))
    assert choose_engine(torch.device("mps")).device.type == "cpu"
