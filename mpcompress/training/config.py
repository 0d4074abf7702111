"""What to train and how: one frozen object that a checkpoint keeps and a resumed run is held to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from mpcompress.errors import InvalidInputError
from mpcompress.registry import CODEC_ID

__all__ = ["FAMILIES", "TrainingConfig"]

FAMILIES = ("vit_union", "vit_union_ctx", "feature_hyperprior")
Precision = Literal["auto", "float32", "bfloat16"]

# A resumed run may go on for longer, elsewhere, and look more often; anything else would be another codec.
_MAY_CHANGE = ("codec_id", "description", "steps", "device", "precision", "validate_every", "checkpoint_every")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """One training run: loss = bpfp + lmbda * NMSE.

    Args:
        family: "vit_union", "vit_union_ctx" or "feature_hyperprior".
        codec_id: 1 to 64 characters of [a-z0-9._-].
        lmbda: bits per feature point worth one unit of NMSE; larger is finer. 1 to 100 is the useful range.
        description: one sentence: which model, which layer, which data.
        steps: optimiser steps.
        batch_size: tensors in a step.
        learning_rate: of Adam at the start; it falls to a tenth along a cosine.
        aux_learning_rate: of the quantiles of the factorised prior.
        clip_norm: largest norm of a gradient.
        seed: of weights, order and noise.
        device: "cpu", "cuda", "cuda:N" or "auto".
        precision: of the transforms; "auto" is bfloat16 on a GPU and float32 elsewhere.
        sizes: constructor arguments of the documented class besides h_dim, num_prefix_tokens and ctx_dim, which
            follow from the features.
        token_res: (H, W) of the patch tokens; None: their number is a square. ViT codecs only.
        prefix_tokens: tokens in front of the patches. ViT codecs only.
        condition: bounds and packing, a key of `mpcompress.neural.maps.CONDITIONS`. Feature hyperprior only.
        settings: model_type, trun_low and trun_high instead of a condition.
        patch: (H, W) of the crops of a map. Feature hyperprior only.
        warm_start: begin from a KLT of the features instead of from noise. ViT codecs only.
        validate_every: steps between measurements with real coding; the end is always measured.
        validation_tensors: how many are coded.
        checkpoint_every: steps between checkpoints.
    """

    family: str
    codec_id: str
    lmbda: float
    description: str = ""
    steps: int = 10_000
    batch_size: int = 8
    learning_rate: float = 1e-4
    aux_learning_rate: float = 1e-3
    clip_norm: float = 1.0
    seed: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    sizes: Mapping[str, Any] = field(default_factory=dict)
    token_res: tuple[int, int] | None = None
    prefix_tokens: int = 0
    condition: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    patch: tuple[int, int] = (256, 256)
    warm_start: bool = True
    validate_every: int = 1000
    validation_tensors: int = 16
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise InvalidInputError(f"family {self.family!r}; trainable: {', '.join(FAMILIES)}", field="family")
        if not CODEC_ID.fullmatch(self.codec_id):
            said = f"codec id {self.codec_id!r} is not 1 to 64 characters of [a-z0-9._-]"
            raise InvalidInputError(said, field="codec_id")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise InvalidInputError(f"precision {self.precision!r}: auto, float32 or bfloat16", field="precision")
        for name in ("lmbda", "learning_rate", "aux_learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < 1e9:
                raise InvalidInputError(f"{name} is {getattr(self, name)}, not above 0", field=name)
        for name in ("steps", "batch_size", "validate_every", "validation_tensors", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}, not at least 1", field=name)
        if self.prefix_tokens < 0 or min(self.patch) < 64 or (self.token_res and min(self.token_res) < 1):
            said = (
                f"{self.prefix_tokens} prefix tokens, grid {self.token_res}, patch {self.patch} (sides of 64 and more)"
            )
            raise InvalidInputError(said, field="token_res")
        maps = self.family == "feature_hyperprior"
        if not maps and (self.condition or self.settings):
            raise InvalidInputError("only feature_hyperprior has bounds and a packing", field="condition")
        if maps and (self.token_res or self.prefix_tokens):
            raise InvalidInputError("feature_hyperprior has no token grid", field="token_res")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dictionaries."""
        values = asdict(self)
        values["sizes"], values["settings"] = dict(self.sizes), dict(self.settings)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def differs(self, other: Mapping[str, Any]) -> list[str]:
        """Names in which `other`, from `to_dict`, describes another codec."""
        mine = self.to_dict()
        kept = [f.name for f in fields(self) if f.name not in _MAY_CHANGE]
        return [name for name in kept if mine[name] != other.get(name)]
