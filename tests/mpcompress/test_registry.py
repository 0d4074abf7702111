from importlib import import_module
from pathlib import Path

import pytest

import mpcompress
from mpcompress import registry
from mpcompress.codec import FeatureCodec
from mpcompress.errors import CodecFileError, CodecUnavailableError, UnknownCodecError
from mpcompress.registry import CodecSpec, families, load, preset, preset_ids, register_family

ROOT = Path(mpcompress.__file__).parent


def test_every_module_with_a_loader_is_registered():
    # Plug-ins of other tests may have registered in this process.
    registered = {loader for loader in registry._FAMILIES.values() if str(loader).startswith("mpcompress.")}
    written = set()
    for path in ROOT.rglob("*.py"):
        if path.name != "registry.py" and "def load(spec: CodecSpec)" in path.read_text(encoding="utf-8"):
            module = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
            written.add(f"{module}:load")
    assert written == registered


def test_every_family_has_a_preset_or_is_a_plug_in():
    assert {preset(codec_id).family for codec_id in preset_ids()} <= set(families())
    assert "klt" in {preset(codec_id).family for codec_id in preset_ids()}


@pytest.mark.parametrize("codec_id", preset_ids())
def test_every_preset_loads_or_says_why_it_cannot_here(codec_id):
    spec = preset(codec_id)
    try:
        codec = load(spec)
    except CodecUnavailableError as error:
        pytest.skip(error.message)
    assert isinstance(codec, FeatureCodec)
    assert codec.id == codec_id
    assert codec.family == spec.family
    assert len(codec.fingerprint) == 8
    assert codec.description
    assert codec.fingerprint == load(spec).fingerprint


def test_calibrated_presets_are_listed_with_card_and_weights():
    calibrated = [codec_id for codec_id in preset_ids() if preset(codec_id).family == "klt"]
    taps = ["imgfocus-vits14-block6", "imgfocus-vits14-final", "minilm-l3", "minilm-last"]
    assert calibrated == [f"klt-{tap}" for tap in taps]
    weights = {path.stem for path in (ROOT / "weights").glob("*.safetensors")}
    cards = {path.stem for path in (ROOT / "weights").glob("*.md")}
    assert set(calibrated) <= weights
    assert weights <= cards
    for codec_id in calibrated:
        card = (ROOT / "weights" / f"{codec_id}.md").read_text(encoding="utf-8")
        assert load(preset(codec_id)).fingerprint.hex() in card
        for heading in ("**Licence**", "**Not for**", "**Made with**", "**Calibrated on**", "bpfp, worst", "±"):
            assert heading in card


def test_duplicate_families_and_unknown_ones_are_refused():
    with pytest.raises(ValueError, match="already registered"):
        register_family("klt", "mpcompress.transforms.klt_codec:load")
    with pytest.raises(CodecFileError, match=r"unknown family 'nope'; known: .*klt"):
        CodecSpec(id="a", family="nope")


@pytest.mark.parametrize("codec_id", ["", "A", "a b", "-a", "a" * 65, "a/b", "a\n"])
def test_bad_ids_are_refused(codec_id):
    with pytest.raises(CodecFileError):
        CodecSpec(id=codec_id, family="klt")
    with pytest.raises(UnknownCodecError):
        preset(codec_id)


def test_a_family_from_outside_loads(monkeypatch):
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    made = load(preset("klt-imgfocus-vits14-final"))
    register_family("mine", lambda spec: made)
    assert load(CodecSpec(id="mine-1", family="mine")) is made
    register_family("mine-too", "mpcompress.transforms.klt_codec:load")
    with pytest.raises(CodecFileError, match="needs weights"):
        load(CodecSpec(id="mine-2", family="mine-too"))


def test_missing_and_foreign_weights_are_refused(tmp_path):
    with pytest.raises(CodecFileError, match="no such file"):
        load(CodecSpec(id="x", family="klt", weights=str(tmp_path / "none.safetensors")))
    with pytest.raises(CodecFileError, match="is that of codec klt-imgfocus-vits14-final"):
        load(CodecSpec(id="x", family="klt", weights="package:klt-imgfocus-vits14-final.safetensors"))


def test_loaders_import_lazily():
    assert import_module("mpcompress.registry")._FAMILIES["klt"] == "mpcompress.transforms.klt_codec:load"
