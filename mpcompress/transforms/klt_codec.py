"""Family `klt`: a calibrated transform codec for token features (L, C), such as those of a ViT, and for feature maps.

    compress     means ──► pyramid over the tokens ──► KLT over the channels ──► quantiser ──► rANS, modelled scales
    decompress   rANS ──► decoded values ──► inverse KLT ──► inverse pyramid ──► filter, if any ──► means

One stream per tensor; B samples of a (B, L, C) tensor share it. Which coefficients are coded, and with which table,
follows from integers: the codec's tables, the unit's state and the symbols before. So a stream decodes to the same
symbols everywhere. docs/format.md has the bitstream. KLT for features: Goyal 2001, "Theoretical foundations of
transform coding"; rANS: Duda 2013, arXiv 1311.2540; pyramid and contexts: see `klt_pyramid` and `klt_context`.
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
from mpcompress.entropy.ending import LONG
from mpcompress.errors import CodecFileError, CodingCancelledError, CorruptBitstreamError, NonFiniteError
from mpcompress.registry import CodecSpec
from mpcompress.transforms.half import narrow, widen
from mpcompress.transforms.klt_decoder import Decoded, StreamReader, Synthesis
from mpcompress.transforms.klt_encoder import Encoder
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_model import FAMILY, KltModel
from mpcompress.transforms.klt_model_file import read_model, write_model
from mpcompress.transforms.klt_sample import Coding
from mpcompress.transforms.klt_search import Item, search
from mpcompress.transforms.klt_state import DTYPES, KltState, Shape, read_state, resolve_params, write_state
from mpcompress.transforms.klt_statistics import StatisticsCache, Steps
from mpcompress.transforms.klt_together import shares, together
from mpcompress.transforms.scratch import Scratch

_DTYPES = {name: np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name) for name in DTYPES}
_LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
_MAX_SYMBOL_BYTES = 10  # escape, side, 32 bits of prefix and 31 of suffix

FloatArray = NDArray[np.float32]


class KltCodec(FeatureCodec):
    """A calibrated codec; see the module. Make it with `load`, or from a `KltModel`.

    Args:
        model: the calibrated numbers.
        file: the bytes they were read from; None to write them anew.
    """

    family = FAMILY
    arithmetic = "exact"
    parameters = ("effort", "prefix_qp_offset_eighths")
    staged = True

    def __init__(self, model: KltModel, file: bytes | None = None) -> None:
        self.model = model
        self.id = model.id
        self.description = model.description
        self.fingerprint = model.fingerprint()
        self.bitstream_version = model.bitstream_version
        layout = "(L, C), (B, L, C), (C, H, W) or (B, C, H, W)"
        self.inputs = (TensorPort(name="h", ranks=(2, 3, 4), dtypes=DTYPES, channels=model.channels, layout=layout),)
        self.outputs = (replace(self.inputs[0], name="h_hat"),)
        self.qp = model.qp
        self.token_res = model.token_res
        self.prefix_tokens = model.prefix_tokens
        self._file = file
        engine = Engine(model)
        # Both directions, and both stages of each, may be at work at once: each has buffers of its own.
        self._encoders = [Encoder(engine)]  # one for each place among items that are coded in step
        self._encoder_statistics = StatisticsCache(model)
        self._reader = StreamReader(engine)
        self._reader_statistics = StatisticsCache(model)
        self._synthesis = Synthesis(engine)
        self._engine = engine

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """See `FeatureCodec.resolve`. Family parameters: effort, 0 to 2; prefix_qp_offset_eighths, -384 to 384."""
        return resolve_params(self.model, specs, params)

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """See `FeatureCodec.compress`. Items are resolved to `params`."""
        return [code() for code in self._analysed(batch, [params] * len(batch))]

    def batch_key(self, specs: Sequence[TensorSpec], params: CodingParams | None) -> Hashable:
        """Any shapes and params share a batch, and the rows of small groups share matrix products.

        Products round every row alike, see `klt_products`; large groups gain nothing from company.
        """
        return self.id

    def begin_compress(
        self, batch: Sequence[Mapping[str, Array]], params: CodingParams, cancel: Sequence[CancelToken]
    ) -> list[Callable[[], Coded]]:
        """First stage: transform and quantiser; second: rANS."""
        return self._analysed(batch, [params] * len(batch), cancel)

    def begin_compress_mixed(
        self, batch: Sequence[Mapping[str, Array]], params: Sequence[CodingParams], cancel: Sequence[CancelToken]
    ) -> list[Callable[[], Coded]]:
        """As `begin_compress`; items of any params share products, see `klt_together`."""
        return self._analysed(batch, params, cancel)

    def begin_decompress(
        self, batch: Sequence[Unit], cancel: Sequence[CancelToken]
    ) -> list[Callable[[], dict[str, Array]]]:
        """First stage: rANS; second: the inverse transform."""
        return [self._decoded(unit) for unit in batch]

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """See `FeatureCodec.check_unit`."""
        _, spec, _ = read_state(self.model, unit)
        size, most = len(unit.strings[0]), 16 + _MAX_SYMBOL_BYTES * spec.elements
        if size > most or (size % 2 and self.model.ending == LONG):
            said = f"a payload of {size} bytes for {spec.elements} elements"
            raise CorruptBitstreamError(said, field="payload")
        return (replace(spec, name="h_hat"),)

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """See `FeatureCodec.decompress`."""
        return [self._decoded(unit)() for unit in batch]

    def warm_up(self) -> None:
        """Codes zeros on the codec's own grid, with and without its filter: plans and buffers are then there."""
        height, width = self.token_res or (1, 64)
        h = np.zeros((self.prefix_tokens + height * width, self.model.channels), np.float32)
        spec = TensorSpec(name="h", dtype="float32", shape=h.shape)
        for qp in (self.model.qp.default, self.model.qp.maximum):
            params = CodingParams(qp_eighths=qp, token_res=(height, width), prefix_tokens=self.prefix_tokens)
            (coded,) = self.compress([{"h": h}], self.resolve([spec], params))
            self.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])

    def codec_file(self) -> bytes:
        """The safetensors file."""
        return write_model(self.model) if self._file is None else self._file

    def _analysed(
        self, batch: Sequence[Mapping[str, Array]], params: Sequence[CodingParams], cancel: Sequence[CancelToken] = ()
    ) -> list[Callable[[], Coded]]:
        """Symbols of items; the results code them."""
        found: dict[int, Callable[[], Coded]] = {}
        for share in shares([item["h"].size for item in batch]):
            left = [number for number in share if not (cancel and cancel[number].is_set())]
            while len(self._encoders) < len(left):
                self._encoders.append(Encoder(self._engine))
            codings = [
                self._analysing(batch[number]["h"], params[number], encoder)
                for number, encoder in zip(left, self._encoders, strict=False)
            ]
            found.update(zip(left, together(self._engine.bases, codings), strict=True))
        return [found.get(number, _cancelled) for number in range(len(batch))]

    def _analysing(self, h: Array, params: CodingParams, encoder: Encoder) -> Coding[Callable[[], Coded]]:
        x = _finite(h, encoder.scratch)
        spec = TensorSpec(name="h", dtype="float32", shape=x.shape)
        shape = Shape.of(spec, self.model.channels)
        assert not isinstance(shape, str)
        item = Item(
            model=self.model,
            x=np.ascontiguousarray(shape.to_tokens(x)),
            params=params,
            encoder=encoder,
            statistics=self._encoder_statistics,
        )
        found = yield from search(item)
        warnings: tuple[str, ...] = ()
        distance = found.distance
        if distance is not None and distance > self.model.domain_bound:
            warnings = (
                f"features are unlike those that {self.id} was calibrated on ({distance:.1f} times as far from "
                f"them as is typical): expect more bits or a larger error; calibrate a codec for them",
            )
        report = Report(
            qp_eighths=found.state.qp_eighths,
            nmse=found.nmse,
            target_reached=found.target_reached,
            domain_distance=distance,
            warnings=warnings,
        )
        pstate = write_state(self.model, found.state, shape)

        def code() -> Coded:
            return Coded(strings=[found.stream or found.encode(self.model)], pstate=pstate, report=report)

        return code

    def read_symbols(self, unit: Unit) -> list[Decoded]:
        """The symbols of each sample of a unit, for those who look into streams."""
        state, _, shape = read_state(self.model, unit)
        return self._symbols(unit, state, shape)[0]

    def _symbols(self, unit: Unit, state: KltState, shape: Shape) -> tuple[list[Decoded], Steps]:
        steps = Steps.of(self.model, state.qp_eighths, state.prefix_offset_eighths, state.gain_eighths)
        plans = [self._engine.plan(state.prefix, state.height, state.width, 0)] * shape.samples
        if state.far:
            far = [state.far_of(sample).size for sample in range(shape.samples)]
            plans = [self._engine.plan(state.prefix, state.height, state.width, count) for count in far]
        return self._reader.read(unit.strings[0], plans, self._reader_statistics.at(steps)), steps

    def _decoded(self, unit: Unit) -> Callable[[], dict[str, Array]]:
        """Symbols of a unit; the result turns them into features."""
        state, spec, shape = read_state(self.model, unit)
        decoded, steps = self._symbols(unit, state, shape)

        def synthesise() -> dict[str, Array]:
            dtype, largest = _DTYPES[spec.dtype], _LARGEST[spec.dtype]
            out = np.empty((shape.samples, shape.tokens, shape.channels), dtype)
            for number, sample in enumerate(decoded):
                x_hat = self._synthesis.features(sample, steps, state.far_of(number), state.filter_strength)
                if dtype == np.float16:
                    narrow(x_hat, out[number])
                    continue
                if dtype.itemsize == 2 and not (x_hat.max() <= largest and x_hat.min() >= -largest):
                    np.clip(x_hat, -largest, largest, out=x_hat)
                out[number] = x_hat
            return {"h_hat": shape.from_tokens(out, spec.shape)}

        return synthesise


def _cancelled() -> Coded:
    raise CodingCancelledError("cancelled before it was transformed")


def _finite(h: Array, scratch: Scratch) -> FloatArray:
    """Any of the dtypes as float32, valid until the next item; refuses NaN and infinity."""
    if h.dtype == np.float16:
        x = scratch.take("input", *h.shape)
        if widen(h, x):
            return x
    x = np.ascontiguousarray(h, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(x.sum())
    # A finite sum has finite terms; only another is worth a look at each.
    if not math.isfinite(total) and not (finite := np.isfinite(x)).all():
        where = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), x.shape))
        raise NonFiniteError(f"h{list(where)} is {float(x[where])}", field="tensors[0]")
    return x


def load(spec: CodecSpec) -> KltCodec:
    """Loads a codec file. Raises CodecFileError for a damaged one, and for one made for another codec id."""
    data = spec.weights_path().read_bytes()
    model = read_model(data)
    if model.id != spec.id:
        raise CodecFileError(f"the file of codec {spec.id} is that of codec {model.id}", field="id")
    return KltCodec(model, data)
