"""Family `feature_hyperprior`: features packed into a one-channel map, through `FeatureScaleHyperprior`.

A unit has the y strings of its samples, then their z strings, and carries bounds and packing: it decodes with whatever
the codec's own are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from mpcompress.codec import Array, Coded, CodingParams, TensorPort, TensorSpec, Unit
from mpcompress.errors import CorruptBitstreamError, InvalidInputError
from mpcompress.latent_codecs import FeatureScaleHyperprior
from mpcompress.neural.arrays import DTYPES, as_float32, from_torch, named, to_torch
from mpcompress.neural.base import Loaded, NeuralCodec, check_payload, load_network, take_grid
from mpcompress.neural.maps import MapForm
from mpcompress.picture.packing import packing
from mpcompress.picture.quantize import Bounds
from mpcompress.registry import CodecSpec

__all__ = ["FeatureHyperpriorCodec", "load"]

_SETTINGS = ("model_type", "trun_low", "trun_high")
_PARAMETERS = ("trun_high", "trun_low")
_FACTOR = 64


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A checked unit."""

    form: MapForm
    samples: int
    z_shape: tuple[int, int]
    size: tuple[int, int]


class FeatureHyperpriorCodec(NeuralCodec):
    """Adapter of `FeatureScaleHyperprior`.

    Args:
        loaded: its settings are `model_type`, `trun_low` and `trun_high`; without a model type it takes maps.
    """

    def __init__(self, loaded: Loaded) -> None:
        super().__init__(loaded)
        self._net = cast(FeatureScaleHyperprior, loaded.module)
        self._form = MapForm.of(loaded.settings)
        self.parameters = _PARAMETERS if self._form.layout else ()
        layout = (
            "one feature tensor, axes as its packing takes them" if self._form.layout else "(1, H, W) or (B, 1, H, W)"
        )
        self.inputs = (TensorPort(name="h", ranks=self._form.ranks, dtypes=DTYPES, layout=layout),)
        self.outputs = (replace(self.inputs[0], name="h_hat"),)

    @property
    def pstate_kind(self) -> str:
        """See `FeatureCodec.pstate_kind`."""
        return "hyperprior"

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """See `FeatureCodec.resolve`. Family parameters: trun_low and trun_high, one each or one per layer.

        token_res and prefix_tokens have no bearing on a map and are dropped.
        """
        given = self._refuse(params, known=self.parameters)
        index, h = named(specs, "h")
        try:
            family: tuple[tuple[str, Any], ...] = ()
            form = self._asked(given)
            if given:
                bounds = cast(Bounds, form.bounds)
                family = (("trun_high", bounds.high), ("trun_low", bounds.low))
            shape = form.shape(h.shape)
        except InvalidInputError as error:
            bounds_at_fault = error.field in _PARAMETERS
            field = f"params.hyperprior.{error.field}" if bounds_at_fault else f"tensors[{index}].shape"
            raise InvalidInputError(error.message, field=field) from error
        self._check_size(shape, f"tensors[{index}].shape")
        return CodingParams(family=family)

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """See `FeatureCodec.compress`. The class codes one map at a time: a batch gives the strings of single calls."""
        form = self._asked(dict(params.family))
        return [self._compress(as_float32(item["h"], "h"), form) for item in batch]

    def _compress(self, h: Any, form: MapForm) -> Coded:
        maps = to_torch(form.pack(h), self.device)
        out = self._encode(lambda: self._net.compress(maps))
        z_shape, size = tuple(out["shape"]), tuple(maps.shape[2:])
        pstate: dict[str, Any] = {"z_shape": z_shape}
        if size != (_FACTOR * z_shape[0], _FACTOR * z_shape[1]):
            pstate["map_shape"] = size
        if form.layout is not None and form.bounds is not None:
            pstate |= {
                "packing": form.layout.name,
                "trun_low": list(form.bounds.low),
                "trun_high": list(form.bounds.high),
            }
        if maps.shape[0] > 1:
            pstate["batch"] = maps.shape[0]
        return Coded(strings=[*out["strings"][0], *out["strings"][1]], pstate=pstate)

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """See `FeatureCodec.check_unit`."""
        if len(unit.specs) != 1 or unit.ctx_hash or unit.specs[0].dtype not in DTYPES:
            raise CorruptBitstreamError("a map unit has one float tensor and no context", field="unit.tensors")
        (spec,) = unit.specs
        job = _read_state(unit.pstate, spec.shape)
        self._check_size((job.samples, *job.size), "unit.tensors[0].shape")
        z_side = job.z_shape[0] * job.z_shape[1]
        symbols = job.samples * z_side * (int(self._net.N) + 16 * int(self._net.M))
        check_payload(unit.strings, 2 * job.samples, symbols)
        return (replace(spec, name="h_hat"),)

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """See `FeatureCodec.decompress`."""
        return [{"h_hat": self._decompress(unit)} for unit in batch]

    def _decompress(self, unit: Unit) -> Array:
        (spec,) = unit.specs
        job = _read_state(unit.pstate, spec.shape)
        strings = [unit.strings[: job.samples], unit.strings[job.samples :]]
        out = self._decode(lambda: self._net.decompress(strings, job.z_shape, job.size))
        maps = out["x_hat"].cpu().numpy()
        return from_torch(torch.from_numpy(job.form.unpack(maps, spec.shape)), spec.shape, spec.dtype)

    def _asked(self, given: Mapping[str, Any]) -> MapForm:
        return self._form.with_bounds(given.get("trun_low", ()), given.get("trun_high", ())) if given else self._form

    def _check_size(self, shape: tuple[int, int, int], field: str) -> None:
        samples, height, width = shape
        padded = samples * -(-height // _FACTOR) * -(-width // _FACTOR) * _FACTOR**2
        if padded > self._net.max_positions:
            raise InvalidInputError(
                f"{samples} maps of {height} x {width}: more than {self._net.max_positions} positions", field=field
            )

    def _smallest(self) -> tuple[dict[str, Array], CodingParams]:
        layers = len(self._form.bounds.low) if self._form.bounds else 1
        tokens = self._form.layout is not None and 2 in self._form.ranks
        shape = (1, layers, 2, 32) if tokens else (1, 1, 64, 64)
        return {"h": np.zeros(shape, np.float32)}, CodingParams()


def _read_state(given: Mapping[str, Any], shape: tuple[int, ...]) -> _Job:
    """What a unit says about its maps. Raises CorruptBitstreamError."""
    pstate = dict(given)
    z_shape, size = take_grid(pstate, "z_shape"), take_grid(pstate, "map_shape")
    name, batch = pstate.pop("packing", ""), pstate.pop("batch", 1) or 1
    low, high = pstate.pop("trun_low", []), pstate.pop("trun_high", [])
    if pstate or z_shape is None:
        said = f"unknown {sorted(map(str, pstate))}" if pstate else "z_shape is missing"
        raise CorruptBitstreamError(f"state: {said}", field="unit.pstate")
    try:
        layout = packing(name) if name else None
        form = MapForm(layout=layout, bounds=Bounds.of(low, high) if low or high or layout else None)
        expected = form.shape(shape)
    except InvalidInputError as error:
        raise CorruptBitstreamError(error.message, field="unit.pstate") from error
    size = size or (_FACTOR * z_shape[0], _FACTOR * z_shape[1])
    if (batch, *size) != expected or (-(-size[0] // _FACTOR), -(-size[1] // _FACTOR)) != z_shape:
        raise CorruptBitstreamError(
            f"{batch} maps of {size} with z of {z_shape} do not make a tensor of {shape}", field="unit.pstate"
        )
    return _Job(form=form, samples=batch, z_shape=z_shape, size=size)


def load(spec: CodecSpec) -> FeatureHyperpriorCodec:
    """Loads a codec. Options, over those of its file: model_type, trun_low, trun_high; see also `load_network`."""
    with torch.no_grad():
        return FeatureHyperpriorCodec(load_network(spec, settings=_SETTINGS))
