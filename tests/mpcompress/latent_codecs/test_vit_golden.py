"""Units and checkpoints of the documented ViT codecs: byte for byte one way, within tolerance the other."""

import hashlib

import pytest
import torch

CASES = [
    ("vit_union_a", "b1_16x16"),
    ("vit_union_a", "b1_9x7"),
    ("vit_union_a", "b2_8x8"),
    ("vit_union_b", "b1_16x16"),
    ("vit_union_b", "b1_9x7"),
    ("vit_union_b", "b3_8x8"),
    ("vit_union_ctx", "b1_16x16"),
    ("vit_union_ctx", "b1_8x16"),
    ("vit_union_ctx", "b2_8x8"),
]
MODELS = ["vit_union_a", "vit_union_b", "vit_union_ctx"]


@pytest.fixture(scope="module")
def models(golden):
    return {name: golden(name).model() for name in MODELS}


def expected(case):
    return case["h_hat_crop_after"] if "h_hat_crop_after" in case.arrays else case["h_hat"]


@pytest.mark.parametrize("name", MODELS)
def test_every_case_of_the_folder_is_tested(golden, name):
    assert sorted(golden(name).config["cases"]) == sorted(case for model, case in CASES if model == name)


@pytest.mark.parametrize(("name", "case_name"), CASES)
def test_compress_gives_the_strings_byte_for_byte(golden, models, name, case_name):
    case = golden(name).case(case_name)
    out = models[name].compress(case["h"], *case.ctx, tuple(case["token_res"]))
    assert out["strings"] == case.strings
    flat = [string for key in sorted(out["strings"]) for row in out["strings"][key] for string in row]
    assert hashlib.sha256(b"".join(flat)).hexdigest() == case["strings_sha256"]
    pstate = out["pstate"]
    assert set(pstate) == set(case["pstate"])
    assert [list(shape) for shape in pstate["y_shape"]] == case["pstate"]["y_shape"]
    for key in set(pstate) - {"y_shape"}:
        assert list(pstate[key]) == case["pstate"][key]
    assert all(isinstance(shape, torch.Size) for shape in [*pstate["y_shape"], pstate["z_shape"]])
    assert type(pstate["token_res"]) is tuple


@pytest.mark.parametrize(("name", "case_name"), CASES)
def test_decompress_gives_the_features(golden, models, name, case_name):
    case = golden(name).case(case_name)
    out = models[name].decompress(case.strings, case["pstate"], *case.ctx)
    torch.testing.assert_close(out["h_hat"], expected(case), atol=1e-4, rtol=0)
    if case.ctx:
        torch.testing.assert_close(out["h_hat_share"], case["h_hat_share"], atol=2e-5, rtol=0)
    assert set(out) == ({"h_hat", "h_hat_share"} if case.ctx else {"h_hat"})


@pytest.mark.parametrize(("name", "case_name"), CASES)
def test_latents_are_the_recorded_ones(golden, models, name, case_name):
    case, model, seen = golden(name).case(case_name), models[name], {"y": [], "y_hat": []}

    def remember(module, args, output):
        seen["y"].append(output)

    hooks = [
        model.f_a.register_forward_hook(remember),
        model.f_s.register_forward_pre_hook(lambda module, args: seen["y_hat"].append(args[0])),
    ]
    try:
        model.compress(case["h"], *case.ctx, case["token_res"])
        model.decompress(case.strings, case["pstate"], *case.ctx)
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(torch.cat(seen["y"]), case["y"], atol=2e-5, rtol=0)
    torch.testing.assert_close(torch.cat(seen["y_hat"]), case["y_hat"], atol=2e-5, rtol=0)


@pytest.mark.parametrize(("name", "case_name"), CASES)
def test_eval_forward_equals_coding(golden, models, name, case_name):
    case = golden(name).case(case_name)
    with torch.no_grad():
        out = models[name](case["h"], *case.ctx, case["token_res"])
    decoded = models[name].decompress(case.strings, case["pstate"], *case.ctx)
    torch.testing.assert_close(out["h_hat"], decoded["h_hat"], atol=1e-4, rtol=0)
    torch.testing.assert_close(out["h_hat"], expected(case), atol=1e-4, rtol=0)
    for key in ("y", "z"):
        if f"lik_{key}" in case.arrays:
            torch.testing.assert_close(out["likelihoods"][key], case[f"lik_{key}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_update_computes_the_stored_tables(golden, models, name):
    model, stored = models[name], golden(name).weights()
    assert not model.update()
    assert model.update(force=True)
    state = model.state_dict()
    tables = [key for key in stored if key.rpartition(".")[2] in ("_quantized_cdf", "_cdf_length", "_offset")]
    assert len(tables) == 3 * (len(model.groups) + 1)
    assert set(state) == set(stored)
    for key in [*tables, *(key for key in stored if key.endswith("scale_table"))]:
        assert torch.equal(state[key], stored[key]), key


@pytest.mark.parametrize(("name", "case_name"), [("vit_union_a", "b1_9x7"), ("vit_union_b", "b1_9x7")])
def test_without_token_res_the_grid_is_twice_that_of_y(golden, models, name, case_name):
    case = golden(name).case(case_name)
    pstate = {key: value for key, value in case["pstate"].items() if key in ("y_shape", "z_shape")}
    h_hat = models[name].decompress(case.strings, pstate)["h_hat"]
    torch.testing.assert_close(h_hat, case["h_hat"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", MODELS)
def test_no_string_passes_through_compressais_coder(golden, monkeypatch, name):
    import compressai.ans

    class Forbidden:
        def __getattr__(self, attribute):
            raise AssertionError(f"compressai.ans.{attribute} was used")

    monkeypatch.setattr(compressai.ans, "RansEncoder", Forbidden)
    monkeypatch.setattr(compressai.ans, "RansDecoder", Forbidden)
    folder = golden(name)
    model = folder.model()  # its entropy models take their coder now
    case = folder.case("b1_16x16")
    out = model.compress(case["h"], *case.ctx, case["token_res"])
    model.decompress(out["strings"], out["pstate"], *case.ctx)
    with pytest.raises(AssertionError, match="was used"):
        model.hyper_lc.entropy_bottleneck.entropy_coder.encode_with_indexes()
