"""The documented feature codecs. Each class is imported on first use: only the neural ones need torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpcompress.latent_codecs.hyperprior import FeatureScaleHyperprior
    from mpcompress.latent_codecs.hyperprior_ctx import HyperLatentCodecWithCtx, HyperpriorLatentCodecWithCtx
    from mpcompress.latent_codecs.vit_union import VitUnionLatentCodec
    from mpcompress.latent_codecs.vit_union_ctx import VitUnionLatentCodecWithCtx
    from mpcompress.latent_codecs.vtm import VtmCodec, VtmFeatureCodec

__all__ = [
    "FeatureScaleHyperprior",
    "HyperLatentCodecWithCtx",
    "HyperpriorLatentCodecWithCtx",
    "VitUnionLatentCodec",
    "VitUnionLatentCodecWithCtx",
    "VtmCodec",
    "VtmFeatureCodec",
]

_HOMES = {
    "FeatureScaleHyperprior": "hyperprior",
    "HyperLatentCodecWithCtx": "hyperprior_ctx",
    "HyperpriorLatentCodecWithCtx": "hyperprior_ctx",
    "VitUnionLatentCodec": "vit_union",
    "VitUnionLatentCodecWithCtx": "vit_union_ctx",
    "VtmCodec": "vtm",
    "VtmFeatureCodec": "vtm",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
