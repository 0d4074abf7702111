"""What anybody would try first: fp16, and integers of k bits with scales, through zstd at its highest useful level.

An integer is round(x / scale), saturated at +-(2^(k-1) - 1), scale = share of the largest magnitude / (2^(k-1) - 1) of
the tensor, of each channel, of each token, or of each channel over a calibration set (then nothing has to be sent).
Scales travel as float16. What wins depends on the features: `best` tries them all, in both orders of the axes, and
packed and not, and takes the one that spends least at equal error over the whole set.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from mpcompress.metrics import nmse

Features = npt.NDArray[Any]

LEVEL = 19
SCALES = ("tensor", "channel", "token", "calibrated")
_SHARES = (1.0, 0.7, 0.5, 0.35, 0.25, 0.17)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to quantise and lay out (L, C)."""

    bits: int
    scales: str
    """`tensor`, `channel`, `token` or `calibrated`."""
    share: float
    """Of the largest magnitude: beyond it values saturate."""
    channels_first: bool
    packed: bool
    """Two values of up to 4 bits in a byte."""

    def __str__(self) -> str:
        order = "channels first" if self.channels_first else "tokens first"
        return f"scale per {self.scales}, {self.share:g} of the largest, {order}{', packed' if self.packed else ''}"


def fp16(h: Features) -> tuple[int, Features]:
    """Bytes of float16 through zstd, and the tensor."""
    halves = h.astype(np.float16)
    planes = halves.view(np.uint8).reshape(-1, 2).T  # bytes of equal weight together
    coder = zstandard.ZstdCompressor(level=LEVEL)
    return min(len(coder.compress(np.ascontiguousarray(part).tobytes())) for part in (planes, halves)), halves


def integers(h: Features, variant: Variant, largest: Features | None = None) -> tuple[int, Features, float, float]:
    """Code (L, C) as integers.

    Args:
        h: the tensor.
        variant: how.
        largest: of each channel over a calibration set (C,), for `calibrated`.

    Returns:
        Bytes with scales, the decoded tensor (float32), CPU seconds to encode and to decode.
    """
    begin = time.process_time()
    x = h.astype(np.float32)
    top = (1 << (variant.bits - 1)) - 1
    if variant.scales == "calibrated":
        if largest is None:
            raise ValueError("calibrated scales need the largest magnitudes of a calibration set")
        peak, sent = largest[None, :], 0
    else:
        axis = {"tensor": None, "channel": 0, "token": 1}[variant.scales]
        peak = np.abs(x).max(axis=axis, keepdims=True)
        sent = 2 * peak.size
    scale = np.maximum((peak * (variant.share / top)).astype(np.float16).astype(np.float32), 1e-7)
    q = np.clip(np.rint(x / scale), -top, top).astype(np.int8)
    flat = (q.T if variant.channels_first else q).ravel()
    if variant.packed:
        even = np.append(flat, np.int8(0)) if flat.size % 2 else flat
        flat = ((even[::2] + top) | (even[1::2] + top) << 4).astype(np.uint8)
    stream = zstandard.ZstdCompressor(level=LEVEL).compress(flat.tobytes())
    middle = time.process_time()
    zstandard.ZstdDecompressor().decompress(stream)
    h_hat = q.astype(np.float32) * scale
    return len(stream) + sent, h_hat, middle - begin, time.process_time() - middle


def best(
    tensors: Sequence[Features],
    bits: int,
    largest: Features | None = None,
    *,
    scales: Sequence[str] = SCALES,
    nmse_below: float = 0.1,
) -> Variant:
    """The variant of `bits` bits that spends least over `tensors` at equal error.

    Errors differ between variants; they are made comparable at 6 dB a bit: bpfp + log2(NMSE) / 2, averaged. That rule
    fails where almost all becomes zero, so a mean NMSE above `nmse_below` is not considered while there is another.
    """
    kinds = [name for name in scales if name != "calibrated" or largest is not None]
    shares = _SHARES if bits < 8 else _SHARES[:1]
    packings = (False, True) if bits <= 4 else (False,)
    found = []
    for kind, share, first, packed in itertools.product(kinds, shares, (False, True), packings):
        variant = Variant(bits=bits, scales=kind, share=share, channels_first=first, packed=packed)
        trips = [integers(h, variant, largest) for h in tensors]
        errors = np.array([max(nmse(h, trip[1]), 1e-9) for h, trip in zip(tensors, trips, strict=True)])
        bpfp = np.array([8 * trip[0] / h.size for h, trip in zip(tensors, trips, strict=True)])
        cost = float(np.mean(bpfp + np.log2(errors) / 2))
        found.append((bool(errors.mean() > nmse_below), cost, variant))
    return min(found, key=lambda entry: entry[:2])[2]


def largest_magnitudes(tensors: Sequence[Features]) -> Features:
    """Of each channel over a calibration set: (C,) float32."""
    return np.asarray(np.max([np.abs(h.astype(np.float32)).max(0) for h in tensors], axis=0))
