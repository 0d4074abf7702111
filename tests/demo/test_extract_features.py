"""Held-out means held out: sides by file, no near copies across them, the same pictures on every machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")

from PIL import Image, ImageDraw

from benchmarks.extract_features import NEAR_ACROSS, NEAR_WITHIN, candidates, distinct, perceptual_hash, render
from demo.compose import open_picture


def blot(seed: int, side: int = 160) -> Image.Image:
    """A transparent picture with a random drawing."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, side - 1, side - 1), outline="black")
    for _ in range(6):
        corners = rng.uniform(0, side, (3, 2))
        draw.polygon([tuple(corner) for corner in corners], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for group, count in (("animals", 12), ("icons", 60)):
        (root / group).mkdir()
        for i in range(count):
            blot(1000 * count + i).save(root / group / f"{group}{'abcdefghij'[i % 10]}{i // 10}x.png")
    # Copies: resized, on a margin; under names that may be on either side.
    for i, path in enumerate(sorted((root / "animals").iterdir())[:6]):
        copy = Image.new("RGBA", (300, 300))
        copy.paste(Image.open(path).resize((200, 200)), (20, 40))
        copy.save(root / "icons" / f"copy{'uvwxyz'[i]}.png")
    blot(7, side=40).save(root / "icons" / "small.png")
    Image.new("RGBA", (200, 200)).save(root / "icons" / "empty.png")
    (root / "icons" / "broken.png").write_bytes(b"not a picture")
    return root


def test_variants_of_one_drawing_are_on_one_side(tmp_path: Path) -> None:
    for family in range(20):
        for serial in ("", "_01", "_02", "-3"):
            blot(0).save(tmp_path / f"drawing{'abcdefghijklmnopqrst'[family]}{serial}.png")
    sides: dict[str, set[str]] = {}
    for item in candidates(tmp_path, test_share=0.5, seed=0):
        sides.setdefault(item.path.stem[:8], set()).add(item.split)
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "test"}


def test_small_folders_get_more_than_their_share(folder: Path) -> None:
    first = candidates(folder, test_share=0.2, seed=0)[:12]
    assert sum(item.path.parts[0] == "animals" for item in first) >= 4


def test_no_near_copies_within_or_across(folder: Path) -> None:
    found = candidates(folder, test_share=0.4, seed=0)
    chosen = distinct(found, folder, {"train": 100, "test": 100})
    marks = {
        split: [perceptual_hash(open_picture(folder / item.path)) for item in side] for split, side in chosen.items()
    }
    assert min(len(side) for side in marks.values()) > 10
    across = [(a != b).sum() for a in marks["train"] for b in marks["test"]]
    within = [(a != b).sum() for side in marks.values() for i, a in enumerate(side) for b in side[:i]]
    assert min(across) > NEAR_ACROSS
    assert min(within) > NEAR_WITHIN
    taken = {item.path.stem for side in chosen.values() for item in side}
    assert not taken & {"small", "empty", "broken"}
    originals = {path.stem for path in sorted((folder / "animals").iterdir())[:6]}
    assert len(taken & (originals | {f"copy{letter}" for letter in "uvwxyz"})) <= 6


def test_pictures_are_repeatable_and_of_one_side(folder: Path) -> None:
    chosen = distinct(candidates(folder, test_share=0.4, seed=0), folder, {"train": 20, "test": 10})
    side = {item.path for item in chosen["test"]}
    for item in chosen["test"]:
        picture, paths = render(item, chosen["test"], folder, 5)
        again, _ = render(item, chosen["test"], folder, 5)
        assert picture.tobytes() == again.tobytes()
        assert picture.mode == "RGB"
        assert max(picture.size) == 336
        assert paths[0] == item.path
        assert set(paths) <= side
