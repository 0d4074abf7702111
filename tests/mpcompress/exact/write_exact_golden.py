"""Write golden/: a small exact codec with context and a stream of it. Only a new bitstream version gives a reason to.

python tests/mpcompress/exact/write_exact_golden.py
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from exact_settings import features, small_codec

from mpcompress.checkpoints import numpy_state
from mpcompress.exact.convert import exact_from
from mpcompress.latent_codecs._vit_base import VitGeometry
from mpcompress.neural.codec_file import NeuralFile

GOLDEN = Path(__file__).parent / "golden"
GRID = (9, 12)
SIZES = {"h_dim": 16, "y_dim": 8, "z_dim": 6, "groups": [2, 6], "num_prefix_tokens": 1}


def main() -> None:
    """Write both files."""
    codec = small_codec(ctx=True, seed=11, **SIZES)
    codec.update(torch.logspace(-0.9, 0.9, 12), force=True)
    exact = exact_from(codec)
    h, ctx = features(codec, GRID, seed=12)
    out = exact.compress(h, ctx, token_res=GRID)
    integers = exact.quantise_ctx(ctx)
    y_hat = exact._decode(out["strings"], (integers,), VitGeometry(token_res=GRID))
    file = NeuralFile(
        id="golden",
        family="vit_union_ctx_exact",
        description="random weights",
        sizes={**SIZES, "ctx_dim": 16},
        tensors=numpy_state(exact.state_dict()),
        trained=False,
    )
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "codec.safetensors").write_bytes(file.to_bytes())
    facts = {
        "token_res": GRID,
        "stream": out["strings"][0].hex(),
        "ctx": integers[0].flatten().tolist(),
        "y_hat_sha256": hashlib.sha256(y_hat.numpy().astype("<i8").tobytes()).hexdigest(),
    }
    (GOLDEN / "unit.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
