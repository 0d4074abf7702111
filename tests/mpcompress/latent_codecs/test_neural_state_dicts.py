"""Existing checkpoints load by name, whichever library version named the entropy bottleneck."""

import json
import re

import pytest
import torch
from torch import nn

from mpcompress.latent_codecs import FeatureScaleHyperprior, VitUnionLatentCodec, VitUnionLatentCodecWithCtx

DEFAULTS = {
    "VitUnionLatentCodec()": lambda: VitUnionLatentCodec(),
    "VitUnionLatentCodec(h_dim=1536)": lambda: VitUnionLatentCodec(h_dim=1536),
    "VitUnionLatentCodec(num_prefix_tokens=5)": lambda: VitUnionLatentCodec(num_prefix_tokens=5),
    "VitUnionLatentCodecWithCtx()": lambda: VitUnionLatentCodecWithCtx(),
    "FeatureScaleHyperprior(128, 192)": lambda: FeatureScaleHyperprior(128, 192),
}


def facts(state):
    return {key: (list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in state.items()}


def old_names(weights):
    """The naming of CompressAI before 1.2."""
    for key in list(weights):
        match = re.fullmatch(r"(.*entropy_bottleneck\.)(matrices|biases|factors)\.(\d)", key)
        if match:
            old = {"matrices": "_matrix", "biases": "_bias", "factors": "_factor"}[match[2]]
            weights[f"{match[1]}{old}{match[3]}"] = weights.pop(key)
    return weights


@pytest.mark.parametrize("call", DEFAULTS)
def test_names_and_shapes_at_the_documented_sizes(golden, call):
    recorded = json.loads((golden("vit_union_a").folder.parent / "state_dict_keys.json").read_text())
    entry = recorded[call]
    keys = {**recorded[entry["same_as"]]["keys"], **entry["except"]} if "same_as" in entry else entry["keys"]
    codec = DEFAULTS[call]()
    before = {key: (spec.get("shape_before_update", spec["shape"]), spec["dtype"]) for key, spec in keys.items()}
    assert facts(codec.state_dict()) == before
    if "parameters" in entry:
        assert sum(p.numel() for p in codec.parameters()) == entry["parameters"]
        assert len(codec.state_dict()) == entry["entries"]


@pytest.mark.parametrize("name", ["vit_union_b", "vit_union_ctx", "feature_scale_hyperprior"])
def test_both_namings_load_and_the_callers_dict_is_left_alone(golden, name):
    folder = golden(name)
    weights = old_names(folder.weights())
    before = list(weights)
    codec = folder.model()
    expected = {key: value.clone() for key, value in codec.state_dict().items()}
    with torch.no_grad():
        for parameter in codec.parameters():
            parameter.zero_()
    codec.load_state_dict(weights)
    assert list(weights) == before
    assert any("_matrix0" in key for key in before)
    for key, value in codec.state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize("rename", [dict, old_names])
def test_from_state_dict_finds_the_size(golden, rename):
    folder = golden("feature_scale_hyperprior")
    codec = FeatureScaleHyperprior.from_state_dict(rename(folder.weights()))
    assert folder.config["from_state_dict"] == {"N": codec.N, "M": codec.M}
    case = folder.case("b1_64x64")
    assert codec.eval().compress(case["x"])["strings"] == case.strings


def test_from_state_dict_of_something_else_says_what_is_missing():
    with pytest.raises(ValueError, match=r"g_a\.6\.weight"):
        FeatureScaleHyperprior.from_state_dict({"g_a.0.weight": torch.zeros(8, 1, 5, 5)})


def test_a_codec_inside_another_module_loads_through_it(golden):
    folder = golden("vit_union_b")
    outer = nn.ModuleDict({"codec": VitUnionLatentCodec(**folder.config["kwargs"])})
    outer.load_state_dict({f"codec.{key}": value for key, value in old_names(folder.weights()).items()})
    case = folder.case("b1_9x7")
    assert outer.eval()["codec"].compress(case["h"], (9, 7))["strings"] == case.strings


def test_an_untrained_state_empties_the_tables(golden):
    codec = golden("feature_scale_hyperprior").model()
    codec.load_state_dict(FeatureScaleHyperprior(16, 24).state_dict())
    with pytest.raises(RuntimeError, match=r"update\(\)"):
        codec.compress(torch.rand(1, 1, 64, 64))


def test_missing_and_unexpected_keys_are_reported(golden):
    folder = golden("vit_union_b")
    weights = folder.weights()
    del weights["f_a.0.bias"]
    with pytest.raises(RuntimeError, match=r"f_a\.0\.bias"):
        folder.model().load_state_dict(weights)
    result = folder.model().load_state_dict({**weights, "other": torch.zeros(1)}, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["f_a.0.bias"], ["other"])


def test_tables_of_a_damaged_checkpoint_are_refused(golden):
    folder = golden("vit_union_b")
    weights = folder.weights()
    weights["hyper_lc.entropy_bottleneck._quantized_cdf"][0, 1] = 70000
    codec = folder.model()
    codec.load_state_dict(weights)
    with pytest.raises(ValueError, match="cdf"):
        codec.compress(folder.case("b1_9x7")["h"], (9, 7))
