"""Pictures with a subject and a background, made from transparent clip art.

Clip art on a transparent or white ground is unlike what a camera sees: large flat areas make features that are too
easy. `compose` puts one to three pieces on a background of flat colour, a gradient, stripes, 1/f noise (whose
spectrum is that of natural pictures; Field 1987), overlapping discs or blurred clip art. Every choice comes from the
generator passed in, so the same seed gives the same picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["compose", "open_picture"]

Size = tuple[int, int]
Plane = npt.NDArray[np.float64]

_LONGEST = 336  # pixels; half as much again as the model sees, so that resizing happens as with a photograph
_SHAPES = ((1, 1), (1, 1), (1, 1), (4, 3), (3, 4), (3, 2), (2, 3), (16, 9))


def open_picture(path: Path) -> Image.Image:
    """Read a picture as RGBA, cropped to what is not transparent.

    Raises:
        ValueError: nothing in it is visible.
        OSError: not a picture Pillow can read.
    """
    with Image.open(path) as file:
        picture = file.convert("RGBA")
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"{path.name} is transparent everywhere")
    return picture.crop(box)


def compose(paths: Sequence[Path], rng: np.random.Generator) -> Image.Image:
    """Paint `paths[0]`, and perhaps some of the others, on a background of its own.

    Args:
        paths: the subject, then pictures to take companions and backgrounds from.
        rng: where every random choice comes from.

    Returns:
        An RGB picture, longest side 336 pixels.
    """
    across, down = _SHAPES[rng.integers(len(_SHAPES))]
    size = (_LONGEST * across // max(across, down), _LONGEST * down // max(across, down))
    others = list(paths[1:])
    paint = _BACKGROUNDS[rng.integers(len(_BACKGROUNDS))]
    canvas = paint(size, rng, others)
    for path in others[: rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2])]:
        _paste(canvas, open_picture(path), rng, share=rng.uniform(0.2, 0.5))
    _paste(canvas, open_picture(paths[0]), rng, share=rng.uniform(0.4, 1.1))
    return canvas


def _paste(canvas: Image.Image, piece: Image.Image, rng: np.random.Generator, *, share: float) -> None:
    """Paste `piece`, its longest side `share` of the canvas's shortest, anywhere with its centre on the canvas."""
    scale = share * min(canvas.size) / max(piece.size)
    width, height = (max(1, round(side * scale)) for side in piece.size)
    piece = piece.resize((width, height), Image.Resampling.LANCZOS)
    if rng.random() < 0.5:
        piece = piece.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    centre = rng.uniform(0.25, 0.75, 2) * canvas.size
    canvas.paste(piece, (round(centre[0] - width / 2), round(centre[1] - height / 2)), piece)


def _colour(rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return a colour, more often muted than loud, as in photographs; (3,), 0..255."""
    return (rng.uniform(0, 255) + rng.normal(0, rng.choice([15, 60]), 3)).clip(0, 255)


def _blend(weight: Plane, rng: np.random.Generator) -> Image.Image:
    """Mix two random colours by a plane of weights (height, width), rescaled to 0..1."""
    weight = (weight - weight.min()) / max(float(np.ptp(weight)), 1e-9)
    pixels = weight[..., None] * _colour(rng) + (1 - weight[..., None]) * _colour(rng)
    return Image.fromarray(pixels.astype(np.uint8))


def _ramp(size: Size, rng: np.random.Generator) -> Plane:
    """Return the distance along a random direction, (height, width), in pixels."""
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[: size[1], : size[0]]
    return np.asarray(x * math.cos(angle) + y * math.sin(angle), dtype=np.float64)


def _flat(size: Size, rng: np.random.Generator, _: list[Path]) -> Image.Image:
    return Image.new("RGB", size, tuple(int(value) for value in _colour(rng)))


def _linear(size: Size, rng: np.random.Generator, _: list[Path]) -> Image.Image:
    return _blend(_ramp(size, rng), rng)


def _radial(size: Size, rng: np.random.Generator, _: list[Path]) -> Image.Image:
    y, x = np.mgrid[: size[1], : size[0]]
    centre = rng.uniform(0, 1, 2) * size
    return _blend(np.hypot(x - centre[0], y - centre[1]), rng)


def _stripes(size: Size, rng: np.random.Generator, _: list[Path]) -> Image.Image:
    return _blend((np.sin(_ramp(size, rng) * rng.uniform(0.05, 0.5)) > rng.uniform(-0.5, 0.5)).astype(float), rng)


def _pink(size: Size, rng: np.random.Generator, slope: float) -> Plane:
    """Return noise (height, width) whose amplitude falls with frequency to the power `slope`."""
    frequency = np.hypot(np.fft.fftfreq(size[1])[:, None], np.fft.rfftfreq(size[0])[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.rfft2(rng.standard_normal((size[1], size[0]))) / frequency**slope
    return np.asarray(np.fft.irfft2(spectrum, s=(size[1], size[0])))


def _noise(size: Size, rng: np.random.Generator, _: list[Path]) -> Image.Image:
    slope = rng.uniform(0.6, 1.8)
    brightness = _pink(size, rng, slope)
    # Channels share most of their variation, as in photographs.
    planes = np.stack([0.8 * brightness + 0.2 * _pink(size, rng, slope) for _ in range(3)], axis=-1)
    planes = planes / planes.std() * rng.uniform(15, 60) + _colour(rng)
    return Image.fromarray(planes.clip(0, 255).astype(np.uint8))


def _leaves(size: Size, rng: np.random.Generator, others: list[Path]) -> Image.Image:
    """Discs that hide each other, radii by the power law of natural pictures (Lee, Mumford and Huang 2001)."""
    canvas = _noise(size, rng, others)
    draw = ImageDraw.Draw(canvas)
    palette = [_colour(rng) for _ in range(rng.integers(3, 9))]
    for _ in range(400):
        radius = 4 / math.sqrt(rng.uniform(0.0025, 1))  # density falls with the cube of the radius, 4..80 pixels
        x, y = rng.uniform(0, 1, 2) * size
        colour = (palette[rng.integers(len(palette))] + rng.normal(0, 12, 3)).clip(0, 255)
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(int(v) for v in colour))
    grain = np.asarray(canvas, dtype=np.float64)
    texture = _pink(size, rng, 0.8)
    grain += texture[..., None] / texture.std() * rng.uniform(0, 20)
    return Image.fromarray(grain.clip(0, 255).astype(np.uint8))


def _blurred(size: Size, rng: np.random.Generator, others: list[Path]) -> Image.Image:
    canvas = (_leaves if rng.random() < 0.5 else _noise)(size, rng, others)
    for path in others[-3:]:
        _paste(canvas, open_picture(path), rng, share=rng.uniform(0.6, 1.6))
    return canvas.filter(ImageFilter.GaussianBlur(rng.uniform(1, 8)))


# Noise, discs and blur are nearest to photographs and come up more often; the others are like drawings and screens.
_BACKGROUNDS: tuple[Callable[[Size, np.random.Generator, list[Path]], Image.Image], ...] = (
    *(_flat, _linear, _radial, _stripes),
    *(_noise, _noise, _leaves, _blurred, _blurred, _blurred),
)
