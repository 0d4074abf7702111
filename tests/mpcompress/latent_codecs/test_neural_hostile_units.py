"""Strings and pstate come from anywhere: an error of this package or a tensor of the promised shape, nothing else."""

import numpy as np
import pytest
import torch

from mpcompress.errors import CorruptBitstreamError, InvalidInputError, MpcompressError

GRID = (6, 5)


@pytest.fixture(params=["vit_union", "vit_union_ctx"])
def unit(request):
    """A codec, its context and a healthy unit of two samples."""
    codec = request.getfixturevalue(request.param)
    torch.manual_seed(3)
    h = 2 * torch.randn(2, codec.num_prefix_tokens + GRID[0] * GRID[1], codec.h_dim)
    ctx = (torch.randn(2, codec.ctx_dim, *GRID),) if hasattr(codec, "ctx_dim") else ()
    return codec, ctx, codec.compress(h, *ctx, GRID)


def altered(strings, row, sample, string, key="y"):
    """A copy of strings with one of them replaced."""
    copy = {name: [list(part) for part in rows] for name, rows in strings.items()}
    copy[key][row][sample] = string
    return copy


@pytest.mark.parametrize("key", ["y", "z"])
@pytest.mark.parametrize(
    "change", [lambda s: b"", lambda s: s[:-1], lambda s: s[:4], lambda s: s + bytes(4), lambda s: b"\xff" * 4096]
)
def test_strings_that_no_encoder_writes(unit, key, change):
    codec, ctx, out = unit
    bad = change(out["strings"][key][0][1])
    with pytest.raises(CorruptBitstreamError):
        codec.decompress(altered(out["strings"], 0, 1, bad, key), out["pstate"], *ctx)


def test_random_bytes_and_flipped_bits_never_crash(unit):
    codec, ctx, out = unit
    rng = np.random.default_rng(0)
    rows = [("y", k) for k in range(len(out["strings"]["y"]))] + [("z", 0)]
    for _ in range(60):
        key, row = rows[rng.integers(len(rows))]
        data = bytearray(out["strings"][key][row][0])
        if rng.random() < 0.5:
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        else:
            data[:] = rng.bytes(4 * int(rng.integers(1, 64)))
        try:
            h_hat = codec.decompress(altered(out["strings"], row, 0, bytes(data), key), out["pstate"], *ctx)["h_hat"]
        except MpcompressError:
            continue
        assert h_hat.shape == (2, codec.num_prefix_tokens + 30, codec.h_dim)


@pytest.mark.parametrize(
    "change",
    [
        lambda s: None,
        lambda s: [],
        lambda s: {"y": s["y"]},
        lambda s: {**s, "y": s["y"][:-1]},
        lambda s: {**s, "y": s["y"] + s["y"]},
        lambda s: {**s, "z": s["z"][0]},
        lambda s: {**s, "z": [[]]},
        lambda s: {**s, "z": [s["z"][0] * 2]},
        lambda s: {**s, "y": [row[:1] for row in s["y"]]},
        lambda s: {**s, "y": [row if k else row[:1] for k, row in enumerate(s["y"])]},
        lambda s: {**s, "z": [["text", "text"]]},
        lambda s: {**s, "y": b"bytes"},
        lambda s: {**s, "y": [None] * len(s["y"])},
    ],
)
def test_other_nestings_counts_and_types(unit, change):
    codec, ctx, out = unit
    with pytest.raises((InvalidInputError, CorruptBitstreamError)):
        codec.decompress(change(out["strings"]), out["pstate"], *ctx)


HUGE = 2**40


@pytest.mark.parametrize(
    "change",
    [
        lambda p: None,
        lambda p: {},
        lambda p: {**p, "y_shape": None},
        lambda p: {**p, "y_shape": p["y_shape"][:-1]},
        lambda p: {**p, "y_shape": [(0, 0, 0)] * len(p["y_shape"])},
        lambda p: {**p, "y_shape": [(s[0], 10**4, 10**4) for s in p["y_shape"]]},
        lambda p: {**p, "y_shape": [(s[0], s[2], s[1] + 1) for s in p["y_shape"]]},
        lambda p: {**p, "y_shape": [(s[0] + 1, *s[1:]) for s in p["y_shape"]]},
        lambda p: {**p, "z_shape": (HUGE, HUGE)},
        lambda p: {**p, "z_shape": (1, 1, 1)},
        lambda p: {**p, "z_shape": "11"},
        lambda p: {**p, "token_res": (HUGE, HUGE)},
        lambda p: {**p, "token_res": (-6, -5)},
        lambda p: {**p, "token_res": (6.0, 5.0)},
        lambda p: {**p, "token_res": (True, True)},
        lambda p: {**p, "token_res": (7, 5)},
        lambda p: {**p, "token_res": None},
        lambda p: {**p, "y_pad": (HUGE, 3)},
    ],
)
def test_other_pstates(unit, change):
    codec, ctx, out = unit
    with pytest.raises((InvalidInputError, CorruptBitstreamError)):
        codec.decompress(out["strings"], change(out["pstate"]), *ctx)


def test_consistent_but_huge_shapes_are_refused_before_anything_is_allocated(vit_union):
    codec, side = vit_union, 2**20
    pstate = {
        "y_shape": [(c, side // 2, side // 2) for c in codec.groups],
        "z_shape": (side // 8, side // 8),
        "token_res": (side, side),
    }
    strings = {"y": [[bytes(8)]] * (2 * len(codec.groups)), "z": [[bytes(8)]]}
    with pytest.raises(InvalidInputError, match="exceed"):
        codec.decompress(strings, pstate)


def test_another_context_is_noise_or_an_error(vit_union_ctx):
    torch.manual_seed(5)
    codec = vit_union_ctx
    h, ctx = 2 * torch.randn(1, 3 + 36, codec.h_dim), torch.randn(1, codec.ctx_dim, 6, 6)
    out = codec.compress(h, ctx, (6, 6))
    right = codec.decompress(out["strings"], out["pstate"], ctx)["h_hat"]
    try:
        wrong = codec.decompress(out["strings"], out["pstate"], ctx + 1)["h_hat"]
    except CorruptBitstreamError:
        return
    assert not torch.allclose(right, wrong)
