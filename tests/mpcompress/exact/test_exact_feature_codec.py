"""The exact families behind the contract of a codec, and the way from a checkpoint to a unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact_settings import features, small_codec

from mpcompress.checkpoints import import_checkpoint, numpy_state
from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec, Unit
from mpcompress.errors import CodecFileError, CodecMismatchError, CorruptBitstreamError
from mpcompress.registry import CodecSpec, load
from mpcompress_client.cli import run

GRID = (6, 5)
FAMILIES = ["vit_union_exact", "vit_union_ctx_exact"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Codec files made of checkpoints."""
    folder = tmp_path_factory.mktemp("exact")
    made = {}
    for family in FAMILIES:
        codec = small_codec(ctx="ctx" in family)
        torch.save({"state_dict": codec.state_dict()}, folder / f"{family}.pth")
        imported = import_checkpoint(folder / f"{family}.pth", codec_id="c", token_res=GRID, exact=True)
        assert imported.file.family == family
        made[family] = folder / f"{family}.safetensors"
        made[family].write_bytes(imported.file.to_bytes())
    return made


@pytest.fixture(scope="module")
def codecs(files: dict[str, Path]) -> dict[str, FeatureCodec]:
    return {family: load(CodecSpec(id="c", family=family, weights=str(path))) for family, path in files.items()}


def item_of(codec: Any, batch: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    tensors = features(codec._net, GRID, max(batch, 1), seed)
    arrays = [tensor.numpy() if batch else tensor[0].numpy() for tensor in tensors]
    return dict(zip(("h", "ctx"), arrays, strict=False))


def unit_of(codec: FeatureCodec, item: dict[str, np.ndarray]) -> Unit:
    spec = TensorSpec(name="h", dtype="float32", shape=item["h"].shape)
    specs = [TensorSpec(name=name, dtype="float32", shape=array.shape) for name, array in item.items()]
    (coded,) = codec.compress([item], codec.resolve(specs, CodingParams()))
    context = {name: array for name, array in item.items() if name != "h"}
    return Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,), ctx_hash=coded.ctx_hash, context=context)


@pytest.mark.parametrize("family", FAMILIES)
def test_units_hold_one_stream_per_sample(codecs: dict[str, FeatureCodec], family: str) -> None:
    codec = codecs[family]
    assert codec.arithmetic == "exact"
    assert codec.pstate_kind == "vit_union"
    codec.warm_up()
    for batch in (0, 3):
        item = item_of(codec, batch)
        unit = unit_of(codec, item)
        assert len(unit.strings) == max(batch, 1)
        specs = codec.check_unit(unit)
        (found,) = codec.decompress([unit])
        assert {spec.name: spec.shape for spec in specs} == {name: array.shape for name, array in found.items()}
        assert found["h_hat"].shape == item["h"].shape


@pytest.mark.parametrize("family", FAMILIES)
def test_units_decode_together_as_alone(codecs: dict[str, FeatureCodec], family: str) -> None:
    codec = codecs[family]
    units = [unit_of(codec, item_of(codec, seed=seed)) for seed in range(3)]
    together = codec.decompress(units)
    for unit, found in zip(units, together, strict=True):
        (alone,) = codec.decompress([unit])
        np.testing.assert_allclose(found["h_hat"], alone["h_hat"], atol=1e-4)


def test_a_context_is_known_by_its_integers(codecs: dict[str, FeatureCodec]) -> None:
    codec = codecs["vit_union_ctx_exact"]
    item = item_of(codec)
    unit = unit_of(codec, item)
    rounded = np.clip(np.round(item["ctx"] * 256), -32639, 32639).astype(np.float32) / 256
    codec.decompress([Unit(**{**vars(unit), "context": {"ctx": rounded}})])
    with pytest.raises(CodecMismatchError):
        codec.decompress([Unit(**{**vars(unit), "context": {"ctx": item["ctx"] + 0.01}})])


@pytest.mark.parametrize("family", FAMILIES)
def test_damaged_units_are_refused(codecs: dict[str, FeatureCodec], family: str) -> None:
    codec = codecs[family]
    unit = unit_of(codec, item_of(codec))
    (string,) = unit.strings
    for damaged in ([], [string, string], [string + bytes(1 << 20)]):
        with pytest.raises(CorruptBitstreamError):
            codec.check_unit(Unit(**{**vars(unit), "strings": damaged}))
    flipped = string[:9] + bytes([string[9] ^ 4]) + string[10:]
    with pytest.raises(CorruptBitstreamError):
        codec.decompress([Unit(**{**vars(unit), "strings": [flipped]})])


def test_the_fingerprint_is_of_what_decoding_needs(files: dict[str, Path]) -> None:
    def fingerprint(change: str) -> bytes:
        codec: Any = load(CodecSpec(id="c", family="vit_union_ctx_exact", weights=str(files["vit_union_ctx_exact"])))
        state = codec._net.state_dict()
        with torch.no_grad():
            if change:
                state[change].view(-1)[0] += 1
        from mpcompress.neural.base import Loaded
        from mpcompress.neural.exact_vit_union import ExactVitUnionFeatureCodec
        from mpcompress.neural.networks import NETWORKS

        network = NETWORKS["vit_union_ctx_exact"]
        device = torch.device("cpu")
        loaded = Loaded(id="c", network=network, module=codec._net, device=device, description="")
        return ExactVitUnionFeatureCodec(loaded).fingerprint

    same = fingerprint("")
    for name in ("net.f_a.0.weight", "h_a.h_a.0.weight", "net.cond_enc.0.weight", "net.f_ctx_down.weight"):
        assert fingerprint(name) == same
    for name in ("net.f_s.0.weight", "exact.medians", "exact.y.0.spatial.bias", "net.cond_dec.0.weight"):
        assert fingerprint(name) != same


def test_an_untrained_codec_and_its_file_again(tmp_path: Path) -> None:
    options = {"h_dim": 64, "y_dim": 8, "z_dim": 8, "groups": 4, "seed": 3, "token_res": [6, 5]}
    codec: Any = load(CodecSpec(id="u", family="vit_union_exact", options=options))
    assert not codec.trained
    unit = unit_of(codec, item_of(codec))
    path = tmp_path / "state.safetensors"
    from safetensors.numpy import save_file

    save_file(numpy_state(codec._net.state_dict()), path)
    again = import_checkpoint(path, codec_id="u", token_res=GRID)
    (tmp_path / "u.safetensors").write_bytes(again.file.to_bytes())
    loaded = load(CodecSpec(id="u", family="vit_union_exact", weights=str(tmp_path / "u.safetensors")))
    assert loaded.fingerprint == codec.fingerprint
    loaded.decompress([unit])


def test_the_command_line_converts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(small_codec().state_dict(), tmp_path / "vit.pth")
    arguments = ["import-checkpoint", str(tmp_path / "vit.pth"), "-o", str(tmp_path / "vit.safetensors"), "--exact"]
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "vit_union_exact"
    codec = load(CodecSpec(id="vit", family="vit_union_exact", weights=str(tmp_path / "vit.safetensors")))
    assert codec.arithmetic == "exact"


def test_only_vit_codecs_have_an_exact_form(tmp_path: Path) -> None:
    from mpcompress.neural.networks import NETWORKS, untrained

    net = untrained(NETWORKS["feature_hyperprior"], {"N": 8, "M": 8}, 0)
    torch.save(net.state_dict(), tmp_path / "hyper.pth")
    with pytest.raises(CodecFileError, match="exact form"):
        import_checkpoint(tmp_path / "hyper.pth", codec_id="h", exact=True)
