"""Batches of features: a deterministic order, so that a resumed run sees what an uninterrupted one would have seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import InvalidInputError
from mpcompress.feature_files import FeatureTensor, open_features

__all__ = ["FeatureSet", "grid_of", "split"]

Float = NDArray[np.float32]
MIN_TENSORS = 4
_STATISTICS = 64


@dataclass(frozen=True)
class FeatureSet:
    """Feature tensors (L, C), and a context map (ctx_dim, H, W) for each when there is a folder of them.

    Args:
        tensors: features, all of one shape.
        contexts: file of each tensor's context, or none at all.
    """

    tensors: Sequence[FeatureTensor]
    contexts: Sequence[Path] = field(default_factory=tuple)

    @classmethod
    def open(cls, sources: Any, context: Path | None = None) -> FeatureSet:
        """Opens files, folders and arrays as `open_features` does; arrays of iterators stay in memory.

        Args:
            sources: the features.
            context: folder that has, for each feature file NAME.npy, a NAME.npy with its context (ctx_dim, H, W).

        Raises:
            InvalidInputError: no tensors, different shapes, or a context that is missing.
        """
        if isinstance(sources, np.ndarray):
            sources = [sources]
        tensors = open_features(sources if isinstance(sources, str | Path) else list(sources))
        if not tensors:
            raise InvalidInputError("no feature tensors there", field="features")
        for tensor in tensors:
            if tensor.shape != tensors[0].shape:
                said = f"{tensor.name} has shape {tensor.shape}, {tensors[0].name} has {tensors[0].shape}"
                raise InvalidInputError(said, field="features")
        if context is None:
            return cls(tensors)
        contexts = [context / tensor.name for tensor in tensors]
        missing = [path.name for path in contexts if not path.is_file()]
        if missing:
            said = f"no context for {missing[0]}; give each feature file NAME.npy a {context.name}/NAME.npy"
            raise InvalidInputError(said, field="context")
        return cls(tensors, contexts)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def shape(self) -> tuple[int, int]:
        """(L, C) of every tensor."""
        return self.tensors[0].shape

    def item(self, index: int) -> dict[str, Float]:
        """Features "h" (L, C), and their context "ctx" (ctx_dim, H, W) when there is one."""
        found = {"h": self.tensors[index].read()}
        if self.contexts:
            path = self.contexts[index]
            try:
                ctx = np.load(path, allow_pickle=False).astype(np.float32)
            except (OSError, ValueError, EOFError) as error:
                raise InvalidInputError(f"context {path.name}: {error}", field="context") from error
            if ctx.ndim != 3 or not np.isfinite(ctx).all():
                raise InvalidInputError(
                    f"context {path.name} is {ctx.shape}, not (C, H, W), or not finite", field="context"
                )
            found["ctx"] = ctx
        return found

    def batch(self, step: int, size: int, seed: int) -> dict[str, Float]:
        """The batch of a step, stacked: each epoch is a permutation of its own."""
        picks = []
        for position in range(step * size, (step + 1) * size):
            epoch, place = divmod(position, len(self))
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            picks.append(self.item(int(order[place])))
        return {name: np.stack([pick[name] for pick in picks]) for name in picks[0]}

    def some(self, count: int = _STATISTICS) -> Float:
        """Up to `count` tensors, spread over the set, (N, L, C)."""
        step = max(1, len(self) // count)
        return np.stack([tensor.read() for tensor in self.tensors[::step][:count]])


def split(features: FeatureSet, validation: FeatureSet | None, count: int) -> tuple[FeatureSet, FeatureSet]:
    """Training and validation tensors: every tenth of `features` when there are no others, `count` at most.

    Raises:
        InvalidInputError: too few tensors, or tensors of different shapes.
    """
    if validation is not None and validation.shape != features.shape:
        raise InvalidInputError(f"validation tensors are {validation.shape}, not {features.shape}", field="validation")
    if len(features) < MIN_TENSORS:
        raise InvalidInputError(f"{len(features)} tensors; at least {MIN_TENSORS} are needed", field="features")
    if validation is None:
        held = set(range(len(features))[2::10])
        return _pick(features, [i for i in range(len(features)) if i not in held]), _spread(
            _pick(features, held), count
        )
    return features, _spread(validation, count)


def _spread(features: FeatureSet, count: int) -> FeatureSet:
    places = np.unique(np.linspace(0, len(features) - 1, min(count, len(features))).astype(int))
    return _pick(features, places.tolist())


def _pick(features: FeatureSet, places: Any) -> FeatureSet:
    chosen = sorted(places)
    contexts = [features.contexts[i] for i in chosen] if features.contexts else ()
    return FeatureSet([features.tensors[i] for i in chosen], contexts)


def grid_of(tokens: int, prefix: int, given: tuple[int, int] | None) -> tuple[int, int]:
    """The grid (H, W) of the patches; a square one when none is given. Raises InvalidInputError."""
    patches = tokens - prefix
    side = math.isqrt(max(patches, 0))
    grid = given or (side, side)
    if patches < 1 or grid[0] * grid[1] != patches:
        said = f"{tokens} tokens less {prefix} prefix tokens are not a grid of {grid[0]} x {grid[1]}"
        raise InvalidInputError(f"{said}; give prefix_tokens and token_res", field="token_res")
    return grid


def statistics(x: Mapping[str, Float] | Float) -> float:
    """Variance of features about their one mean, as NMSE has it."""
    array = x["h"] if isinstance(x, Mapping) else x
    return max(float(array.var(dtype=np.float64)), 1e-12)
