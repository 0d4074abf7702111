"""What a codec cannot take raises a ValueError of this package that names the input and its shape."""

import pytest
import torch

from mpcompress.errors import CodecUnavailableError, InvalidInputError, NonFiniteError, OutOfRangeError
from mpcompress.latent_codecs import FeatureScaleHyperprior, VitUnionLatentCodec, VitUnionLatentCodecWithCtx

SMALL = {"h_dim": 64, "y_dim": 16, "z_dim": 8, "groups": 8}


@pytest.mark.parametrize(
    ("h", "token_res", "words"),
    [
        (torch.zeros(1, 21, 64), (4, 5), r"\(1, 25, 64\).*\(1, 21, 64\)"),
        (torch.zeros(1, 25, 65), (4, 5), r"\(1, 25, 64\).*\(1, 25, 65\)"),
        (torch.zeros(25, 64), (4, 5), r"3 axes.*\(25, 64\)"),
        (torch.zeros(0, 25, 64), (4, 5), r"\(0, 25, 64\)"),
        (torch.zeros(1, 25, 64, dtype=torch.int32), (4, 5), "int32"),
        ("tokens", (4, 5), "str"),
        (torch.zeros(1, 25, 64), (4, 5, 1), "token_res"),
        (torch.zeros(1, 25, 64), (0, 20), "token_res"),
        (torch.zeros(1, 25, 64), None, "token_res"),
    ],
)
def test_shapes_of_h(vit_union, h, token_res, words):
    for method in (vit_union.compress, vit_union):
        with pytest.raises(InvalidInputError, match=words):
            method(h, token_res)


@pytest.mark.parametrize("shape", [(1, 32, 4, 4), (2, 32, 4, 5), (1, 31, 4, 5), (32, 4, 5)])
def test_shapes_of_ctx(vit_union_ctx, shape):
    h = torch.zeros(1, 3 + 20, 64)
    for method in (vit_union_ctx.compress, vit_union_ctx):
        with pytest.raises(InvalidInputError, match="h must be"):
            method(None, torch.zeros(shape), (4, 5))
        with pytest.raises(InvalidInputError, match="ctx"):
            method(h, torch.zeros(shape), (4, 5))
    ctx = torch.zeros(1, 32, 4, 5)
    out = vit_union_ctx.compress(h, ctx, (4, 5))
    with pytest.raises(InvalidInputError, match="ctx"):
        vit_union_ctx.decompress(out["strings"], out["pstate"], torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_values_are_named(vit_union, vit_union_ctx, value):
    h = torch.zeros(1, 5 + 20, 64)
    h[0, 7, 9] = value
    with pytest.raises(NonFiniteError, match=r"h .*\(0, 7, 9\)"):
        vit_union.compress(h, (4, 5))
    ctx = torch.full((1, 32, 4, 5), value)
    with pytest.raises(NonFiniteError, match="ctx"):
        vit_union_ctx.compress(torch.zeros(1, 23, 64), ctx, (4, 5))


@pytest.mark.parametrize("scale", [1e12, 3e38])
def test_huge_latents_are_an_error_and_no_hang(golden, vit_union, scale):
    with pytest.raises((OutOfRangeError, NonFiniteError)):
        vit_union.compress(torch.randn(1, 5 + 20, 64) * scale, (4, 5))
    pictures = golden("feature_scale_hyperprior").model()
    with torch.no_grad():
        pictures.g_a[6].bias += scale
    with pytest.raises((OutOfRangeError, NonFiniteError)):
        pictures.compress(torch.rand(1, 1, 64, 64))


def test_pictures_have_one_channel():
    codec = FeatureScaleHyperprior(8, 12)
    for method in (codec, codec.compress):
        with pytest.raises(InvalidInputError, match=r"\(1, 3, 64, 64\)"):
            method(torch.zeros(1, 3, 64, 64))
        with pytest.raises(InvalidInputError, match="4 axes"):
            method(torch.zeros(64, 64))


@pytest.mark.parametrize("cls", [VitUnionLatentCodec, VitUnionLatentCodecWithCtx])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"groups": 5}, "does not divide"),
        ({"groups": 0}, "does not divide"),
        ({"groups": [8, 4]}, "sum to y_dim=16"),
        ({"groups": [16, 0]}, "positive"),
        ({"groups": []}, "sum to"),
        ({"h_dim": 200}, "200 channels"),
        ({"num_prefix_tokens": -1}, "negative"),
    ],
)
def test_constructor_arguments(cls, wrong, words):
    with pytest.raises(InvalidInputError, match=words):
        cls(**{**SMALL, **wrong})


def test_groups_may_be_a_tuple_and_heads_follow_the_width():
    assert VitUnionLatentCodec(**{**SMALL, "groups": (4, 12)}).groups == [4, 12]
    assert VitUnionLatentCodec(**{**SMALL, "groups": 4}).groups == [4, 4, 4, 4]
    assert VitUnionLatentCodec(**{**SMALL, "h_dim": 48}).pre_vit_blocks[0].attn.num_heads == 1
    assert VitUnionLatentCodec(**{**SMALL, "h_dim": 192}).pre_vit_blocks[0].attn.num_heads == 3


def test_unused_keyword_arguments_are_accepted():
    codec = VitUnionLatentCodecWithCtx(**SMALL, ctx_dim=4, model="any")
    codec.update()
    h, ctx = torch.randn(1, 17, 64), torch.randn(1, 4, 4, 4)
    out = codec.compress(h, ctx, (4, 4), qp=3)
    codec.decompress(out["strings"], out["pstate"], ctx, qp=3)


def test_coding_before_update_says_what_to_do():
    codec = VitUnionLatentCodec(**SMALL)
    with pytest.raises(CodecUnavailableError, match=r"update\(\)"):
        codec.compress(torch.randn(1, 17, 64), (4, 4))
    with pytest.raises(CodecUnavailableError, match=r"update\(\)"):
        FeatureScaleHyperprior(8, 12).compress(torch.rand(1, 1, 64, 64))
