"""Family `klt`: a calibrated separable transform codec for token features (L, C), such as those of a ViT.

    compress     means, KLT over channels, DCT over the token grid ──► dead-zone quantiser ──► rANS, static tables
    decompress   rANS ──► centroids ──► inverse DCT, inverse KLT, means

One stream per tensor; B samples of a (B, L, C) tensor share it. Which coefficients are coded, and with which table,
follows from the codec's integer scales and the unit's state alone, so a stream decodes to the same symbols everywhere.
KLT and DCT for features: Goyal 2001, "Theoretical foundations of transform coding"; rANS: Duda 2013, arXiv 1311.2540.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import (
    Array,
    CancelToken,
    Coded,
    CodingParams,
    FeatureCodec,
    Report,
    TensorPort,
    TensorSpec,
    Unit,
)
from mpcompress.entropy.rans import decode, encode
from mpcompress.errors import CodecFileError, CorruptBitstreamError, NonFiniteError, OutOfRangeError
from mpcompress.registry import CodecSpec
from mpcompress.transforms.klt_model import BITSTREAM_VERSION, FAMILY, MAX_GAIN, UNITS_PER_OCTAVE, KltModel
from mpcompress.transforms.klt_state import DTYPES, KltState, read_state, resolve_params, write_state
from mpcompress.transforms.klt_symbols import Steps, SymbolPlan, SymbolPlanner, step_size
from mpcompress.transforms.klt_transform import MAX_SYMBOL, KltTransform
from mpcompress.transforms.tiling import FloatArray, Layout

_DTYPES = {name: np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name) for name in DTYPES}
_LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
_MAX_SYMBOL_BYTES = 10  # escape, side, 32 bits of prefix and 31 of suffix
_DISTANCE_COMPONENTS = 64
_DISTANCE_TOKENS = 64  # energies of fewer tokens say little
_DROPPED_LIMIT = 0.15  # mean square of the coefficients left out, in squared steps, above which the gain is raised


class KltCodec(FeatureCodec):
    """A calibrated codec; see the module. Make it with `load`, or from a `KltModel`.

    Args:
        model: the calibrated numbers.
        file: the bytes they were read from; None to write them anew.
    """

    family = FAMILY
    bitstream_version = BITSTREAM_VERSION
    arithmetic = "exact"
    parameters = ("prefix_qp_offset_eighths",)
    staged = True

    def __init__(self, model: KltModel, file: bytes | None = None) -> None:
        self.model = model
        self.id = model.id
        self.description = model.description
        self.fingerprint = model.fingerprint()
        dtypes, layout = DTYPES, "(L, C) or (B, L, C)"
        self.inputs = (TensorPort(name="h", ranks=(2, 3), dtypes=dtypes, channels=model.channels, layout=layout),)
        self.outputs = (replace(self.inputs[0], name="h_hat"),)
        self.qp = model.qp
        self.token_res = model.token_res
        self.prefix_tokens = model.prefix_tokens
        self._file = file
        self._planner = SymbolPlanner(model)
        self._transform = KltTransform(model)
        # Both directions may be at work at once, in two threads, and a transform has buffers of its own.
        self._synthesis = KltTransform(model)

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """See `FeatureCodec.resolve`. Family parameter: prefix_qp_offset_eighths, -384 to 384."""
        return resolve_params(self.model, specs, params)

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """See `FeatureCodec.compress`. Items are (L, C) or (B, L, C), resolved to `params`."""
        return [self._analysed(item["h"], params)() for item in batch]

    def batch_key(self, specs: Sequence[TensorSpec], params: CodingParams | None) -> Hashable:
        """Any shapes and params share a batch.

        Every item has matrix products of its own: in one product over the rows of several items the rounding of a
        row depends on where it lies, in the kernels of some processors, and a rounding can change a symbol.
        """
        return self.id

    def begin_compress(
        self, batch: Sequence[Mapping[str, Array]], params: CodingParams, cancel: Sequence[CancelToken]
    ) -> list[Callable[[], Coded]]:
        """First stage: transform and quantiser; second: rANS."""
        return [self._analysed(item["h"], params) for item in batch]

    def begin_decompress(
        self, batch: Sequence[Unit], cancel: Sequence[CancelToken]
    ) -> list[Callable[[], dict[str, Array]]]:
        """First stage: rANS; second: the inverse transform."""
        return [self._decoded(unit) for unit in batch]

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """See `FeatureCodec.check_unit`."""
        state, spec = read_state(self.model, unit)
        layout, steps, samples = self._coding(state, spec)
        size, least = len(unit.strings[0]), self._planner.least_bytes(layout, steps, samples)
        most = 16 + _MAX_SYMBOL_BYTES * spec.elements
        if not least <= size <= most:
            said = f"a payload of {size} bytes for {spec.elements} elements, not {least} to {most}"
            raise CorruptBitstreamError(said, field="payload")
        return (replace(spec, name="h_hat"),)

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """See `FeatureCodec.decompress`."""
        return [self._decoded(unit)() for unit in batch]

    def warm_up(self) -> None:
        """Compiles the entropy coder and makes the plan of the codec's own grid."""
        height, width = self.token_res or (1, self.model.tile[1])
        h = np.zeros((self.prefix_tokens + height * width, self.model.channels), np.float32)
        spec = TensorSpec(name="h", dtype="float32", shape=h.shape)
        params = CodingParams(token_res=(height, width), prefix_tokens=self.prefix_tokens)
        (coded,) = self.compress([{"h": h}], self.resolve([spec], params))
        self.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])

    def codec_file(self) -> bytes:
        """The safetensors file."""
        return self.model.to_bytes() if self._file is None else self._file

    def _analysed(self, h: Array, params: CodingParams) -> Callable[[], Coded]:
        """Symbols of an item; the result codes them."""
        x = _samples(h)
        state = KltState.of(params)
        layout = Layout(state.prefix, state.height, state.width, self.model.tile)
        coefficients, plan, state, distance = self._analyse(x, layout, state)
        symbols = []
        for sample in coefficients:
            quantised = self._transform.quantise(sample, plan)
            if quantised is None:
                raise _too_large(h)
            symbols.append(quantised)
        warnings: tuple[str, ...] = ()
        patches = x.shape[0] * layout.height * layout.width
        if distance > self.model.domain_bound and patches >= _DISTANCE_TOKENS:
            warnings = (
                f"features are unlike those that {self.id} was calibrated on ({distance:.1f} times as far from "
                f"them as is typical): expect more bits or a larger error; calibrate a codec for them",
            )
        report = Report(qp_eighths=state.qp_eighths, domain_distance=distance, warnings=warnings)
        pstate = write_state(self.model, state)

        def code() -> Coded:
            stream = encode(np.concatenate(symbols), np.tile(plan.rows, len(symbols)), self.model.tables)
            return Coded(strings=[stream], pstate=pstate, report=report)

        return code

    def _analyse(
        self, x: FloatArray, layout: Layout, state: KltState
    ) -> tuple[list[FloatArray], SymbolPlan, KltState, float]:
        """Coefficients of every sample, with the smallest gain at which what is left out does not matter."""
        centred = [self._transform.centre(sample, layout) for sample in x]
        with np.errstate(over="ignore"):
            total = sum(float(np.vdot(sample, sample)) for sample in centred)
        if not math.isfinite(total):
            raise _too_large(x if x.shape[0] > 1 else x[0])
        analysed: list[FloatArray] = []
        while True:
            steps = Steps.of(self.model, state.qp_eighths, state.prefix_offset_eighths, state.gain_eighths)
            plan = self._planner.plan(layout, steps)
            depth = max(plan.depth, min(self.model.components, _DISTANCE_COMPONENTS))
            if not analysed or analysed[0].shape[1] != depth:
                analysed = [self._transform.analyse(sample, layout, depth) for sample in centred]
            coefficients = [sample[:, : plan.depth] for sample in analysed]
            coded = sum(float(np.square(sample.ravel()[plan.index]).sum()) for sample in coefficients)
            left_out = x.shape[0] * (layout.positions * self.model.components - plan.rows.size)
            limit = _DROPPED_LIMIT * left_out * step_size(steps.patch) ** 2
            # The basis is orthonormal up to rounding, which shows in the difference of two large energies.
            if total - coded <= limit + 1e-4 * total or state.gain_eighths + UNITS_PER_OCTAVE > MAX_GAIN:
                patches = total - sum(
                    float(np.vdot(sample[: layout.prefix], sample[: layout.prefix])) for sample in centred
                )
                return coefficients, plan, state, self._distance(analysed, layout, patches)
            state = replace(state, gain_eighths=state.gain_eighths + UNITS_PER_OCTAVE)

    def _distance(self, coefficients: list[FloatArray], layout: Layout, total: float) -> float:
        """How far the patches' energies are from the expected ones, up or down: 1 is typical.

        Half of it is the first components, one by one; half is all the others together, of which `total` is known.
        """
        energy, count = self.model.energy, len(coefficients) * (layout.positions - layout.prefix)
        first = min(self.model.components, _DISTANCE_COMPONENTS)
        spent = np.zeros(first, np.float64)
        for sample in coefficients:
            patches = sample[layout.prefix :, :first]
            spent += np.einsum("lk,lk->k", patches, patches)
        distance = float(_either_way(spent / count / energy[:first]).mean())
        if first < self.model.components:
            rest = (total - spent.sum()) / count / energy[first:].sum(dtype=np.float64)
            distance = (distance + float(_either_way(rest))) / 2
        return distance / self.model.domain_typical

    def _coding(self, state: KltState, spec: TensorSpec) -> tuple[Layout, Steps, int]:
        """Layout of a sample, steps, and the number of samples."""
        layout = Layout(state.prefix, state.height, state.width, self.model.tile)
        steps = Steps.of(self.model, state.qp_eighths, state.prefix_offset_eighths, state.gain_eighths)
        return layout, steps, spec.shape[0] if len(spec.shape) == 3 else 1

    def _decoded(self, unit: Unit) -> Callable[[], dict[str, Array]]:
        """Symbols of a unit; the result turns them into features."""
        state, spec = read_state(self.model, unit)
        layout, steps, samples = self._coding(state, spec)
        plan = self._planner.plan(layout, steps)
        symbols = decode(unit.strings[0], np.tile(plan.rows, samples), self.model.tables)
        if symbols.size and max(int(symbols.max()), -int(symbols.min())) > MAX_SYMBOL:
            raise CorruptBitstreamError("a symbol is beyond +-2^30", field="payload")

        def synthesise() -> dict[str, Array]:
            dtype, largest = _DTYPES[spec.dtype], _LARGEST[spec.dtype]
            out = np.empty((samples, layout.positions, self.model.channels), dtype)
            for sample, part in zip(out, symbols.reshape(samples, -1), strict=True):
                x_hat = self._synthesis.synthesise(self._synthesis.dequantise(part, plan), layout)
                if dtype.itemsize == 2:
                    np.clip(x_hat, -largest, largest, out=x_hat)
                sample[...] = x_hat
            return {"h_hat": out.reshape(spec.shape)}

        return synthesise


