"""The proof: whatever encodes and whatever decodes, the symbols are the same. In float32 they are not."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
import torch
from exact_reference import rows_and_symbols
from exact_settings import SETTINGS, Setting, features, small_codec

from mpcompress.entropy import decode
from mpcompress.errors import MpcompressError
from mpcompress.exact.convert import exact_from
from mpcompress.exact.stream import LatentReader
from mpcompress.latent_codecs._vit_base import VitGeometry

# Two threads of two cores wait for each other actively: few of those settings in every run of the tests.
QUICK = tuple(setting for setting in SETTINGS if setting.threads == 1 or not setting.onednn)


def latents(codec: Any, strings: list[bytes], context: tuple[Any, ...], grid: tuple[int, int], batch: int) -> Any:
    """y_hat of all samples as integers, `batch` samples at a time."""
    found = []
    for begin in range(0, len(strings), batch):
        integers = tuple(codec.quantise_ctx(x[begin : begin + batch]) for x in context)
        found.append(codec._decode(strings[begin : begin + batch], integers, VitGeometry(token_res=grid)))
    return torch.cat(found)


def encode(codec: Any, setting: Setting, inputs: tuple[Any, ...], grid: tuple[int, int]) -> list[bytes]:
    strings: list[bytes] = []
    with setting.applied(codec):
        for begin in range(0, len(inputs[0]), setting.together):
            part = [x[begin : begin + setting.together] for x in inputs]
            strings += codec.compress(*part, token_res=grid)["strings"]
    return strings


def count_decodes(
    codec: Any,
    grid: tuple[int, int],
    samples: int,
    encoders: tuple[Setting, ...] = SETTINGS,
    decoders: tuple[Setting, ...] = SETTINGS,
) -> int:
    """Encode under each setting, decode under every one; the checksums are of the encoder's symbols."""
    inputs = features(codec, grid, samples)
    decodes = 0
    for encoder in encoders:
        strings = encode(codec, encoder, inputs, grid)
        expected = None
        for decoder in decoders:
            with decoder.applied(codec):
                y_hat = latents(codec, strings, inputs[1:], grid, decoder.together)
            expected = y_hat if expected is None else expected
            assert torch.equal(y_hat, expected)
            decodes += samples
    return decodes


@pytest.mark.parametrize("name", ["plain", "ctx"])
def test_a_stream_decodes_alike_under_every_setting(exact_codecs: dict[str, Any], name: str) -> None:
    assert count_decodes(exact_codecs[name], (20, 20), 2, QUICK[1:3], QUICK) == 2 * 2 * len(QUICK)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "grid"), [("plain", (20, 20)), ("ctx", (20, 20)), ("ctx", (37, 37))])
def test_hundreds_of_decodes_under_changed_settings(
    exact_codecs: dict[str, Any], name: str, grid: tuple[int, int]
) -> None:
    assert count_decodes(exact_codecs[name], grid, 2) == 2 * len(SETTINGS) ** 2


@pytest.mark.parametrize("grid", [(20, 20), (13, 6)], ids=str)
@pytest.mark.parametrize("name", ["plain", "ctx"])
def test_int64_numpy_comes_to_the_same_symbols(exact_codecs: dict[str, Any], name: str, grid: tuple[int, int]) -> None:
    compare_with_int64(exact_codecs[name], grid)


def test_int64_numpy_comes_to_the_same_symbols_after_escapes() -> None:
    codec = small_codec()
    with torch.no_grad():
        codec.f_a[2].weight *= 3000  # contexts of these latents are clamped
    escapes, largest = compare_with_int64(exact_from(codec), (20, 20))
    assert escapes > 1000
    assert largest > 2 * 32639


def compare_with_int64(codec: Any, grid: tuple[int, int]) -> tuple[int, int]:
    """Decode one stream with rows and means of int64 NumPy; returns its escapes and y's largest context, unclamped."""
    inputs = features(codec, grid)
    (string,) = codec.compress(*inputs, token_res=grid)["strings"]
    y_hat = latents(codec, [string], inputs[1:], grid, 1)[0].numpy()
    z = LatentReader(codec.exact.tables, [string]).hyper(VitGeometry(token_res=grid).z, codec.z_dim)[0].numpy()
    ctx = codec.quantise_ctx(inputs[1])[0].permute(1, 2, 0).numpy() if codec.ctx_dim else None
    rows, symbols = rows_and_symbols(codec.exact, z, y_hat, ctx)
    # Rows and means of each step follow from the symbols before it, so this is what a decoder of these networks reads.
    np.testing.assert_array_equal(decode(string[4:], rows, codec.exact.tables), symbols)
    assert string[:4] == zlib.crc32(symbols.astype("<i4").tobytes()).to_bytes(4, "little")
    tables = codec.exact.tables
    inside = symbols - tables.offsets[rows]
    escapes = int(((inside < 0) | (inside >= tables.lengths[rows] - 1)).sum())
    return escapes, int(np.abs(y_hat).max()) >> (12 - codec.exact.y[0].spatial.in_bits)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="one float32 arithmetic here")
def test_float32_does_not_travel_and_the_same_weights_in_fixed_point_do() -> None:
    grid = (20, 20)
    codec = small_codec(brittle=True)
    inputs = features(codec, grid, 2)
    exact = exact_from(codec)
    strings = encode(exact, SETTINGS[0], inputs, grid)
    unit = codec.compress(*inputs, grid)
    expected, ruined = codec.decompress(unit["strings"], unit["pstate"])["h_hat"], 0
    for setting in QUICK[1:]:
        with setting.applied(codec):
            ruined += _is_ruined(codec, unit, expected)
        with setting.applied(exact):
            latents(exact, strings, (), grid, setting.together)  # the checksums tell
    assert ruined >= 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("ctx", [False, True])
def test_cpu_and_gpu_read_each_other(ctx: bool) -> None:
    grid = (37, 37)
    codec = exact_from(small_codec(ctx=ctx))
    inputs = features(codec, grid, 2)
    here = codec.compress(*inputs, token_res=grid)["strings"]
    expected = latents(codec, here, inputs[1:], grid, 2)
    codec.to("cuda")
    there = codec.compress(*(x.cuda() for x in inputs), token_res=grid)["strings"]
    assert torch.equal(latents(codec, here, inputs[1:], grid, 1), expected)
    expected = latents(codec, there, inputs[1:], grid, 2)
    codec.to("cpu")
    assert torch.equal(latents(codec, there, inputs[1:], grid, 1), expected)


def _is_ruined(codec: Any, unit: dict[str, Any], expected: Any) -> bool:
    try:
        h_hat = codec.decompress(unit["strings"], unit["pstate"])["h_hat"]
    except MpcompressError:
        return True
    return float((h_hat - expected).abs().max()) > 0.01
