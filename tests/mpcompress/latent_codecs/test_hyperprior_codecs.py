"""Pictures of any size, the documented default construction, and codecs given by the caller."""

import pytest
import torch
from torch import nn

from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs import HyperLatentCodecWithCtx, HyperpriorLatentCodecWithCtx
from mpcompress.latent_codecs._entropy_models import StreamEntropyBottleneck, StreamGaussianConditional
from mpcompress.latent_codecs._hyper import SmallContextAnalysis, SmallContextSynthesis
from mpcompress.layers._compressai import EntropyBottleneck, GaussianConditionalLatentCodec


@pytest.fixture(scope="module")
def pictures(golden):
    return golden("feature_scale_hyperprior").model()


@pytest.fixture(scope="module")
def hyperprior(golden):
    codec = HyperpriorLatentCodecWithCtx(y_channels=32, z_channels=16, ctx_channels=32)
    codec.load_state_dict(golden("hyperprior_latent_ctx").weights())
    return codec.eval()


def picture(height, width, batch=1):
    torch.manual_seed(height * width)
    return torch.rand(batch, 1, height, width)


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (60, 50), (64, 65), (100, 70), (63, 129)], ids=str)
def test_pictures_of_any_size(pictures, size):
    x = picture(*size)
    out = pictures.compress(x)
    assert out["size"] == size
    assert tuple(out["shape"]) == tuple(-(-side // 64) for side in size)
    x_hat = pictures.decompress(out["strings"], out["shape"], out["size"])["x_hat"]
    assert x_hat.shape == x.shape
    whole = pictures.decompress(out["strings"], out["shape"])["x_hat"]
    assert whole.shape[-2:] == tuple(64 * side for side in out["shape"])
    assert torch.equal(whole[..., : size[0], : size[1]], x_hat)
    with torch.no_grad():
        forward = pictures(x)["x_hat"]
    assert (forward.clamp(0, 1) - x_hat).abs().mean() < 1e-3


def test_a_batch_of_pictures_gives_the_strings_of_single_calls(pictures):
    x = picture(90, 70, batch=3)
    out = pictures.compress(x)
    for b in range(3):
        assert pictures.compress(x[b : b + 1])["strings"] == [[row[b]] for row in out["strings"]]
    assert pictures.decompress(out["strings"], out["shape"], out["size"])["x_hat"].shape == x.shape


def test_the_downsampling_factor(pictures):
    assert pictures.downsampling_factor == 64
    with pytest.raises(AttributeError):
        pictures.downsampling_factor = 32


@pytest.mark.parametrize(
    ("shape", "size", "error"),
    [
        ((2, 2), (65, 64), CorruptBitstreamError),
        ((2, 2), (129, 100), CorruptBitstreamError),
        ((1, 2), None, CorruptBitstreamError),
        ((2**20, 2**20), None, InvalidInputError),
        ((2, 0), None, InvalidInputError),
        ((2, 2), (0, 0), InvalidInputError),
        (None, None, InvalidInputError),
    ],
)
def test_shapes_of_pictures_that_no_unit_has(pictures, shape, size, error):
    strings = pictures.compress(picture(100, 70))["strings"]
    with pytest.raises(error):
        pictures.decompress(strings, shape, size)


@pytest.mark.parametrize("change", [lambda s: s[:1], lambda s: [s[0], []], lambda s: [s[0], ["a"]], lambda s: b"ab"])
def test_strings_of_pictures_that_no_unit_has(pictures, change):
    out = pictures.compress(picture(64, 64))
    with pytest.raises((InvalidInputError, CorruptBitstreamError)):
        pictures.decompress(change(out["strings"]), out["shape"])


def test_default_construction_without_arguments():
    codec = HyperpriorLatentCodecWithCtx()
    assert isinstance(codec["hyper"], HyperLatentCodecWithCtx)
    assert isinstance(codec["y"], GaussianConditionalLatentCodec)
    assert codec["hyper"].entropy_bottleneck.channels == 192
    codec.update()
    y, ctx = torch.randn(1, 256, 3, 5), torch.randn(1, 256, 3, 5)
    out = codec.compress(y, ctx)
    y_hat = codec.decompress(out["strings"], out["shape"], ctx)["y_hat"]
    assert torch.equal(y_hat, out["y_hat"])
    assert (y_hat - y).abs().max() <= 0.5 + 1e-4


def test_one_codec_given_and_the_other_built():
    hyper = HyperLatentCodecWithCtx(EntropyBottleneck(4), SmallContextAnalysis(6, 4, 2), SmallContextSynthesis(4, 2))
    codec = HyperpriorLatentCodecWithCtx({"hyper": hyper}, y_channels=6, z_channels=4, ctx_channels=2)
    assert codec["hyper"] is hyper
    codec.update()
    y, ctx = torch.randn(2, 6, 5, 5), torch.randn(2, 2, 5, 5)
    out = codec.compress(y, ctx)
    assert torch.equal(codec.decompress(out["strings"], out["shape"], ctx)["y_hat"], out["y_hat"])


def test_codecs_of_compressai_get_our_coder_and_may_be_given_lists(golden, hyperprior):
    """The documented construction from parts, with CompressAI's own Gaussian codec."""
    y_codec = GaussianConditionalLatentCodec(
        quantizer="ste", entropy_parameters=nn.Sequential(nn.Conv2d(32, 64, kernel_size=1))
    )
    bottleneck = EntropyBottleneck(16)
    hyper = HyperLatentCodecWithCtx(
        bottleneck, SmallContextAnalysis(32, 16, 32), SmallContextSynthesis(16, 32), quantizer="ste", unused=1
    )
    codec = HyperpriorLatentCodecWithCtx({"y": y_codec, "hyper": hyper}, unused=1)
    assert type(bottleneck) is StreamEntropyBottleneck
    assert type(y_codec.gaussian_conditional) is StreamGaussianConditional
    folder = golden("hyperprior_latent_ctx")
    codec.load_state_dict(folder.weights())
    case = folder.case("b2_6x10")
    assert codec.eval().compress(case["y"], case["ctx"])["strings"] == case.strings
    shape = {"y": [6, 10], "hyper": [3, 5]}
    expected = hyperprior.decompress(case.strings, case["shape"], case["ctx"])["y_hat"]
    assert torch.equal(codec.decompress(case.strings, shape, case["ctx"])["y_hat"], expected)
    with pytest.raises(CorruptBitstreamError, match=r"shape\.y"):
        codec.decompress(case.strings, {"y": [6, 11], "hyper": [3, 5]}, case["ctx"])


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (6, 9)], ids=str)
def test_latents_of_any_size_and_batch(hyperprior, size):
    torch.manual_seed(4)
    y, ctx = 3 * torch.randn(3, 32, *size), torch.randn(3, 32, *size)
    out = hyperprior.compress(y, ctx)
    assert torch.equal(hyperprior.decompress(out["strings"], out["shape"], ctx)["y_hat"], out["y_hat"])
    for b in range(3):
        single = hyperprior.compress(y[b : b + 1], ctx[b : b + 1])
        assert single["strings"] == [[row[b]] for row in out["strings"]]


