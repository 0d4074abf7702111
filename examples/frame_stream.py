"""Features of a stream of frames: coded while they come, decoded while later ones are still on their way.

    mpcompress-server serve &
    python examples/frame_stream.py --frames 60

frames ──► compress_many ──► units ──► decompress_many ──► features again, in order

Each of the two calls is one stream of the server; both look a few items ahead, so coding, the network and decoding
overlap, and memory stays bounded however long the stream is. The frames are made of the real features of tests/data,
one fading into the next, as those of a slow camera would; each is coded by itself.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpcompress_client import CodedUnit, CompressionClient

FEATURES = Path(__file__).resolve().parents[1] / "tests" / "data" / "features_final.npy"
CODEC = "klt-imgfocus-vits14-final"


def camera(frames: int) -> Iterator[np.ndarray]:
    """Features of each frame, (257, 384) float16."""
    pictures = np.load(FEATURES).astype(np.float32)
    for frame in range(frames):
        position = frame * (len(pictures) - 1) / max(1, frames - 1)
        index = min(int(position), len(pictures) - 2)
        share = position - index
        yield ((1 - share) * pictures[index] + share * pictures[index + 1]).astype(np.float16)


def main() -> None:
    """Codes the stream there and back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=os.environ.get("MPCOMPRESS_TARGET", "127.0.0.1:50051"))
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--fps", type=float, default=10, help="to say what bit rate that is")
    parser.add_argument("--qp", type=float, default=24)
    args = parser.parse_args()

    sizes: list[int] = []
    with CompressionClient(args.target) as client:

        def units() -> Iterator[CodedUnit]:
            for unit in client.compress_many(camera(args.frames), codec=CODEC, qp=args.qp, look_ahead=8):
                sizes.append(len(unit.to_bytes()))
                yield unit

        worst = 0.0
        for frame, (h, h_hat) in enumerate(
            zip(camera(args.frames), client.decompress_many(units(), look_ahead=8), strict=True)
        ):
            error = h.astype(np.float32) - h_hat
            worst = max(worst, float(np.mean(np.square(error)) / np.var(h.astype(np.float32))))
            if frame % 10 == 0:
                print(f"frame {frame}: {h.nbytes} -> {sizes[frame]} bytes")
    rate = 8 * sum(sizes) / len(sizes) * args.fps / 1000
    print(f"{len(sizes)} frames, {rate:.0f} kbit/s at {args.fps:g} frames per second, worst NMSE {worst:.4f}")


if __name__ == "__main__":
    main()