def _samples(h: Array) -> FloatArray:
    """(L, C) or (B, L, C) of any of the dtypes to float32 (B, L, C); refuses NaN and infinity."""
    x = np.ascontiguousarray(h, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(x.sum())
    # A finite sum has finite terms; only another is worth a look at each.
    if not math.isfinite(total) and not (finite := np.isfinite(x)).all():
        where = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), x.shape))
        raise NonFiniteError(f"h{list(where)} is {float(x[where])}", field="tensors[0]")
    return x.reshape(-1, *x.shape[-2:])


def _either_way(ratio: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Ratios to 1, above it: twice and half count the same."""
    bounded = np.clip(ratio, 1e-6, 1e30)
    return np.maximum(bounded, 1 / bounded)


def _too_large(h: Array) -> OutOfRangeError:
    """Names the largest element."""
    magnitude = np.abs(np.asarray(h, np.float32))
    where = tuple(int(i) for i in np.unravel_index(int(np.argmax(magnitude)), magnitude.shape))
    return OutOfRangeError(f"h{list(where)} is {float(h[where]):g}: too large for this qp", field="tensors[0]")


def load(spec: CodecSpec) -> KltCodec:
    """Loads a codec file. Raises CodecFileError for a damaged one, and for one made for another codec id."""
    data = spec.weights_path().read_bytes()
    model = KltModel.from_bytes(data)
    if model.id != spec.id:
        raise CodecFileError(f"the file of codec {spec.id} is that of codec {model.id}", field="id")
    return KltCodec(model, data)