@pytest.mark.parametrize(
    ("strings", "shape"),
    [
        (lambda s: s, {"y": (8, 8)}),
        (lambda s: s, {"y": (8, 9), "hyper": (4, 4)}),
        (lambda s: s, {"y": (8, 8), "hyper": (4, 5)}),
        (lambda s: s, {"y": (8, 8), "hyper": (2**30, 2**30)}),
        (lambda s: s, {"y": "88", "hyper": (4, 4)}),
        (lambda s: s, {"y": (), "hyper": (4, 4)}),
        (lambda s: s[1:], {"y": (8, 8), "hyper": (4, 4)}),
        (lambda s: [[], []], {"y": (8, 8), "hyper": (4, 4)}),
        (lambda s: [s[0] * 2, s[1] * 2], {"y": (8, 8), "hyper": (4, 4)}),
        (lambda s: None, {"y": (8, 8), "hyper": (4, 4)}),
    ],
)
def test_latent_units_that_no_encoder_writes(golden, hyperprior, strings, shape):
    case = golden("hyperprior_latent_ctx").case("b1_8x8")
    with pytest.raises((InvalidInputError, CorruptBitstreamError)):
        hyperprior.decompress(strings(case.strings), shape, case["ctx"])


def test_a_context_that_does_not_fit_is_named(hyperprior):
    y = torch.zeros(1, 32, 4, 4)
    for ctx in (torch.zeros(1, 32, 4, 5), torch.zeros(2, 32, 4, 4), torch.zeros(32, 4, 4)):
        for method in (hyperprior.compress, hyperprior):
            with pytest.raises(InvalidInputError, match="ctx"):
                method(y, ctx)


def test_the_quantizer_is_checked():
    with pytest.raises(InvalidInputError, match="quantizer"):
        HyperpriorLatentCodecWithCtx(quantizer="rounding")
