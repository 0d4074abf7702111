"""A recorded stream keeps its meaning: the format of the exact families is frozen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from exact_settings import SETTINGS, Setting

from mpcompress.latent_codecs._vit_base import VitGeometry
from mpcompress.registry import CodecSpec, load

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("setting", SETTINGS[::2], ids=str)
def test_the_recorded_stream_decodes(setting: Setting) -> None:
    facts = json.loads((GOLDEN / "unit.json").read_text())
    weights = str(GOLDEN / "codec.safetensors")
    codec = load(CodecSpec(id="golden", family="vit_union_ctx_exact", weights=weights))._net
    height, width = facts["token_res"]
    ctx = torch.tensor(facts["ctx"], dtype=torch.int16).view(1, codec.ctx_dim, height, width)
    with setting.applied(codec):
        y_hat = codec._decode([bytes.fromhex(facts["stream"])], (ctx,), VitGeometry(token_res=(height, width)))
    assert hashlib.sha256(y_hat.numpy().astype("<i8").tobytes()).hexdigest() == facts["y_hat_sha256"]
