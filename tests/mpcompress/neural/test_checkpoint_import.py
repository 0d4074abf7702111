"""Checkpoints as training scripts leave them, and files that only look like them."""

import json
import pickle

import pytest
import torch

from mpcompress.checkpoints import import_checkpoint
from mpcompress.errors import CodecFileError
from mpcompress.latent_codecs import FeatureScaleHyperprior, VitUnionLatentCodec, VitUnionLatentCodecWithCtx
from mpcompress.registry import CodecSpec, load

SIZES = {"h_dim": 64, "y_dim": 16, "z_dim": 8, "groups": [4, 12]}
_OLD = {"matrices.": "_matrix", "biases.": "_bias", "factors.": "_factor"}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    codec = VitUnionLatentCodec(**SIZES, num_prefix_tokens=3)
    codec.update()
    return codec


def old_names(state):
    renamed = {}
    for name, tensor in state.items():
        for new, old in _OLD.items():
            name = name.replace(f"entropy_bottleneck.{new}", f"entropy_bottleneck.{old}")
        renamed[name] = tensor
    return renamed


VARIANTS = {
    "bare": lambda state: state,
    "parallel": lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
    "wrapped": lambda state: {"epoch": 3, "loss": 0.5, "state_dict": state, "optimizer": {"lr": 1e-4}},
    "twice": lambda state: {"model": {"state_dict": {f"module.{name}": t for name, t in state.items()}}},
    "old names": old_names,
    "double": lambda state: {name: t.double() if t.is_floating_point() else t.long() for name, t in state.items()},
    "no buffers": lambda state: {name: t for name, t in state.items() if "_cdf" not in name and "_offset" not in name},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_codec_of_every_kind_of_checkpoint(net, tmp_path, variant):
    path, output = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save(VARIANTS[variant](dict(net.state_dict())), path)
    imported = import_checkpoint(path, codec_id="a", token_res=(4, 4), prefix_tokens=3)
    assert imported.class_name == "VitUnionLatentCodec"
    assert dict(imported.file.sizes) == {**SIZES, "num_prefix_tokens": 3}
    assert imported.computed_tables == (variant == "no buffers")
    output.write_bytes(imported.file.to_bytes())
    codec = load(CodecSpec(id="a", family="vit_union", weights=str(output)))
    assert (codec.token_res, codec.prefix_tokens, codec.trained) == ((4, 4), 3, True)
    for name, tensor in net.state_dict().items():
        assert torch.equal(torch.from_numpy(imported.file.tensors[name]), tensor), name
    assert 'family = "vit_union"' in imported.config_entry(output)


def test_a_codec_inside_a_larger_model(net, tmp_path):
    state = {f"codec.{name}": tensor for name, tensor in net.state_dict().items()}
    torch.save({"state_dict": {**state, "head.weight": torch.zeros(3)}}, tmp_path / "a.pth")
    assert import_checkpoint(tmp_path / "a.pth", codec_id="a", prefix="codec").class_name == "VitUnionLatentCodec"
    with pytest.raises(CodecFileError, match="none of"):
        import_checkpoint(tmp_path / "a.pth", codec_id="a")
    with pytest.raises(CodecFileError, match="no tensors under 'other'"):
        import_checkpoint(tmp_path / "a.pth", codec_id="a", prefix="other")


def test_classes_are_told_apart(tmp_path):
    cases = {
        "vit_union_ctx": VitUnionLatentCodecWithCtx(**SIZES, ctx_dim=8),
        "feature_hyperprior": FeatureScaleHyperprior(8, 12),
    }
    for family, codec in cases.items():
        torch.save(codec.state_dict(), tmp_path / "a.pth")
        imported = import_checkpoint(tmp_path / "a.pth", codec_id="a")
        assert (imported.file.family, imported.computed_tables) == (family, True)
    settings = import_checkpoint(tmp_path / "a.pth", codec_id="a", condition="dinov2-seg").file.settings
    assert settings == {"model_type": "dinov2", "trun_low": [-5.0], "trun_high": [5.0]}
    with pytest.raises(CodecFileError, match="dinov2-cls"):
        import_checkpoint(tmp_path / "a.pth", codec_id="a", condition="dinov9")


class Malicious:
    def __reduce__(self):
        return pytest.fail, ("the checkpoint ran code",)


BAD = {
    "object": lambda state: {"state_dict": state, "config": Malicious()},
    "missing": lambda state: {name: t for name, t in state.items() if name != "f_s.0.bias"},
    "unknown": lambda state: {**state, "surplus": torch.zeros(2)},
    "shape": lambda state: {**state, "f_s.0.bias": torch.zeros(5)},
    "nan": lambda state: {**state, "f_s.0.bias": torch.full((16,), torch.nan)},
    "nothing": lambda state: {"epoch": 1},
    "list": lambda state: [1, 2, 3],
    "half told": lambda state: {name: t for name, t in state.items() if "f_a.2" not in name},
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_checkpoint_of_ours_is_refused(net, tmp_path, kind):
    torch.save(BAD[kind](dict(net.state_dict())), tmp_path / "a.pth")
    with pytest.raises(CodecFileError) as caught:
        import_checkpoint(tmp_path / "a.pth", codec_id="a")
    assert "\n" not in caught.value.message


def test_other_files_are_refused(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    for name, data in {
        "empty.pth": b"",
        "text.pth": b"not a checkpoint",
        "pickle.pth": pickle.dumps(Malicious()),
        "cut.pth": whole[: len(whole) // 2],
        "text.safetensors": b"not a checkpoint either",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CodecFileError, match=name):
            import_checkpoint(tmp_path / name, codec_id="a")
    with pytest.raises(CodecFileError, match="prefix tokens"):
        import_checkpoint(tmp_path / "whole.pth", codec_id="a", prefix_tokens=1)
    with pytest.raises(CodecFileError, match="codec id"):
        import_checkpoint(tmp_path / "whole.pth", codec_id="No Id")
    with pytest.raises(CodecFileError, match=r"absent\.pth"):
        import_checkpoint(tmp_path / "absent.pth", codec_id="a")


def test_the_command_says_what_it_found_or_why_not(net, tmp_path, capsys):
    from mpcompress_client.cli import run

    torch.save({"state_dict": net.state_dict()}, tmp_path / "a.pth")
    output = tmp_path / "My Codec.safetensors"
    assert run(["import-checkpoint", str(tmp_path / "a.pth"), "-o", str(output), "--grid", "4", "4", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["id"], facts["family"], facts["class"]) == ("my-codec", "vit_union", "VitUnionLatentCodec")
    assert load(CodecSpec(id="my-codec", family="vit_union", weights=str(output))).token_res == (4, 4)
    torch.save([1, 2], tmp_path / "b.pth")
    assert run(["import-checkpoint", str(tmp_path / "b.pth"), "-o", str(tmp_path / "b.safetensors")]) == 1
    assert capsys.readouterr().err.startswith("mpcompress: b.pth")
    assert not (tmp_path / "b.safetensors").exists()
