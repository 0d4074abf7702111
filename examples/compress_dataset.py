"""A folder of features becomes a folder of .mpc files, and a data set that decompresses what is asked for.

    mpcompress-server serve &
    python examples/compress_dataset.py features/ units/

Items travel over one stream, a few ahead of the results; a second call does only what is left. From the command line
`mpcompress compress features/ -o units/ --codec ID --resume` does the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mpcompress_client import CodedUnit, CompressionClient, MPCompressError


class CodedFeatures:
    """The features of a folder of .mpc files, by index; usable as a map-style data set of torch.

    Args:
        folder: where the .mpc files are.
        client: decompresses them.
    """

    def __init__(self, folder: Path, client: CompressionClient) -> None:
        self._paths = sorted(folder.glob("*.mpc"))
        self._client = client

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        decoded = self._client.decompress(self._paths[index])
        assert isinstance(decoded, np.ndarray)  # this codec gives one tensor
        return decoded


def compress_folder(client: CompressionClient, source: Path, into: Path, codec: str, qp: float) -> tuple[int, int, int]:
    """Compresses every .npy file of a folder that has no unit yet; gives files done, bytes before and after."""
    sent: deque[Path] = deque()

    def features() -> Iterator[np.ndarray]:
        for path in sorted(source.glob("*.npy")):
            if not (into / f"{path.stem}.mpc").exists():
                sent.append(path)
                yield np.load(path, mmap_mode="r")

    done, before, after = 0, 0, 0
    for outcome in client.compress_many(features(), codec=codec, qp=qp, errors="return"):
        path = sent.popleft()
        if isinstance(outcome, MPCompressError):
            print(f"{path}: {outcome}", file=sys.stderr)
            continue
        assert isinstance(outcome, CodedUnit)
        outcome.save(into / f"{path.stem}.mpc")
        done, before, after = done + 1, before + path.stat().st_size, after + len(outcome.to_bytes())
    return done, before, after


def main() -> None:
    """Compresses the folder and reads one item back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("into", type=Path)
    parser.add_argument("--target", default=os.environ.get("MPCOMPRESS_TARGET", "127.0.0.1:50051"))
    parser.add_argument("--codec", default="klt-imgfocus-vits14-final")
    parser.add_argument("--qp", type=float, default=24)
    args = parser.parse_args()

    args.into.mkdir(exist_ok=True)
    with CompressionClient(args.target) as client:
        done, before, after = compress_folder(client, args.source, args.into, args.codec, args.qp)
        print(f"{done} files: {before} -> {after} bytes")
        coded = CodedFeatures(args.into, client)
        first = coded[0]
        print(f"{len(coded)} items; the first is {first.dtype} {first.shape}")


if __name__ == "__main__":
    main()
