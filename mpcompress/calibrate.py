"""Makes a codec for the user's own features: `calibrate(files, ...)` gives a codec file, a report and a model card.

tensors ──► nine tenths: transform ──► scales ──► contexts ──► tables ──► codec file
        └─► one tenth: coded with it, for the report
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import InvalidInputError
from mpcompress.feature_files import FeatureTensor, open_features
from mpcompress.registry import CODEC_ID
from mpcompress.transforms.klt_codec import KltCodec
from mpcompress.transforms.klt_filter_network import array_module
from mpcompress.transforms.klt_fit import QP, fit_model
from mpcompress.transforms.klt_fit_data import FitData
from mpcompress.transforms.klt_fit_filter import FILTER_STEPS, fit_filter
from mpcompress.transforms.klt_fit_sensitivity import Answer, prefix_offset_for
from mpcompress.transforms.klt_limits import MAX_CHANNELS, MAX_PREFIX_TOKENS
from mpcompress.transforms.klt_model_file import write_model
from mpcompress.transforms.klt_report import CalibrationReport, CalibrationResult, RatePoint, unit_overhead_bytes

__all__ = ["FILTER_STEPS", "CalibrationReport", "CalibrationResult", "RatePoint", "calibrate"]

MIN_TENSORS = 16
RECOMMENDED_TENSORS = 256

_PREFIX_QP_OFFSET = -96
_MEASURED_QPS = (0, 48, 96, 144, 192, 240, 288, 336, 384)
_REPORTED_QPS = _MEASURED_QPS[2:7]
_MAX_HELD_OUT = 64
# Per cent more bits at equal error than from 1000 tensors; final features of a ViT-S, 257 x 384.
_MORE_BITS = ((16, 75), (32, 45), (64, 25), (128, 15), (256, 8))

Progress = Callable[[int, int, str], None]


def calibrate(
    sources: str | Path | Iterable[str | Path | NDArray[Any]],
    *,
    codec_id: str,
    description: str,
    prefix_tokens: int | None = None,
    token_res: tuple[int, int] | None = None,
    prefix_qp_offset_eighths: int | None = None,
    answer: Answer | None = None,
    held_out: str | Path | Iterable[str | Path | NDArray[Any]] | None = None,
    filter_steps: int = 0,
    device: str = "cpu",
    notes: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Fits a codec of family `klt` to feature tensors (L, C), L = prefix tokens + H * W.

    Memory is bounded, however many tensors there are: 256 MB of them, the largest one a few times, and a C x C matrix
    per kind of row (up to 1024 channels; above, groups of at most 512 channels are fitted apart).

    Args:
        sources: files, folders and arrays; see `open_features`.
        codec_id: 1 to 64 characters of [a-z0-9._-].
        description: one sentence: which model, which tap, which data.
        prefix_tokens: tokens in front of the patches (CLS, registers); None: none.
        token_res: (H, W) of all tensors; None: sequences of any length.
        prefix_qp_offset_eighths: the prefix tokens' qp less the patches'; None: what `answer` asks for, or without one
            -96, a quarter of the patches' step.
        answer: the rest of the model, features (L, C) to an array whose squared error counts: prefix tokens are coded
            as finely as it is sensitive to them. Called some hundred times.
        held_out: what to measure the report on; None: every tenth tensor of `sources`, which is then not fitted.
        filter_steps: of gradient descent for a filter behind the decoder, see `klt_filter`; 0: no filter.
            `FILTER_STEPS` are enough; some 80 ms of CPU time each.
        device: where the filter learns: "cpu", or "cuda" with CuPy, some 10 ms for a step.
        notes: more lines of the model card, by heading: model, tap, pictures, licence.
        progress: called with (done, total, stage).

    Raises:
        InvalidInputError: too few tensors, shapes that do not fit, NaN, infinity, constant features, another device.
        CodecUnavailableError: a filter is to learn on a GPU, and there is no CuPy or no GPU here.
    """
    if not CODEC_ID.fullmatch(codec_id):
        raise InvalidInputError(f"codec id {codec_id!r} is not 1 to 64 characters of [a-z0-9._-]", field="codec_id")
    if filter_steps:
        array_module(device)  # before the minutes that come first
    with tempfile.TemporaryDirectory(prefix="mpcompress-") as spool_name:
        tensors = open_features(sources, spool=Path(spool_name))
        prefix = prefix_tokens or 0
        if held_out is None:
            _check(tensors, prefix, token_res)
            tested = tensors[5::10][:_MAX_HELD_OUT]
            chosen = {id(tensor) for tensor in tested}
            fitted = [tensor for tensor in tensors if id(tensor) not in chosen]
        else:
            fitted, tested = tensors, open_features(held_out, spool=Path(spool_name))
            _check(fitted, prefix, token_res)
            _check(fitted + tested, prefix, token_res)
            if not tested:
                raise InvalidInputError("no held-out tensors", field="held_out")
        offset = prefix_qp_offset_eighths
        if offset is None and answer is not None and prefix:
            offset = prefix_offset_for(answer, [tensor.read() for tensor in fitted[:: -(-len(fitted) // 24)]], prefix)
        data = FitData(fitted, prefix, token_res)
        model = fit_model(
            data,
            codec_id=codec_id,
            description=description,
            prefix_qp_offset_eighths=(_PREFIX_QP_OFFSET if offset is None else offset) if prefix else 0,
            progress=progress,
        )
        if filter_steps:
            model = replace(model, filter=fit_filter(model, data, filter_steps, progress, device=device))
        measured = _measure(KltCodec(model), tested, prefix, progress)
    report = CalibrationReport(
        codec_id=codec_id,
        tensors=len(fitted),
        held_out=len(tested),
        channels=model.channels,
        token_res=token_res,
        prefix_tokens=prefix,
        points=measured.points(_REPORTED_QPS),
        warnings=tuple(_warnings(fitted, len(fitted), prefix, token_res)),
        filter_from_qp_eighths=None if model.filter is None else model.filter.start - model.base_log2,
    )
    notes = dict(notes or {})
    typical, bound = _domain(measured.distances)
    model = replace(
        model,
        domain_typical=typical,
        domain_bound=bound,
        points=measured.curve(),
        card={**json.loads(json.dumps(asdict(report))), "notes": notes},
    )
    return CalibrationResult(
        file=write_model(model), report=report, description=description, fingerprint=model.fingerprint(), notes=notes
    )


def _domain(distances: Sequence[float]) -> tuple[float, float]:
    """The typical distance of held-out tensors, and how many times that is too far; without any, nothing is.

    One held-out tensor in a hundred may be as strange as a foreign one: it does not push the bound.
    """
    if not distances:
        return 1.0, 1e9
    typical = max(float(np.median(distances)), 0.05)
    return typical, max(2.0, 1.2 * float(np.quantile(distances, 0.99)) / typical)


def _check(tensors: Sequence[FeatureTensor], prefix: int, token_res: tuple[int, int] | None) -> None:
    if len(tensors) < MIN_TENSORS:
        raise InvalidInputError(
            f"{len(tensors)} tensors; at least {MIN_TENSORS} are needed, {RECOMMENDED_TENSORS} recommended",
            field="sources",
        )
    if prefix < 0 or (token_res is not None and min(token_res) < 1):
        raise InvalidInputError(f"{prefix} prefix tokens, grid {token_res}", field="token_res")
    channels = tensors[0].shape[1]
    if channels > MAX_CHANNELS or prefix > MAX_PREFIX_TOKENS:
        said = f"{channels} channels, {prefix} prefix tokens; at most {MAX_CHANNELS} and {MAX_PREFIX_TOKENS}"
        raise InvalidInputError(said, field="sources")
    for tensor in tensors:
        tokens = tensor.shape[0] - prefix
        if tensor.shape[1] != channels:
            said = f"{tensor.name} has {tensor.shape[1]} channels, {tensors[0].name} has {channels}"
            raise InvalidInputError(said, field="sources")
        if tokens < 1 or (token_res is not None and tokens != token_res[0] * token_res[1]):
            grid = "any tokens" if token_res is None else f"a grid of {token_res[0]} x {token_res[1]}"
            said = f"{tensor.name} has {tensor.shape[0]} tokens: not {prefix} prefix tokens and {grid}"
            raise InvalidInputError(said, field="sources")


def _stream(tensors: Sequence[FeatureTensor], stage: str, progress: Progress | None) -> Iterator[NDArray[np.float32]]:
    for number, tensor in enumerate(tensors):
        if progress is not None:
            progress(number, len(tensors), stage)
        yield tensor.read()
    if progress is not None:
        progress(len(tensors), len(tensors), stage)


@dataclass(frozen=True)
class _Measured:
    """Rates and errors (qps, held-out tensors), and each tensor's distance from the calibration set."""

    rates: NDArray[np.float64]
    errors: NDArray[np.float64]
    distances: list[float]

    def points(self, qps: Sequence[int]) -> tuple[RatePoint, ...]:
        """What the report tells."""
        found = []
        for qp in qps:
            rates, errors = self.rates[_MEASURED_QPS.index(qp)], self.errors[_MEASURED_QPS.index(qp)]
            found.append(
                RatePoint(
                    qp_eighths=qp,
                    bpfp=float(rates.mean()),
                    nmse=float(errors.mean()),
                    worst_nmse=float(errors.max()),
                    worst_bpfp=float(rates.max()),
                    bpfp_deviation=float(rates.std()),
                    nmse_deviation=float(errors.std()),
                )
            )
        return tuple(found)

    def curve(self) -> NDArray[np.float32]:
        """(n, 3): where a search for a target begins."""
        means = [self.rates.mean(axis=1), self.errors.mean(axis=1)]
        return np.asarray(np.stack([np.array(_MEASURED_QPS, np.float64), *means], axis=1), np.float32)


def _measure(codec: KltCodec, tensors: Sequence[FeatureTensor], prefix: int, progress: Progress | None) -> _Measured:
    """Codes the held-out tensors at several qps."""
    rates, errors = np.zeros((2, len(_MEASURED_QPS), len(tensors)))
    distances = []
    for column, x in enumerate(_stream(tensors, "held out", progress)):
        spec = TensorSpec(name="h", dtype="float32", shape=x.shape)
        for row, qp in enumerate(_MEASURED_QPS):
            params = codec.resolve([spec], CodingParams(qp_eighths=qp, prefix_tokens=prefix))
            (coded,) = codec.compress([{"h": x}], params)
            (out,) = codec.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])
            rates[row, column] = 8 * (len(coded.strings[0]) + unit_overhead_bytes(codec.id)) / x.size
            errors[row, column] = np.square(out["h_hat"] - x, dtype=np.float64).mean() / max(float(x.var()), 1e-30)
            if qp == QP.default and coded.report.domain_distance is not None:  # too few rows tell nothing
                distances.append(coded.report.domain_distance)
    return _Measured(rates, errors, distances)


def _warnings(
    tensors: Sequence[FeatureTensor], fitted: int, prefix: int, token_res: tuple[int, int] | None
) -> Iterator[str]:
    if fitted < RECOMMENDED_TENSORS - RECOMMENDED_TENSORS // 10:
        more = next(percent for count, percent in reversed(_MORE_BITS) if count <= max(fitted, MIN_TENSORS))
        yield (
            f"{fitted} tensors: expect some {more} % more bits at equal error than from several hundred; "
            f"{RECOMMENDED_TENSORS} are recommended"
        )
    patches, channels = sum(tensor.shape[0] - prefix for tensor in tensors), tensors[0].shape[1]
    if patches < 4 * channels:
        yield f"{patches} tokens for {channels} channels: too few to tell signal from noise; give more tensors"
    shortest, longest = min(t.shape[0] for t in tensors), max(t.shape[0] for t in tensors)
    if token_res is None and shortest == longest:
        for extra in (0, 1, 5):
            side = int(max(tensors[0].shape[0] - extra, 0) ** 0.5)
            if side > 3 and side * side == tensors[0].shape[0] - extra:
                yield (
                    f"{tensors[0].shape[0]} tokens are coded as a sequence; if they are {extra} prefix tokens and "
                    f"{side} x {side} patches, say so: fewer bits"
                )
                break
    if longest > 4 * shortest:
        yield f"lengths from {shortest} to {longest} tokens: scales are fitted to the median length"
