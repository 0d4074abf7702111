"""Families `hyperprior_latent_ctx` and `hyper_latent_ctx`: latents coded given a context map of the same sides.

One item is a latent (C, H, W) or (B, C, H, W) under the name "h" with its context "ctx". The first family gives the
latent back (``h_hat``, the documented y_hat); the second only the parameters of its distribution (``params``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mpcompress.codec import Array, Coded, CodingParams, TensorPort, TensorSpec, Unit
from mpcompress.errors import CodecMismatchError, CorruptBitstreamError, InvalidInputError
from mpcompress.neural.arrays import DTYPES, as_float32, context_hash, from_torch, named, to_torch
from mpcompress.neural.base import Loaded, NeuralCodec, check_payload, load_network, take_grid
from mpcompress.registry import CodecSpec

__all__ = ["LatentCtxCodec", "load"]

_LAYOUT = "(C, H, W) or (B, C, H, W)"
_MAX_POSITIONS = 1 << 18


class LatentCtxCodec(NeuralCodec):
    """Adapter of `HyperpriorLatentCodecWithCtx` and `HyperLatentCodecWithCtx` with their default transforms."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._net: Any = loaded.module
        sizes = loaded.network.measure(loaded.module.state_dict())
        self._y, self._z, self._ctx = (sizes[f"{name}_channels"] for name in ("y", "z", "ctx"))
        self._codes_y = self.family == "hyperprior_latent_ctx"
        port = TensorPort(name="h", ranks=(3, 4), dtypes=DTYPES, channels=self._y, layout=_LAYOUT)
        self.inputs = (port, replace(port, name="ctx", channels=self._ctx))
        gives = replace(port, name="h_hat") if self._codes_y else replace(port, name="params", channels=2 * self._z)
        self.outputs = (gives,)

    @property
    def pstate_kind(self) -> str:
        """See `FeatureCodec.pstate_kind`."""
        return "hyperprior"

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """See `FeatureCodec.resolve`. No parameters; token_res and prefix_tokens are dropped."""
        self._refuse(params)
        index, h = named(specs, "h")
        problem = self._shape_problem(h.shape)
        if problem:
            raise InvalidInputError(problem, field=f"tensors[{index}].shape")
        index, ctx = named(specs, "ctx")
        self._check_ctx(ctx.shape, h.shape, f"tensors[{index}].shape")
        return CodingParams()

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """See `FeatureCodec.compress`. The class codes sample by sample: a batch gives the strings of single calls."""
        return [self._compress(item) for item in batch]

    def _compress(self, item: Mapping[str, Array]) -> Coded:
        h, ctx = _samples(item["h"], "h", "tensors[0]"), _samples(item["ctx"], "ctx", "tensors[1]")
        latent, context = to_torch(h, self.device), to_torch(ctx, self.device)
        out = self._encode(lambda: self._net.compress(latent, context))
        z_shape = out["shape"]["hyper"] if self._codes_y else out["shape"]
        pstate: dict[str, Any] = {"z_shape": tuple(z_shape)}
        if h.shape[0] > 1:
            pstate["batch"] = h.shape[0]
        strings = [string for row in out["strings"] for string in row]
        return Coded(strings=strings, pstate=pstate, ctx_hash=context_hash(ctx))

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """See `FeatureCodec.check_unit`."""
        if len(unit.specs) != 1 or not unit.ctx_hash or unit.specs[0].dtype not in DTYPES:
            raise CorruptBitstreamError("a latent unit has one float tensor and a context", field="unit.tensors")
        (spec,) = unit.specs
        problem = self._shape_problem(spec.shape)
        if problem:
            raise CorruptBitstreamError(problem, field="unit.tensors[0].shape")
        samples, (height, width) = _count(spec.shape), spec.shape[-2:]
        # A plain field of the message is there even when nobody set it.
        pstate = {name: value for name, value in unit.pstate.items() if value != ""}
        z_shape, expected = take_grid(pstate, "z_shape"), (-(-height // 2), -(-width // 2))
        batch = pstate.pop("batch", 1) or 1
        if pstate or z_shape != expected or batch != samples:
            raise CorruptBitstreamError(
                f"the state does not fit {samples} latents of {height} x {width}, whose z is {expected}",
                field="unit.pstate",
            )
        symbols = samples * (self._z * expected[0] * expected[1] + self._codes_y * self._y * height * width)
        check_payload(unit.strings, (1 + self._codes_y) * samples, symbols)
        if "ctx" not in unit.context:
            raise InvalidInputError("the codec needs a tensor 'ctx'", field="tensors")
        self._check_ctx(unit.context["ctx"].shape, spec.shape, "tensors[0].shape")
        return (TensorSpec(name=self.outputs[0].name, dtype=spec.dtype, shape=self._out_shape(spec.shape)),)

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """See `FeatureCodec.decompress`.

        Raises:
            CodecMismatchError: a context other than the encoder's.
        """
        return [{self.outputs[0].name: self._decompress(unit)} for unit in batch]

    def _decompress(self, unit: Unit) -> Array:
        (spec,) = unit.specs
        ctx = _samples(unit.context["ctx"], "ctx", "tensors[0]")
        if context_hash(ctx) != unit.ctx_hash:
            raise CodecMismatchError("the context is not the one that the unit was made with", field="unit.ctx_hash")
        context, z_shape, samples = to_torch(ctx, self.device), tuple(unit.pstate["z_shape"]), _count(spec.shape)
        rows = [unit.strings[start : start + samples] for start in range(0, len(unit.strings), samples)]
        shape: Any = {"y": spec.shape[-2:], "hyper": z_shape} if self._codes_y else z_shape
        out = self._decode(lambda: self._net.decompress(rows, shape, context))
        result = out["y_hat" if self._codes_y else "params"]
        return from_torch(result, self._out_shape(spec.shape), spec.dtype)

    def _out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-3], self.outputs[0].channels, *shape[-2:])

    def _shape_problem(self, shape: tuple[int, ...]) -> str:
        if len(shape) not in (3, 4) or min(shape) < 1 or shape[-3] != self._y:
            return f"h has shape {shape}, not {_LAYOUT} with {self._y} channels"
        if _count(shape) * shape[-2] * shape[-1] > _MAX_POSITIONS:
            return f"h of shape {shape} has more than {_MAX_POSITIONS} positions"
        return ""

    def _check_ctx(self, shape: tuple[int, ...], h: tuple[int, ...], field: str) -> None:
        expected = (*h[:-3], self._ctx, *h[-2:])
        if shape != expected:
            raise InvalidInputError(f"ctx has shape {shape}, not {expected} for h of {h}", field=field)

    def _smallest(self) -> tuple[dict[str, Array], CodingParams]:
        h, ctx = np.zeros((self._y, 4, 4), np.float32), np.zeros((self._ctx, 4, 4), np.float32)
        return {"h": h, "ctx": ctx}, CodingParams()


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 4 else 1


def _samples(array: Array, name: str, field: str) -> Any:
    x = as_float32(array, name, field)
    return x.reshape(-1, *x.shape[-3:])


def load(spec: CodecSpec) -> LatentCtxCodec:
    """Loads a codec of either family; see `load_network` for its options."""
    with torch.no_grad():
        return LatentCtxCodec(load_network(spec))
