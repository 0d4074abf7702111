"""Conversion and units of `ExactVitUnion`: rate, batches, escapes, damage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exact_settings import features, small_codec

from mpcompress.errors import (
    CodecFileError,
    CodecUnavailableError,
    CorruptBitstreamError,
    InvalidInputError,
    NonFiniteError,
    OutOfRangeError,
)
from mpcompress.exact.convert import exact_from, walk
from mpcompress.exact.fixed import FixedConv
from mpcompress.exact.stream import LatentReader
from mpcompress.exact.vit_union import ExactVitUnion
from mpcompress.latent_codecs import VitUnionLatentCodec
from mpcompress.latent_codecs._vit_base import VitGeometry
from mpcompress.layers import pad_to_even

GRID = (10, 7)


def ideal_bits(
    freqs: np.ndarray, lengths: np.ndarray, offsets: np.ndarray, rows: np.ndarray, symbols: np.ndarray
) -> float:
    """Code length of symbols inside their tables, 16-bit frequencies."""
    begins = np.cumsum(lengths) - lengths
    index = symbols - offsets[rows]
    inside = (index >= 0) & (index < lengths[rows] - 1)
    assert inside.mean() > 0.999
    chosen = freqs[(begins[rows] + np.where(inside, index, lengths[rows] - 1))]
    return float(-np.log2(chosen / 65536).sum())


def bits_of_both(codec: Any, inputs: tuple[Any, ...], grid: tuple[int, int]) -> tuple[float, float]:
    """Ideal code length of y in float32 and in fixed point, escapes without their distance."""
    exact = exact_from(codec)
    tables = [getattr(exact.exact, name).numpy() for name in ("freqs", "lengths", "offsets")]
    geometry = VitGeometry(token_res=grid)
    costs = [0.0, 0.0]
    with torch.no_grad():
        y = codec._analyse(inputs[0], geometry, *inputs[1:])
        side = [pad_to_even(x) for x in codec._side(*inputs[1:])]
        medians = codec.hyper_lc.entropy_bottleneck._get_medians().reshape(1, -1, 1, 1)
        z_hat = torch.round(codec.hyper_lc.h_a(pad_to_even(y), *side) - medians) + medians
        gaussian = codec.y_lc["y0"].latent_codec["y"].gaussian_conditional

        def code(scales: Any, means: Any, squares: Any, channels: slice) -> Any:
            symbols = torch.round(y[:, channels].flatten(2)[:, :, None, squares] - means)
            rows = gaussian.build_indexes(scales).numpy() + codec.z_dim
            costs[0] += ideal_bits(*tables, rows.ravel(), symbols.numpy().astype(np.int64).ravel())
            return symbols + means

        walk(codec, z_hat, geometry, inputs[1:], code)
        seen = []
        step = LatentReader.step

        def watch(self: Any, rows: Any, *args: Any) -> Any:
            out = step(self, rows, *args)
            seen.append((rows.numpy().ravel(), self._symbols[-1].ravel()))
            return out

        strings = exact.compress(*inputs, token_res=grid)["strings"]
        LatentReader.step = watch  # type: ignore[method-assign]
        try:
            exact._decode(strings, tuple(exact.quantise_ctx(x) for x in inputs[1:]), geometry)
        finally:
            LatentReader.step = step  # type: ignore[method-assign]
    costs[1] = sum(ideal_bits(*tables, rows, symbols.astype(np.int64)) for rows, symbols in seen)
    return costs[0], costs[1]


@pytest.mark.parametrize("ctx", [False, True])
def test_fixed_point_costs_less_than_a_thousandth_of_the_bits(ctx: bool) -> None:
    grid = (32, 32)
    codec = small_codec(ctx=ctx)
    inputs = features(codec, grid)
    with torch.no_grad():  # latents as wide as their distributions
        codec.f_a[2].weight /= codec._analyse(inputs[0], VitGeometry(token_res=grid), *inputs[1:]).std()
        for k, size in enumerate(codec.groups):
            codec.y_lc[f"y{k}"].entropy_parameters[4].bias[:size] = torch.logspace(0, 0.4, size)
    before, after = bits_of_both(codec, inputs, grid)
    assert after == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("name", ["plain", "ctx"])
def test_the_reconstruction_is_that_of_the_float_codec(exact_codecs: dict[str, Any], name: str) -> None:
    codec = small_codec(ctx=name == "ctx")
    inputs = features(codec, GRID, 2)
    exact = exact_codecs[name]
    out = exact.compress(*inputs, token_res=GRID)
    found = exact.decompress(out["strings"], out["pstate"], *inputs[1:])
    unit = codec.compress(*inputs, token_res=GRID)
    expected = codec.decompress(unit["strings"], unit["pstate"], *inputs[1:])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].shape == value.shape
        # A symbol may round the other way, by a step; all others keep theirs.
        assert float((found[key] - value).abs().mean()) < 0.02 * float(value.std())


@pytest.mark.parametrize("name", ["plain", "ctx"])
def test_a_batch_gives_the_streams_of_single_calls(exact_codecs: dict[str, Any], name: str) -> None:
    exact = exact_codecs[name]
    inputs = features(exact, GRID, 3)
    together = exact.compress(*inputs, token_res=GRID)["strings"]
    assert together == [exact.compress(*(x[b : b + 1] for x in inputs), token_res=GRID)["strings"][0] for b in range(3)]


def test_a_large_batch_goes_through_in_parts(exact_codecs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    exact = exact_codecs["ctx"]
    inputs = features(exact, GRID, 5)
    expected = exact.compress(*inputs, token_res=GRID)
    h_hat = exact.decompress(expected["strings"], expected["pstate"], inputs[1])["h_hat"]
    monkeypatch.setattr("mpcompress.latent_codecs._vit_base._POSITIONS", 45)
    assert exact.compress(*inputs, token_res=GRID)["strings"] == expected["strings"]
    assert torch.equal(exact.decompress(expected["strings"], expected["pstate"], inputs[1])["h_hat"], h_hat)


def test_compress_decodes_nothing(exact_codecs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: Any) -> None:
        raise AssertionError("decoded while coding")

    monkeypatch.setattr("mpcompress.exact.stream.decode_step", forbidden)
    monkeypatch.setattr("mpcompress.exact.vit_union.LatentReader", forbidden)
    for exact in exact_codecs.values():
        assert exact.compress(*features(exact, GRID), token_res=GRID)["strings"]


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (3, 2)], ids=str)
def test_the_smallest_grids(exact_codecs: dict[str, Any], grid: tuple[int, int]) -> None:
    for exact in exact_codecs.values():
        inputs = features(exact, grid)
        out = exact.compress(*inputs, token_res=grid)
        assert exact.decompress(out["strings"], out["pstate"], *inputs[1:])["h_hat"].shape == inputs[0].shape


def test_latents_far_outside_their_tables_decode() -> None:
    codec = small_codec()
    with torch.no_grad():
        codec.f_a[2].weight *= 3000
    exact = exact_from(codec)
    inputs = features(codec, GRID)
    with torch.no_grad():
        y = codec._analyse(inputs[0], VitGeometry(token_res=GRID))
    assert float(y.abs().max()) > 5000
    out = exact.compress(*inputs, token_res=GRID)
    y_hat = exact._decode(out["strings"], (), VitGeometry(token_res=GRID)).permute(0, 3, 1, 2) / 4096
    assert float((y_hat - y).abs().max()) <= 0.5 + 1e-3 * float(y.abs().max())


@pytest.mark.parametrize("damage", ["cut", "extended", "flipped", "swapped", "checksum", "empty"])
def test_damaged_streams_are_refused(exact_codecs: dict[str, Any], damage: str) -> None:
    exact = exact_codecs["plain"]
    out = exact.compress(*features(exact, GRID, 2), token_res=GRID)
    first, second = out["strings"]
    middle = len(second) // 2
    damaged = {
        "cut": second[:middle],
        "extended": second + b"\0\0",
        "flipped": second[:middle] + bytes([second[middle] ^ 1]) + second[middle + 1 :],
        "swapped": second[:4] + first[4:],
        "checksum": bytes([second[0] ^ 128]) + second[1:],
        "empty": b"",
    }[damage]
    with pytest.raises(CorruptBitstreamError) as caught:
        exact.decompress([first, damaged], out["pstate"])
    assert caught.value.field == "strings[1]"


def test_another_context_is_noticed(exact_codecs: dict[str, Any]) -> None:
    exact = exact_codecs["ctx"]
    h, ctx = features(exact, GRID)
    out = exact.compress(h, ctx, token_res=GRID)
    with pytest.raises(CorruptBitstreamError):
        exact.decompress(out["strings"], out["pstate"], -ctx)
    # Less than half a step away it is the same context.
    near = (torch.round(ctx * 256) + 0.2) / 256
    unit = exact.compress(h, near, token_res=GRID)
    exact.decompress(unit["strings"], unit["pstate"], torch.round(near * 256) / 256)


def test_what_cannot_be_coded_is_refused(exact_codecs: dict[str, Any]) -> None:
    exact = exact_codecs["plain"]
    (h,) = features(exact, GRID)
    with pytest.raises(NonFiniteError):
        exact.compress(torch.full_like(h, torch.nan), token_res=GRID)
    with pytest.raises(InvalidInputError):
        exact.compress(h, token_res=(10, 8))
    with pytest.raises(InvalidInputError):
        exact.compress(h, h, token_res=GRID)
    out = exact.compress(h, token_res=GRID)
    with pytest.raises(InvalidInputError):
        exact.decompress(out["strings"] * 4000, out["pstate"])
    large = small_codec()
    with torch.no_grad():
        large.f_a[2].bias += 1e7
    with pytest.raises(OutOfRangeError):
        exact_from(large).compress(h, token_res=GRID)


def test_a_state_dict_carries_everything(exact_codecs: dict[str, Any]) -> None:
    exact = exact_codecs["ctx"]
    blank = ExactVitUnion.blank(small_codec(ctx=True, seed=5)).eval()
    blank.load_state_dict(exact.state_dict())
    inputs = features(exact, GRID)
    out = exact.compress(*inputs, token_res=GRID)
    assert blank.compress(*inputs, token_res=GRID)["strings"] == out["strings"]
    assert blank.update() is False
    with pytest.raises(CodecUnavailableError):
        blank.update(force=True)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("exact.freqs", lambda x: x[:-1]),
        ("exact.thresholds", lambda x: x.flip(0)),
        ("exact.y.1.spatial.weight", lambda x: x.to(torch.int32)),
        ("exact.y.1.spatial.weight", lambda x: torch.full_like(x, 2**14)),
        ("exact.y.1.spatial.format", lambda x: x + 1),
        ("exact.y.0.parameters_of.leave.format", lambda x: x + torch.tensor([0, 0, 1])),
        ("exact.synthesis.middle.format", lambda x: x - torch.tensor([1, 0, 0])),
        ("exact.lengths", lambda x: x[:-1]),
        ("exact.y.0.spatial.bias", None),
    ],
)
def test_damaged_numbers_are_refused(exact_codecs: dict[str, Any], name: str, change: Any) -> None:
    state = dict(exact_codecs["plain"].state_dict())
    if change is None:
        del state[name]
    else:
        state[name] = change(state[name]).to(
            state[name].dtype if "int32" not in str(change(state[name]).dtype) else None
        )
    with pytest.raises(CodecFileError):
        ExactVitUnion.blank(small_codec()).load_state_dict(state, strict=False)


def test_what_cannot_be_converted_is_refused() -> None:
    with pytest.raises(CodecUnavailableError):
        exact_from(VitUnionLatentCodec(h_dim=64, y_dim=8, z_dim=8, groups=8))
    huge = small_codec()
    with torch.no_grad():
        huge.y_lc["y1"].entropy_parameters[0].weight.fill_(1e9)
    with pytest.raises(CodecFileError):
        exact_from(huge)


def test_measured_features_widen_the_formats() -> None:
    codec = small_codec()
    (h,) = features(codec, GRID)
    with torch.no_grad():
        codec.f_a[2].weight *= 500
    formats = [_formats(exact_from(codec, **known)) for known in ({}, {"features": [(h,)], "token_res": GRID})]
    assert formats[1]["y.1.spatial"][0] < formats[0]["y.1.spatial"][0]


def _formats(exact: ExactVitUnion) -> dict[str, list[int]]:
    return {name: layer.format.tolist() for name, layer in exact.exact.named_modules() if isinstance(layer, FixedConv)}
