"""Make calibration features from the photographs that scikit-image and scikit-learn carry in their wheels.

    pip download --no-deps scikit-image==0.25.2 scikit-learn==1.9.1 && unzip ... into PICTURES
    python benchmarks/extract_photos.py --pictures PICTURES --out features --count 400

writes features/{block6,final}/photos/NNNN.npy, float16 (257, 384), of random crops with changed brightness, contrast
and colour. Only pictures whose licence is stated, and permits it, are used: of scikit-image's, `motorcycle`, `moon` and
`page` are left out, for which its documentation states none. The packages need not be installed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance
from rich.progress import track

from benchmarks.tap_files import save_taps
from demo.split_model import DEFAULT_CACHE, TwoTaps

PHOTOS = {
    # scikit-image: what the docstrings of skimage/data/_fetchers.py say.
    "astronaut.png": (4, "public domain, NASA"),
    "camera.png": (4, "CC0, Lav Varshney"),
    "chelsea.png": (5, "CC0, Stefan van der Walt"),
    "coffee.png": (5, "CC0, Rachel Michetti"),
    "rocket.jpg": (4, "public domain, SpaceX"),
    "hubble_deep_field.jpg": (3, "public domain, NASA"),
    "retina.jpg": (2, "CC0, Mikael Haggstrom"),
    "ihc.png": (2, "no known copyright restrictions, CMMI"),
    "brick.png": (2, "CC0, CC0Textures"),
    "grass.png": (2, "CC0, linolafett"),
    "gravel.png": (2, "CC0, CC0Textures"),
    "coins.png": (3, "no known copyright restrictions, Brooklyn Museum"),
    "text.png": (1, "public domain, Wikipedia"),
    "clock_motion.png": (2, "public domain, Stefan van der Walt"),
    "cell.png": (1, "CC0, Mueller et al. 2018"),
    # scikit-learn: sklearn/datasets/images/README.txt.
    "china.jpg": (5, "CC BY 2.0, danielbuechele"),
    "flower.jpg": (5, "CC BY 2.0, vultilion"),
}
"""File name: how often it is taken, relative to the others, and its licence."""

LONGEST_SIDE = 1600


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random window, mirrored half the time, its brightness, contrast and colour changed."""
    width, height = picture.size
    scale, aspect = rng.uniform(0.35, 1) ** 0.8, np.exp(rng.normal(0, 0.2))
    w = min(width, scale * min(width, height) * aspect)
    h = min(height, scale * min(width, height) / aspect)
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    window = picture.crop((int(x), int(y), int(x + w), int(y + h)))
    if rng.random() < 0.5:
        window = window.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    window = ImageEnhance.Brightness(window).enhance(rng.uniform(0.7, 1.3))
    window = ImageEnhance.Contrast(window).enhance(rng.uniform(0.7, 1.3))
    return ImageEnhance.Color(window).enhance(rng.uniform(0.3, 1.5))


def main() -> None:
    """Parse the command line and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pictures", type=Path, required=True, help="folder with both wheels' pictures, searched deeply"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the cut model is kept")
    args = parser.parse_args()
    pictures = {}
    for path in sorted(args.pictures.rglob("*")):
        if path.name in PHOTOS:
            pictures[path.name] = Image.open(path).convert("RGB")
            pictures[path.name].thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    missing = PHOTOS.keys() - pictures.keys()
    if missing:
        parser.error(f"not found: {', '.join(sorted(missing))}")
    names = sorted(PHOTOS)
    shares = np.array([PHOTOS[name][0] for name in names], float)
    rng = np.random.default_rng(args.seed)
    model = TwoTaps(cache=args.cache, threads=1)
    for number in track(range(args.count), description="features"):
        name = names[rng.choice(len(names), p=shares / shares.sum())]
        save_taps(model, crop(pictures[name], rng), args.out, "photos", f"{number:04d}")
    print(f"{args.count} crops of {len(names)} photographs in {args.out}")


if __name__ == "__main__":
    main()
