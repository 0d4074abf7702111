"""`forward` trains: gradients reach every parameter, and a short run lowers rate and distortion."""

import math

import pytest
import torch

from mpcompress.latent_codecs import (
    FeatureScaleHyperprior,
    HyperpriorLatentCodecWithCtx,
    VitUnionLatentCodec,
    VitUnionLatentCodecWithCtx,
)

SIZES = {"h_dim": 64, "y_dim": 16, "z_dim": 8, "groups": 8}
NAMES = ["pictures", "latents", "vit_union", "vit_union_ctx"]


def build(name):
    """A fresh codec, its inputs, and what its output is to equal."""
    torch.manual_seed(0)
    if name == "pictures":
        x = torch.rand(2, 1, 4, 6).repeat_interleave(16, 2).repeat_interleave(16, 3)[..., :50, :90]
        return FeatureScaleHyperprior(8, 12), (x,), "x_hat", x
    if name == "latents":
        y, ctx = 3 * torch.randn(2, 8, 7, 6), torch.randn(2, 4, 7, 6)
        return HyperpriorLatentCodecWithCtx(y_channels=8, z_channels=6, ctx_channels=4), (y, ctx), "y_hat", y
    h = (torch.randn(2, 1, 64) * torch.linspace(0, 2, 26)[:, None]).contiguous()  # prefix token and a 5x5 grid
    if name == "vit_union":
        return VitUnionLatentCodec(**SIZES), (h, (5, 5)), "h_hat", h
    return VitUnionLatentCodecWithCtx(**SIZES, ctx_dim=4), (h, torch.randn(2, 4, 5, 5), (5, 5)), "h_hat", h


def bits(out):
    return sum(-likelihood.log2().sum() for likelihood in out["likelihoods"].values())


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    codec, inputs, key, target = build(name)
    with torch.no_grad():  # fresh weights make a z that rounds to zero, without a slope for the first layer behind it
        for n, p in codec.named_parameters():
            if n.endswith("h_a.4.bias"):
                p.normal_(std=3.0)
    out = codec(*inputs)
    assert out[key].shape == target.shape
    (bits(out) + (out[key] - target).square().sum()).backward()
    codec.aux_loss().backward()
    silent = [n for n, p in codec.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not silent
    zero = [n for n, p in codec.named_parameters() if not p.grad.any()]
    assert not zero


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_lowers_rate_and_distortion(name):
    codec, inputs, key, target = build(name)
    main = [p for n, p in codec.named_parameters() if not n.endswith("quantiles")]
    optimizer = torch.optim.Adam(main, lr=2e-3)
    quantiles = torch.optim.Adam([p for n, p in codec.named_parameters() if n.endswith("quantiles")], lr=1e-2)
    history = []
    for _ in range(60):
        out = codec(*inputs)
        rate, error = bits(out) / target.numel(), (out[key] - target).square().mean()
        optimizer.zero_grad()
        (rate + 20 * error).backward()
        torch.nn.utils.clip_grad_norm_(main, 1.0)
        optimizer.step()
        quantiles.zero_grad()
        aux = codec.aux_loss()
        aux.backward()
        quantiles.step()
        history.append((rate.item(), error.item(), aux.item()))
    start, end = history[0], [sum(values) / 5 for values in zip(*history[-5:], strict=True)]
    assert all(map(math.isfinite, end))
    assert end[0] + 20 * end[1] < 0.9 * (start[0] + 20 * start[1])
    assert end[2] < start[2]
    if name != "latents":  # its rounding noise is all the distortion there is
        assert end[1] < start[1]


def test_mixed_precision_keeps_the_rate_in_float32(vit_union):
    codec, inputs, _, _ = build("vit_union")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = codec(*inputs)
    assert {likelihood.dtype for likelihood in out["likelihoods"].values()} == {torch.float32}
    (bits(out) + out["h_hat"].float().square().sum()).backward()
    assert all(torch.isfinite(p.grad).all() for n, p in codec.named_parameters() if not n.endswith("quantiles"))


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_codec_codes_after_update(name):
    codec, inputs, key, target = build(name)
    codec.eval()
    assert codec.update()
    out = codec.compress(*inputs)
    where = {"pstate": out["pstate"]} if "pstate" in out else {"shape": out["shape"]}
    if "size" in out:
        where["size"] = out["size"]
    ctx = [inputs[1]] if len(inputs) > 1 and isinstance(inputs[1], torch.Tensor) else []
    decoded = codec.decompress(out["strings"], *where.values(), *ctx)
    assert decoded[key].shape == target.shape
    with torch.no_grad():
        forward = codec(*inputs)[key]
    forward = forward.clamp(0, 1) if key == "x_hat" else forward
    torch.testing.assert_close(decoded[key], forward, atol=1e-4, rtol=0)
