"""Families `vit_union` and `vit_union_ctx`: the documented ViT codecs over the wire.

One item is (L, C) or (B, L, C), L = prefix tokens + H * W; a context map is (ctx_dim, H, W) or (B, ctx_dim, H, W). The
streams of a unit are those of the documented ``strings``, in order: for each list in ``y`` its B strings, then z's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from mpcompress.codec import Array, Coded, CodingParams, TensorPort, TensorSpec, Unit
from mpcompress.errors import CodecMismatchError, CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs._vit_base import VitCodecBase, VitGeometry
from mpcompress.neural.arrays import DTYPES, as_float32, context_hash, from_torch, named, to_torch
from mpcompress.neural.base import Loaded, NeuralCodec, check_payload, load_network, take_grid
from mpcompress.registry import CodecSpec

__all__ = ["VitUnionFeatureCodec", "load"]

MAX_TOKENS = 1 << 14
"""Patch tokens of one sample: attention takes time by their square."""

_MAX_ITEM_TOKENS = 1 << 16


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A checked unit: B samples of a geometry."""

    samples: int
    geometry: VitGeometry


class VitUnionFeatureCodec(NeuralCodec):
    """Adapter of `VitUnionLatentCodec` and `VitUnionLatentCodecWithCtx`."""

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._net: Any = cast(VitCodecBase, loaded.module)
        self._ctx_dim: int = getattr(loaded.module, "ctx_dim", 0)
        self.prefix_tokens = int(self._net.num_prefix_tokens)
        self._lists = 2 * len(self._net.groups)
        channels = int(self._net.h_dim)
        port = TensorPort(name="h", ranks=(2, 3), dtypes=DTYPES, channels=channels, layout="(L, C) or (B, L, C)")
        self.inputs = (port,)
        self.outputs = (replace(port, name="h_hat"),)
        if self._ctx_dim:
            layout = "(C, H, W) or (B, C, H, W)"
            ctx = TensorPort(name="ctx", ranks=(3, 4), dtypes=DTYPES, channels=self._ctx_dim, layout=layout)
            self.inputs += (ctx,)
            self.outputs += (replace(ctx, name="h_hat_share", channels=channels),)

    @property
    def pstate_kind(self) -> str:
        """See `FeatureCodec.pstate_kind`."""
        return "vit_union"

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """See `FeatureCodec.resolve`. No family parameters."""
        self._refuse(params)
        index, h = named(specs, "h")
        problem = self._shape_problem(h.shape)
        if problem:
            raise InvalidInputError(problem, field=f"tensors[{index}].shape")
        prefix = self.prefix_tokens if params.prefix_tokens is None else params.prefix_tokens
        if prefix != self.prefix_tokens:
            said = f"codec {self.id} has {self.prefix_tokens} prefix tokens, not {prefix}"
            raise InvalidInputError(said, field="params.prefix_tokens")
        grid = params.token_res or self.token_res
        patches = h.shape[-2] - prefix
        if grid is None or grid[0] * grid[1] != patches:
            said = "no grid is given and the codec has none" if grid is None else f"not a grid of {grid[0]} x {grid[1]}"
            raise InvalidInputError(
                f"{h.shape[-2]} tokens less {prefix} prefix tokens are {patches}: {said}; give token_res",
                field="params.token_res",
            )
        self._check_tokens(h.shape, grid, f"tensors[{index}].shape")
        if self._ctx_dim:
            index, ctx = named(specs, "ctx")
            self._check_ctx(ctx.shape, h.shape, grid, f"tensors[{index}].shape")
        return CodingParams(token_res=grid, prefix_tokens=prefix)

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """See `FeatureCodec.compress`. The class codes sample by sample: a batch gives the strings of single calls."""
        return [self._compress(item, params) for item in batch]

    def _compress(self, item: Mapping[str, Array], params: CodingParams) -> Coded:
        h = as_float32(item["h"], "h")
        args, ctx_hash = [to_torch(h.reshape(-1, *h.shape[-2:]), self.device)], b""
        if self._ctx_dim:
            ctx = as_float32(item["ctx"], "ctx", "tensors[1]")
            ctx = ctx.reshape(-1, *ctx.shape[-3:])
            ctx_hash = self._context_hash(ctx)
            args.append(to_torch(ctx, self.device))
        grid = params.token_res
        if grid is None:
            raise InvalidInputError("params are not resolved", field="params")
        out = self._encode(lambda: self._net.compress(*args, token_res=grid))
        return Coded(
            strings=self._streams(out["strings"]), pstate=_write_state(VitGeometry(token_res=grid)), ctx_hash=ctx_hash
        )

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """See `FeatureCodec.check_unit`."""
        if len(unit.specs) != 1 or bool(unit.ctx_hash) != bool(self._ctx_dim):
            said = f"{len(unit.specs)} tensors, {'a' if unit.ctx_hash else 'no'} context"
            raise CorruptBitstreamError(f"a unit of {said} is not one of codec {self.id}", field="unit.tensors")
        (spec,) = unit.specs
        job = self._job(unit)
        if self._ctx_dim:
            if "ctx" not in unit.context:
                raise InvalidInputError("the codec needs a tensor 'ctx'", field="tensors")
            self._check_ctx(unit.context["ctx"].shape, spec.shape, job.geometry.token_res, "tensors[0].shape")
        outputs: tuple[TensorSpec, ...] = (replace(spec, name="h_hat"),)
        if self._ctx_dim:
            shape = (*spec.shape[:-2], spec.shape[-1], *job.geometry.token_res)
            outputs += (TensorSpec(name="h_hat_share", dtype=spec.dtype, shape=shape),)
        return outputs

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """See `FeatureCodec.decompress`. Units of one grid share the synthesis.

        Raises:
            CodecMismatchError: a context other than the encoder's.
        """
        results: list[dict[str, Array]] = [{} for _ in batch]
        for members in _same_geometry([self._job(unit) for unit in batch]):
            units = [batch[index] for index, _ in members]
            for (index, _), found in zip(members, self._decompress(units, [job for _, job in members]), strict=True):
                results[index] = found
        return results

    def _decompress(self, units: Sequence[Unit], jobs: Sequence[_Job]) -> list[dict[str, Array]]:
        geometry = jobs[0].geometry
        rows: list[list[bytes]] = [[] for _ in range(self._lists + 1)]
        for unit, job in zip(units, jobs, strict=True):
            for number, row in enumerate(rows):
                row += unit.strings[number * job.samples : (number + 1) * job.samples]
        strings = self._nested(rows)
        pstate = {
            "y_shape": geometry.y_shapes(self._net.groups),
            "z_shape": geometry.z,
            "token_res": geometry.token_res,
        }
        context = (
            [to_torch(np.concatenate([self._context(unit) for unit in units]), self.device)] if self._ctx_dim else []
        )
        out = self._decode(lambda: self._net.decompress(strings, pstate, *context))
        results, start = [], 0
        for unit, job in zip(units, jobs, strict=True):
            (spec,) = unit.specs
            part = slice(start, start + job.samples)
            found = {"h_hat": from_torch(out["h_hat"][part], spec.shape, spec.dtype)}
            if self._ctx_dim:
                shape = (*spec.shape[:-2], spec.shape[-1], *geometry.token_res)
                found["h_hat_share"] = from_torch(out["h_hat_share"][part], shape, spec.dtype)
            results.append(found)
            start += job.samples
        return results

    def _streams(self, strings: Any) -> list[bytes]:
        """The documented strings as the streams of a unit."""
        return [string for row in (*strings["y"], *strings["z"]) for string in row]

    def _nested(self, rows: list[list[bytes]]) -> Any:
        """Lists of strings, one string per sample in each, as the documented strings."""
        return {"y": rows[:-1], "z": [rows[-1]]}

    def _context_hash(self, ctx: NDArray[np.float32]) -> bytes:
        """What tells a context (B, C, H, W) from another."""
        return context_hash(ctx)

    def _context(self, unit: Unit) -> Any:
        ctx = as_float32(unit.context["ctx"], "ctx")
        ctx = ctx.reshape(-1, *ctx.shape[-3:])
        if self._context_hash(ctx) != unit.ctx_hash:
            raise CodecMismatchError("the context is not the one that the unit was made with", field="unit.ctx_hash")
        return ctx

    def _job(self, unit: Unit) -> _Job:
        (spec,) = unit.specs
        problem = self._shape_problem(spec.shape)
        if problem or spec.dtype not in DTYPES:
            raise CorruptBitstreamError(problem or f"h is {spec.dtype}", field="unit.tensors[0]")
        geometry = self._read_state(unit.pstate)
        grid = geometry.token_res
        if spec.shape[-2] != self.prefix_tokens + grid[0] * grid[1]:
            said = f"{self.prefix_tokens} prefix tokens and a grid of {grid[0]} x {grid[1]}"
            raise CorruptBitstreamError(f"{spec.shape[-2]} tokens are not {said}", field="unit.tensors[0].shape")
        self._check_tokens(spec.shape, grid, "unit.tensors[0].shape")
        samples = spec.shape[0] if len(spec.shape) == 3 else 1
        y_side, z_side = geometry.y[0] * geometry.y[1], geometry.z[0] * geometry.z[1]
        symbols = samples * (self._net.y_dim * y_side + self._net.z_dim * z_side)
        check_payload(unit.strings, samples * (self._lists + 1), symbols)
        return _Job(samples=samples, geometry=geometry)

    def _read_state(self, given: Mapping[str, Any]) -> VitGeometry:
        pstate = dict(given)
        y_shape, z_shape = take_grid(pstate, "y_shape"), take_grid(pstate, "z_shape")
        y_pad, grid = take_grid(pstate, "y_pad"), take_grid(pstate, "token_res")
        prefix = pstate.pop("prefix_tokens", self.prefix_tokens)
        if pstate or y_shape is None or z_shape is None:
            said = f"unknown {sorted(map(str, pstate))}" if pstate else "y_shape or z_shape is missing"
            raise CorruptBitstreamError(f"state: {said}", field="unit.pstate")
        geometry = VitGeometry(token_res=grid or (2 * y_shape[0], 2 * y_shape[1]))
        if (
            (y_shape, z_shape) != (geometry.y, geometry.z)
            or y_pad not in (None, y_shape)
            or prefix != self.prefix_tokens
        ):
            raise CorruptBitstreamError(
                f"the state contradicts itself or this codec: a grid of {geometry.token_res} has y of {geometry.y} "
                f"and z of {geometry.z}, and this codec {self.prefix_tokens} prefix tokens",
                field="unit.pstate",
            )
        return geometry

    def _shape_problem(self, shape: tuple[int, ...]) -> str:
        if len(shape) not in (2, 3) or min(shape) < 1:
            return f"h has shape {shape}, not (L, C) or (B, L, C)"
        if shape[-1] != self._net.h_dim:
            return f"h has {shape[-1]} channels; codec {self.id} takes {self._net.h_dim}"
        return ""

    def _check_tokens(self, shape: tuple[int, ...], grid: tuple[int, int], field: str) -> None:
        samples = shape[0] if len(shape) == 3 else 1
        if grid[0] * grid[1] > MAX_TOKENS or samples * grid[0] * grid[1] > _MAX_ITEM_TOKENS:
            raise InvalidInputError(
                f"{samples} samples of {grid[0]} x {grid[1]} tokens: at most {MAX_TOKENS} tokens in a sample and "
                f"{_MAX_ITEM_TOKENS} in an item",
                field=field,
            )

    def _check_ctx(self, shape: tuple[int, ...], h: tuple[int, ...], grid: tuple[int, int], field: str) -> None:
        expected = (*h[:-2], self._ctx_dim, *grid)
        if shape != expected:
            raise InvalidInputError(f"ctx has shape {shape}, not {expected} for h of {h}", field=field)

    def _smallest(self) -> tuple[dict[str, Array], CodingParams]:
        grid = (2, 2)
        item: dict[str, Array] = {"h": np.zeros((self.prefix_tokens + 4, self._net.h_dim), np.float32)}
        if self._ctx_dim:
            item["ctx"] = np.zeros((self._ctx_dim, *grid), np.float32)
        return item, CodingParams(token_res=grid, prefix_tokens=self.prefix_tokens)


