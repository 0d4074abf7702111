"""Codec families, codec specifications, and loading one from the other.

A family is code (`klt`, `vit_union`, ...); a codec is a family with weights and a name. Shipped codecs are data: one
TOML file each in `presets/`, pointing at a file in `weights/`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mpcompress.codec import FeatureCodec
from mpcompress.errors import CodecFileError, UnknownCodecError

CODEC_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHIPPED_WEIGHTS = "package:"


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """Which codec to load.

    Args:
        id: 1 to 64 characters of [a-z0-9._-].
        family: a registered family.
        weights: path of a codec file; ``package:NAME`` for one shipped in mpcompress/weights; None for families
            without weights.
        options: what else the family needs, JSON-able.
    """

    id: str
    family: str
    weights: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not CODEC_ID.fullmatch(self.id):
            raise CodecFileError(f"codec id {self.id!r} is not 1 to 64 characters of [a-z0-9._-]", field="id")
        if self.family not in _FAMILIES:
            known = ", ".join(sorted(_FAMILIES))
            raise CodecFileError(f"codec {self.id}: unknown family {self.family!r}; known: {known}", field="family")
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    def weights_path(self) -> Path:
        """Where the weights are. Raises CodecFileError when there are none."""
        if self.weights is None:
            raise CodecFileError(f"codec {self.id}: family {self.family} needs weights", field="weights")
        if self.weights.startswith(_SHIPPED_WEIGHTS):
            path = Path(str(resources.files("mpcompress") / "weights" / self.weights.removeprefix(_SHIPPED_WEIGHTS)))
        else:
            path = Path(self.weights)
        if not path.is_file():
            raise CodecFileError(f"codec {self.id}: no such file: {self.weights}", field="weights")
        return path


Loader = Callable[[CodecSpec], FeatureCodec]

# family -> "module:function". The module is imported when the first codec of the family is loaded, so that families
# that need torch cost nothing where none is used.
_FAMILIES: dict[str, str | Loader] = {
    "klt": "mpcompress.transforms.klt_codec:load",
    "vtm": "mpcompress.picture.codec:load",
    "vvenc": "mpcompress.picture.codec:load",
    "x265": "mpcompress.picture.codec:load",
    "vit_union": "mpcompress.neural.vit_union:load",
    "vit_union_ctx": "mpcompress.neural.vit_union:load",
    "vit_union_exact": "mpcompress.neural.exact_vit_union:load",
    "vit_union_ctx_exact": "mpcompress.neural.exact_vit_union:load",
    "feature_hyperprior": "mpcompress.neural.feature_hyperprior:load",
    "hyper_latent_ctx": "mpcompress.neural.latent_ctx:load",
    "hyperprior_latent_ctx": "mpcompress.neural.latent_ctx:load",
}


def register_family(name: str, loader: str | Loader) -> None:
    """Adds a family: a loader, or "module:function" to import on first use. Raises ValueError for a known name."""
    if name in _FAMILIES:
        raise ValueError(f"codec family {name!r} is already registered")
    _FAMILIES[name] = loader


def families() -> list[str]:
    """Names of all registered families, sorted."""
    return sorted(_FAMILIES)


def preset_ids() -> list[str]:
    """Ids of the shipped codecs, sorted."""
    folder = resources.files("mpcompress") / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset(codec_id: str) -> CodecSpec:
    """The specification of a shipped codec. Raises UnknownCodecError with the known ids."""
    if codec_id not in preset_ids():
        known = ", ".join(preset_ids()) or "none"
        raise UnknownCodecError(f"unknown codec {codec_id!r}; shipped codecs: {known}", field="codec_id")
    text = (resources.files("mpcompress") / "presets" / f"{codec_id}.toml").read_text(encoding="utf-8")
    return CodecSpec(id=codec_id, **tomllib.loads(text))


def load(spec: CodecSpec) -> FeatureCodec:
    """Loads a codec.

    Raises:
        CodecFileError: weights that are missing, damaged or of another family.
        CodecUnavailableError: a family whose dependencies are not installed; the message says which.
    """
    loader = _FAMILIES[spec.family]
    if isinstance(loader, str):
        module, _, function = loader.partition(":")
        loader = getattr(import_module(module), function)
    return loader(spec)
