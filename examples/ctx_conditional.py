"""Coding with a context: the receiver already has something that tells it much about the features.

    python examples/ctx_conditional.py --write-config server.toml
    mpcompress-server serve --config server.toml --allow-untrained &
    python examples/ctx_conditional.py

A context codec compresses `h` given `ctx`, for instance a generative model's latents that both ends have, and gives
`h_hat` besides `h_hat_share`, its part that comes of the coded bits. The context never travels with the unit: who
decompresses brings it, and another one is refused rather than decoded to noise.

The codec here has RANDOM weights (`vit_union_ctx`, untrained), so that the example runs at once: how to call it is
real, its rate and quality mean nothing. Server and codec need torch: pip install 'mpcompress[server,codecs]'.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from mpcompress_client import CodecMismatchError, CompressionClient

FEATURES = Path(__file__).resolve().parents[1] / "tests" / "data" / "features_final.npy"
CODEC = "untrained-ctx"
CHANNELS, CTX_CHANNELS, GRID = 64, 8, (16, 16)
CONFIG = f"""\
[[codecs]]
id = "{CODEC}"
family = "vit_union_ctx"

[codecs.options]
h_dim = {CHANNELS}
y_dim = 16
z_dim = 8
ctx_dim = {CTX_CHANNELS}
groups = 8
num_prefix_tokens = 1
seed = 3
"""


def main() -> None:
    """Compresses one tensor given a context, and decompresses it with the right and with a wrong one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=os.environ.get("MPCOMPRESS_TARGET", "127.0.0.1:50051"))
    parser.add_argument("--write-config", type=Path, help="write the server's configuration and end")
    args = parser.parse_args()
    if args.write_config:
        args.write_config.write_text(CONFIG)
        return

    h = np.ascontiguousarray(np.load(FEATURES)[:1, :, :CHANNELS])  # (1, 1 + 16 * 16, 64)
    rng = np.random.default_rng(0)
    ctx = rng.standard_normal((1, CTX_CHANNELS, *GRID)).astype(np.float32)
    with CompressionClient(args.target) as client:
        unit = client.compress({"h": h, "ctx": ctx}, codec=CODEC, token_res=GRID)
        print(f"h {h.shape} given ctx {ctx.shape}: {len(unit.to_bytes())} bytes, context {unit.header.ctx_hash.hex()}")
        for name, array in client.decompress(unit, ctx=ctx).items():
            print(f"  {name}: {array.dtype} {array.shape}")
        try:
            client.decompress(unit, ctx=ctx + 1)
        except CodecMismatchError as error:
            print(f"with another context: {error}")


if __name__ == "__main__":
    main()
