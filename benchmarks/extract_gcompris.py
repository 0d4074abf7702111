"""Make calibration and test features from the photographs of GCompris (Debian: gcompris-qt-data).

    apt-get download gcompris-qt-data && dpkg-deb -x gcompris-qt-data_*.deb UNPACKED
    python benchmarks/extract_gcompris.py --archives UNPACKED/usr/share/gcompris-qt/rcc --out features

writes features/{block6,final}/{photos,photos_test}/ACTIVITY-NNN-CROP.npy, float16 (257, 384), of random crops with
changed brightness, contrast and colour: of every fifth picture to photos_test, which is held out. Licences are stated
picture by picture in the package's `copyright` file: public domain, CC0, CC BY, CC BY-SA, GFDL and GPL.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from benchmarks.extract_photos import LONGEST_SIDE, crop
from benchmarks.tap_files import save_taps
from demo.split_model import DEFAULT_CACHE, TwoTaps

ACTIVITIES = (
    "categorization",
    "details",
    "erase",
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_animals",
    "explore_world_music",
)
_PICTURE = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF....WEBP", re.DOTALL)
_SMALLEST_SIDE = 224
_TEST_SHARE = 5  # one picture in so many


def pictures(archive: Path) -> Iterator[Image.Image]:
    """Opaque pictures of a Qt resource archive that are large enough.

    Its data are entries of four bytes of length, big endian, and content, which Qt leaves as it is where it does not
    compress.
    """
    data = archive.read_bytes()
    for found in _PICTURE.finditer(data):
        start = found.start()
        (size,) = struct.unpack(">I", data[start - 4 : start])
        if size > len(data) - start:
            continue
        try:
            picture = Image.open(io.BytesIO(data[start : start + size]))
            opaque = picture.convert("RGBA").getextrema()[3][0] == 255
        except (UnidentifiedImageError, OSError):
            continue
        if opaque and min(picture.size) >= _SMALLEST_SIDE:
            yield picture.convert("RGB")


def main() -> None:
    """Parse the command line and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archives", type=Path, required=True, help="folder of the .rcc files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=6, help="of each picture")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the cut model is kept")
    args = parser.parse_args()
    chosen: dict[str, tuple[str, Image.Image]] = {}
    for activity in ACTIVITIES:
        for picture in pictures(args.archives / f"{activity}.rcc"):
            key = hashlib.sha256(picture.tobytes()).hexdigest()
            picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            chosen.setdefault(key, (activity, picture))
    model = TwoTaps(cache=args.cache, threads=1)
    counts = {"photos": 0, "photos_test": 0}
    for number, (key, (activity, picture)) in enumerate(track(chosen.items(), description="features")):
        part = "photos_test" if int(key[:8], 16) % _TEST_SHARE == 0 else "photos"
        counts[part] += 1
        rng = np.random.default_rng(int(key[:8], 16))
        for index in range(args.crops):
            save_taps(model, crop(picture, rng), args.out, part, f"{activity}-{number:03d}-{index}")
    print(f"{args.crops} crops of each of {counts} photographs in {args.out}")


if __name__ == "__main__":
    main()
