"""Families `vtm`, `vvenc` and `x265`: features as pictures, behind the contract of every codec.

A codec is an engine with a packing, a sample depth and truncation bounds: all data, in its preset. Its units carry all
that decoding needs, so that any codec of the three families decodes the units of any other, whatever its preset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from mpcompress import metrics
from mpcompress.codec import (
    Array,
    Coded,
    CodingParams,
    FeatureCodec,
    ProgressToken,
    QpRange,
    Report,
    TensorPort,
    TensorSpec,
    Unit,
    fingerprint_of,
)
from mpcompress.errors import CodecFileError, CorruptBitstreamError, InvalidInputError
from mpcompress.picture.cancel import CancelToken
from mpcompress.picture.coding import PictureJob, Progress
from mpcompress.picture.decode import PictureDecoder
from mpcompress.picture.engine import check_sides, engine
from mpcompress.picture.features import decode_features, encode_features
from mpcompress.picture.packing import ChannelTiles, Packing, packing
from mpcompress.picture.quantize import Bounds
from mpcompress.picture.state import PictureState
from mpcompress.picture.strips import MAX_STRIPS
from mpcompress.picture.vtm_tools import VtmTools
from mpcompress.registry import CodecSpec

__all__ = ["PictureCodec", "PictureOptions", "load"]

BITSTREAM_VERSION = 1
_DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38}
_PARAMETERS = ("speed", "strips", "trun_high", "trun_low")


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """The options of a codec specification.

    Args:
        model_type: which packing: a model type or a packing's name.
        trun_low: lower truncation bound, one or one per layer.
        trun_high: upper ones.
        trun_flag: False measures the bounds of each tensor instead, one pair per bound given.
        bit_depth: of a sample.
        qp: default QP; None: the engine's.
        speed: default speed; empty: the engine's.
        parallel: processes that strips may use at once; 0: as many as cores.
        vtm_path: folder of VTM; None: VTM_HOME.
        task: what the bounds were chosen for, for the description.
    """

    model_type: str
    trun_low: Any = -20.0
    trun_high: Any = 20.0
    trun_flag: bool = True
    bit_depth: int = 10
    qp: int | None = None
    speed: str = ""
    parallel: int = 0
    vtm_path: str | None = None
    task: str = ""

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> PictureOptions:
        """From a specification. Raises CodecFileError for unknown keys."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(options.keys() - known)
        if unknown or "model_type" not in options:
            said = f"unknown option {unknown[0]!r}" if unknown else "option 'model_type' is missing"
            raise CodecFileError(f"picture codecs: {said}; known: {', '.join(sorted(known))}", field="options")
        return cls(**options)


