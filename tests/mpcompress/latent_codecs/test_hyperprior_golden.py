"""Units and checkpoints of the documented hyperprior codecs."""

import pytest
import torch

from mpcompress.latent_codecs import HyperLatentCodecWithCtx, HyperpriorLatentCodecWithCtx
from mpcompress.latent_codecs._hyper import SmallContextAnalysis, SmallContextSynthesis
from mpcompress.layers._compressai import EntropyBottleneck

PICTURES = ["b1_64x64", "b1_128x192", "b2_64x128"]
LATENTS = ["b1_8x8", "b2_6x10"]


def close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.fixture(scope="module")
def pictures(golden):
    return golden("feature_scale_hyperprior").model()


@pytest.fixture(scope="module")
def hyper(golden):
    folder = golden("hyper_latent_ctx")
    y_channels, z_channels, ctx_channels = (folder.config[f"{key}_channels"] for key in ("y", "z", "ctx"))
    codec = HyperLatentCodecWithCtx(
        EntropyBottleneck(z_channels),
        SmallContextAnalysis(y_channels, z_channels, ctx_channels),
        SmallContextSynthesis(z_channels, ctx_channels),
        quantizer=folder.config["quantizer"],
    )
    codec.load_state_dict(folder.weights())
    return codec.eval()


@pytest.fixture(scope="module")
def hyperprior(golden):
    folder = golden("hyperprior_latent_ctx")
    sizes = {key: folder.config[key] for key in ("y_channels", "z_channels", "ctx_channels", "quantizer")}
    codec = HyperpriorLatentCodecWithCtx(**sizes)
    codec.load_state_dict(folder.weights())
    return codec.eval()


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(golden, pictures, name):
    case = golden("feature_scale_hyperprior").case(name)
    out = pictures.compress(case["x"])
    assert out["strings"] == case.strings
    assert list(out["shape"]) == case["shape"]
    assert out["size"] == tuple(case["input_hw"])
    close(pictures.decompress(case.strings, tuple(case["shape"]))["x_hat"], case["x_hat"], 5e-6)
    close(pictures.decompress(tuple(case.strings), case["shape"], out["size"])["x_hat"], case["x_hat"], 5e-6)
    with torch.no_grad():
        forward = pictures(case["x"])
    close(forward["x_hat"].clamp(0, 1), case["x_hat"], 1e-5)
    for key in ("y", "z"):
        close(forward["likelihoods"][key], case[f"lik_{key}"], 1e-5)


@pytest.mark.parametrize("name", LATENTS)
def test_hyper_latent(golden, hyper, name):
    case = golden("hyper_latent_ctx").case(name)
    out = hyper.compress(case["y"], case["ctx"])
    assert out["strings"] == case.strings
    assert list(out["shape"]) == case["shape"]
    close(out["params"], case["params"], 2e-5)
    close(hyper.decompress(case.strings, case["shape"], case["ctx"])["params"], case["params"], 2e-5)
    with torch.no_grad():
        forward = hyper(case["y"], case["ctx"])
    close(forward["params"], case["params"], 1e-5)
    close(forward["likelihoods"]["z"], case["lik_z"], 1e-5)


@pytest.mark.parametrize("name", LATENTS)
def test_hyperprior_latent(golden, hyperprior, name):
    case = golden("hyperprior_latent_ctx").case(name)
    out = hyperprior.compress(case["y"], case["ctx"])
    assert out["strings"] == case.strings
    assert {key: list(shape) for key, shape in out["shape"].items()} == case["shape"]
    close(out["y_hat"], case["y_hat"], 2e-5)
    close(hyperprior.decompress(case.strings, case["shape"], case["ctx"])["y_hat"], case["y_hat"], 2e-5)
    with torch.no_grad():
        forward = hyperprior(case["y"], case["ctx"])
    close(forward["y_hat"], case["y_hat"], 1e-5)
    for key in ("y", "z"):
        close(forward["likelihoods"][key], case[f"lik_{key}"], 1e-5)


def test_update_computes_the_stored_tables(golden, pictures, hyper, hyperprior):
    codecs = {"feature_scale_hyperprior": pictures, "hyper_latent_ctx": hyper, "hyperprior_latent_ctx": hyperprior}
    for name, codec in codecs.items():
        stored = golden(name).weights()
        assert codec.update(force=True)
        state = codec.state_dict()
        assert set(state) == set(stored)
        for key, value in stored.items():
            assert torch.equal(state[key], value), key
