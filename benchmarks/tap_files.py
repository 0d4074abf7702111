"""Where the scripts that make features of pictures keep them: FOLDER/TAP/PART/NAME.npy, float16 (257, 384)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from demo.split_model import TwoTaps

__all__ = ["save_taps"]


def save_taps(model: TwoTaps, picture: Image.Image, folder: Path, part: str, name: str) -> None:
    """Write the features of a picture at both taps."""
    for tap, features in model(picture).items():
        target = folder / tap / part / f"{name}.npy"
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, features.astype(np.float16))