class PictureCodec(FeatureCodec):
    """Features as a picture through an engine; see the module.

    `compress` and `decompress` take a cancel token and stop within a fraction of a second when it is set, without
    leaving a process or a file behind.

    Without its encoder it still decodes; then `unavailable_reason` says why it cannot compress, and `resolve` raises
    that.

    Args:
        codec_id: its id.
        family: the engine's name.
        options: see PictureOptions.

    Raises:
        CodecUnavailableError: no decoder for its pictures is installed; the message says what to do.
        InvalidInputError: options the engine does not take.
    """

    bitstream_version = BITSTREAM_VERSION
    arithmetic = "exact"
    parameters = _PARAMETERS

    def __init__(self, codec_id: str, family: str, options: PictureOptions) -> None:
        self.id = codec_id
        self.family = family
        self._options = options
        self._engine = engine(family, **({"vtm_path": options.vtm_path} if family == "vtm" else {}))
        self._decoder = PictureDecoder(VtmTools.find(options.vtm_path))
        self._packing = packing(options.model_type)
        self._bounds = Bounds.of(options.trun_low, options.trun_high)
        default_qp = self._engine.default_qp if options.qp is None else options.qp
        self._speed = options.speed or self._engine.default_speed
        self._engine.check(bit_depth=options.bit_depth, qp=default_qp, speed=self._speed)
        self._decoder.require(self._engine.format, options.bit_depth)
        low, high = self._engine.qp_range(options.bit_depth)
        self.qp = QpRange(minimum=8 * low, maximum=8 * high, default=8 * default_qp)
        self.fingerprint = fingerprint_of([("family", family.encode()), ("version", bytes([BITSTREAM_VERSION]))])
        self.description = _describe(family, options, self._packing, self._bounds)
        layout = "axes as its packing takes them: (L, C), (B, L, C), (N, layers, L, C), or (C, H, W), (N, C, H, W)"
        ranks = (3, 4) if self._packing.name == "latent_tiles" else (2, 3, 4)
        self.inputs = (TensorPort(name="h", ranks=ranks, dtypes=tuple(_DTYPES), layout=layout),)
        self.outputs = (replace(self.inputs[0], name="h_hat"),)

    @property
    def unavailable_reason(self) -> str:
        """Why this codec cannot compress here, and the remedy; empty when it can."""
        return self._engine.available()

    @property
    def pstate_kind(self) -> str:
        """See `FeatureCodec.pstate_kind`."""
        return "picture"

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """See `FeatureCodec.resolve`. Family parameters: speed, strips, trun_low, trun_high.

        token_res matters to packings that know a grid; prefix_tokens follow from it. qp is a whole number.
        """
        self._engine.require()
        shape, grid = self._check_specs(specs, params)
        for name in ("target_bpfp", "target_nmse"):
            if getattr(params, name) is not None:
                raise InvalidInputError(f"codec {self.id} takes a qp, not {name}", field=f"params.{name}")
        given = dict(params.family)
        unknown = sorted(given.keys() - set(_PARAMETERS))
        if unknown:
            raise InvalidInputError(f"codec {self.id} has no parameter {unknown[0]!r}", field=f"params.{unknown[0]}")
        qp_eighths = self.qp.default if params.qp_eighths is None and self.qp else params.qp_eighths
        if qp_eighths is None or qp_eighths % 8:
            raise InvalidInputError(f"codec {self.id} takes a whole qp", field="params.qp_eighths")
        speed = str(given.get("speed") or self._speed)
        self._engine.check(bit_depth=self._options.bit_depth, qp=qp_eighths // 8, speed=speed)
        strips = given.get("strips", 0)
        if type(strips) is not int or not 0 <= strips <= MAX_STRIPS:
            raise InvalidInputError(f"{strips!r} strips; 1 to {MAX_STRIPS}, 0 for any", field="params.picture.strips")
        family: list[tuple[str, Any]] = [("speed", speed), ("strips", strips)]
        bounds = self._given_bounds(given)
        (bounds or self._bounds).shaped(shape)
        if bounds is not None:
            family += [("trun_high", bounds.high), ("trun_low", bounds.low)]
        return CodingParams(qp_eighths=qp_eighths, token_res=grid, family=tuple(sorted(family)))

    def compress(
        self,
        batch: Sequence[Mapping[str, Array]],
        params: CodingParams,
        *,
        cancel: CancelToken | None = None,
        progress: Progress | None = None,
    ) -> list[Coded]:
        """See `FeatureCodec.compress`. `progress` is told of the finished strips of each item in turn."""
        return [self._compress(item["h"], params, cancel, progress) for item in batch]

    def begin_compress(
        self, batch: Sequence[Mapping[str, Array]], params: CodingParams, cancel: Sequence[CancelToken]
    ) -> list[Callable[[], Coded]]:
        """Leaves all to the second stage, which ends one item's encoder when that item alone is cancelled."""
        return [
            partial(self._compress, item["h"], params, token, _progress_of(token))
            for item, token in zip(batch, cancel, strict=True)
        ]

    def begin_decompress(
        self, batch: Sequence[Unit], cancel: Sequence[CancelToken]
    ) -> list[Callable[[], dict[str, Array]]]:
        """As `begin_compress`."""
        return [partial(self._decompress, unit, token) for unit, token in zip(batch, cancel, strict=True)]

    def _compress(self, h: Array, params: CodingParams, cancel: CancelToken | None, progress: Progress | None) -> Coded:
        given = dict(params.family)
        if params.qp_eighths is None:
            raise InvalidInputError("params are not resolved", field="params")
        job = PictureJob(
            bit_depth=self._options.bit_depth,
            qp=params.qp_eighths // 8,
            speed=given["speed"],
            strips=given["strips"],
            parallel=self._options.parallel,
        )
        bounds = self._given_bounds(given) or (self._bounds if self._options.trun_flag else None)
        streams, state, h_hat = encode_features(
            h,
            engine=self._engine,
            decoder=self._decoder,
            layout=self._packing.for_grid(params.token_res, self._packing.canonical(h.shape)[2]),
            bounds=bounds,
            per_layer=len(self._bounds.low) > 1,
            job=job,
            cancel=cancel,
            progress=progress,
        )
        report = Report(nmse=metrics.nmse(h, h_hat), qp_eighths=params.qp_eighths)
        return Coded(strings=streams, pstate=state.to_dict(), report=report)

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """See `FeatureCodec.check_unit`."""
        if len(unit.specs) != 1 or unit.ctx_hash or unit.specs[0].dtype not in _DTYPES:
            raise CorruptBitstreamError("a picture unit has one float tensor and no context", field="unit.tensors")
        (spec,) = unit.specs
        state = PictureState.read(unit.pstate, spec.shape)
        if len(unit.strings) != len(state.heights):
            said = f"{len(unit.strings)} bitstreams for {len(state.heights)} strips"
            raise CorruptBitstreamError(said, field="unit.stream_bytes")
        # No encoder needs more than twice the raw samples and its headers.
        most = (1 << 16) + 4 * spec.elements
        if sum(map(len, unit.strings)) > most:
            raise CorruptBitstreamError(f"more than {most} bytes for {spec.elements} elements", field="payload")
        self._decoder.require(state.format, state.bit_depth)
        return (replace(spec, name="h_hat"),)

    def decompress(self, batch: Sequence[Unit], *, cancel: CancelToken | None = None) -> list[dict[str, Array]]:
        """See `FeatureCodec.decompress`."""
        return [self._decompress(unit, cancel) for unit in batch]

    def _decompress(self, unit: Unit, cancel: CancelToken | None) -> dict[str, Array]:
        (spec,) = unit.specs
        state = PictureState.read(unit.pstate, spec.shape)
        h_hat = decode_features(unit.strings, state, spec.shape, decoder=self._decoder, cancel=cancel)
        return {"h_hat": _cast(h_hat, spec.dtype)}

    def warm_up(self) -> None:
        """Asks the encoder for its version, which later units carry, while nobody waits."""
        if not self.unavailable_reason:
            self._engine.banner()

    def _check_specs(
        self, specs: Sequence[TensorSpec], params: CodingParams
    ) -> tuple[tuple[int, int, int, int], tuple[int, int] | None]:
        """The 4-D shape of the one tensor, and the grid if the packing knows one."""
        if len(specs) != 1 or specs[0].name != "h":
            names = ", ".join(repr(spec.name) for spec in specs) or "none"
            raise InvalidInputError(f"codec {self.id} takes one tensor, 'h'; got {names}", field="tensors")
        if specs[0].dtype not in _DTYPES:
            raise InvalidInputError(f"h is {specs[0].dtype}, not {', '.join(_DTYPES)}", field="tensors[0].dtype")
        shape = self._packing.canonical(specs[0].shape)
        layout = self._packing.for_grid(params.token_res, shape[2])
        check_sides(*layout.picture_shape(shape))
        return shape, layout.grid if isinstance(layout, ChannelTiles) else None

    @staticmethod
    def _given_bounds(given: Mapping[str, Any]) -> Bounds | None:
        """The caller's truncation bounds, if any."""
        if not given.get("trun_low") and not given.get("trun_high"):
            return None
        return Bounds.of(given.get("trun_low", ()), given.get("trun_high", ()))


def _progress_of(token: CancelToken) -> Progress | None:
    return token.progress if isinstance(token, ProgressToken) else None


def _describe(family: str, options: PictureOptions, layout: Packing, bounds: Bounds) -> str:
    """Like "dinov2 cls: 10-bit picture (tokens_by_channels) through vtm, clipped to -20..20"."""
    clip = "range measured"
    if options.trun_flag:
        clip = "clipped to " + ", ".join(
            f"{low:g}..{high:g}" for low, high in zip(bounds.low, bounds.high, strict=True)
        )
    made_for = f"{options.task}: " if options.task else ""
    return f"{made_for}{options.bit_depth}-bit picture ({layout.name}) through {family}, {clip}"


def _cast(h_hat: Array, dtype: str) -> Array:
    """To the dtype of the unit; what that cannot hold becomes its largest value."""
    if dtype == "float32":
        return h_hat
    limit = _LARGEST[dtype]
    return np.clip(h_hat, -limit, limit).astype(_DTYPES[dtype])


def load(spec: CodecSpec) -> PictureCodec:
    """Loads a codec of family `vtm`, `vvenc` or `x265`: the family names the engine.

    Raises:
        CodecFileError: options that the engine does not take.
        CodecUnavailableError: no decoder for its pictures is installed.
    """
    try:
        return PictureCodec(spec.id, spec.family, PictureOptions.of(spec.options))
    except InvalidInputError as error:
        raise CodecFileError(f"codec {spec.id}: {error.message}", field="options") from error