def _write_state(geometry: VitGeometry) -> dict[str, Any]:
    """What the documented pstate says, less what follows when it is absent."""
    state: dict[str, Any] = {"y_shape": geometry.y, "z_shape": geometry.z}
    if geometry.token_res != geometry.decoded:
        state["token_res"] = geometry.token_res
    return state


def _same_geometry(jobs: Sequence[_Job]) -> list[list[tuple[int, _Job]]]:
    """Jobs with their places, those of one grid together as far as one call takes them."""
    groups: list[list[tuple[int, _Job]]] = []
    open_groups: dict[tuple[int, int], tuple[list[tuple[int, _Job]], int]] = {}
    for index, job in enumerate(jobs):
        grid = job.geometry.token_res
        tokens = job.samples * grid[0] * grid[1]
        group, held = open_groups.get(grid, ([], _MAX_ITEM_TOKENS))
        if held + tokens > _MAX_ITEM_TOKENS:
            group, held = [], 0
            groups.append(group)
        group.append((index, job))
        open_groups[grid] = group, held + tokens
    return groups


def load(spec: CodecSpec) -> VitUnionFeatureCodec:
    """Loads a codec of family `vit_union` or `vit_union_ctx`; see `load_network` for its options."""
    with torch.no_grad():
        return VitUnionFeatureCodec(load_network(spec))
