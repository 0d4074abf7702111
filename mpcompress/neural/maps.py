"""Features as one-channel maps with values in [0, 1], and back: what `FeatureScaleHyperprior` codes.

    x ──► clip to [low, high] ──► (x - low) / (high - low) ──► packing ──► map (H, W)

Bounds and packings of "Feature Coding in the Era of Large Models" (arXiv 2412.04307); the packings are those of the
picture codecs. Without a model type the tensor is a map already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import CodecFileError, InvalidInputError
from mpcompress.picture.packing import MODEL_TYPES, Packing, packing
from mpcompress.picture.quantize import Bounds

__all__ = ["CONDITIONS", "Condition", "MapForm"]

Float = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Test conditions of one model and task: bounds for the map, and how the published codecs were trained."""

    model_type: str
    trun_low: tuple[float, ...]
    trun_high: tuple[float, ...]
    lambdas: tuple[float, ...]
    patch: tuple[int, int]
    batch: int

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of a codec file."""
        return {"model_type": self.model_type, "trun_low": list(self.trun_low), "trun_high": list(self.trun_high)}


CONDITIONS: dict[str, Condition] = {
    "dinov2-cls": Condition(
        model_type="dinov2",
        trun_low=(-5.0,),
        trun_high=(5.0,),
        lambdas=(0.001, 0.0017, 0.003, 0.0035, 0.01),
        patch=(256, 256),
        batch=128,
    ),
    "dinov2-seg": Condition(
        model_type="dinov2",
        trun_low=(-5.0,),
        trun_high=(5.0,),
        lambdas=(0.0005, 0.001, 0.003, 0.007, 0.015),
        patch=(256, 256),
        batch=128,
    ),
    "dinov2-dpt": Condition(
        model_type="dinov2",
        trun_low=(-1.0, -2.0, -10.0, -10.0),
        trun_high=(1.0, 2.0, 10.0, 10.0),
        lambdas=(0.001, 0.005, 0.02, 0.05, 0.12),
        patch=(256, 256),
        batch=128,
    ),
    "llama3-csr": Condition(
        model_type="llama3",
        trun_low=(-5.0,),
        trun_high=(5.0,),
        lambdas=(0.01405, 0.0142, 0.015, 0.07, 10.0),
        patch=(64, 4096),
        batch=40,
    ),
    "sd3-tti": Condition(
        model_type="sd3",
        trun_low=(-6.176,),
        trun_high=(4.668,),
        lambdas=(0.005, 0.01, 0.02, 0.05, 0.2),
        patch=(512, 512),
        batch=32,
    ),
}


@dataclass(frozen=True, kw_only=True)
class MapForm:
    """How tensors become maps.

    Args:
        layout: the packing; None: the tensor is a map already, (1, H, W) or (B, 1, H, W), in [0, 1].
        bounds: of the scaling; None exactly when `layout` is.
    """

    layout: Packing | None = None
    bounds: Bounds | None = None
    ranks: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if (self.layout is None) != (self.bounds is None):
            raise InvalidInputError("a packing needs truncation bounds, and bounds a packing", field="trun_low")
        tiles = self.layout is None or self.layout.name == "latent_tiles"
        object.__setattr__(self, "ranks", (3, 4) if tiles else (2, 3, 4))

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> MapForm:
        """From `model_type` (a model type or a packing's name), `trun_low` and `trun_high`; none of them: maps.

        Raises:
            CodecFileError: an unknown packing, or bounds that are none.
        """
        if not settings.get("model_type"):
            if settings.get("trun_low") is not None:
                raise CodecFileError("truncation bounds without a model_type", field="options.model_type")
            return cls()
        try:
            layout = packing(str(settings["model_type"]))
            return cls(layout=layout, bounds=Bounds.of(settings.get("trun_low", ()), settings.get("trun_high", ())))
        except InvalidInputError as error:
            known = ", ".join(sorted(MODEL_TYPES))
            raise CodecFileError(f"{error.message} (model types: {known})", field=f"options.{error.field}") from error

    def with_bounds(self, low: Sequence[float], high: Sequence[float]) -> MapForm:
        """The same with other bounds. Raises InvalidInputError."""
        if self.layout is None:
            raise InvalidInputError("this codec takes maps: it has no truncation bounds", field="trun_low")
        return MapForm(layout=self.layout, bounds=Bounds.of(low, high))

    def shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """(samples, H, W) of the maps of a tensor. Raises InvalidInputError for one that is not taken."""
        if self.layout is None or self.bounds is None:
            if len(shape) not in (3, 4) or shape[-3] != 1 or min(shape) < 1:
                raise InvalidInputError(f"h has shape {shape}, not (1, H, W) or (B, 1, H, W)", field="h.shape")
            return (shape[0] if len(shape) == 4 else 1), shape[-2], shape[-1]
        form = self.layout.canonical(shape)
        self.bounds.shaped(form)
        return (1, *self.layout.picture_shape(form))

    def pack(self, x: Float) -> Float:
        """A finite tensor to maps (B, 1, H, W)."""
        samples, height, width = self.shape(x.shape)
        if self.layout is not None and self.bounds is not None:
            form = x.reshape(self.layout.canonical(x.shape))
            low, span = self.bounds.shaped(form.shape)
            scaled = np.clip((form - low) / span, 0, 1).astype(np.float32)
            x = cast(Float, self.layout.pack(cast(Any, scaled)))
        return np.ascontiguousarray(x).reshape(samples, 1, height, width)

    def unpack(self, maps: Float, shape: tuple[int, ...]) -> Float:
        """Maps (B, 1, H, W) to a tensor of `shape`."""
        if self.layout is None or self.bounds is None:
            return maps.reshape(shape)
        form = self.layout.canonical(shape)
        low, span = self.bounds.shaped(form)
        scaled = self.layout.unpack(cast(Any, maps.reshape(self.layout.picture_shape(form))), form)
        return (scaled * span + low).astype(np.float32).reshape(shape)
