"""Makes a codec for the user's own features: `calibrate(files, ...)` gives a codec file, a report and a model card.

tensors ──► nine tenths: moments ──► KLT ──► scales ──► tables ──► codec file
        └─► one tenth: coded with it, for the report
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import CodingParams, QpRange, TensorSpec, Unit
from mpcompress.errors import InvalidInputError
from mpcompress.feature_files import FeatureTensor, open_features
from mpcompress.registry import CODEC_ID
from mpcompress.transforms.klt_codec import KltCodec
from mpcompress.transforms.klt_fit import fit_moments, fit_scales, fit_smaller_tiles, log_scale
from mpcompress.transforms.klt_fit_tables import (
    ROUNDING,
    ROW_CUTOFF,
    ROW_SHIFT,
    fit_base_step,
    fit_centroids,
    fit_tables,
    row_statistics,
)
from mpcompress.transforms.klt_model import MAX_CHANNELS, MAX_PREFIX_TOKENS, KltModel
from mpcompress.transforms.klt_report import UNIT_OVERHEAD_BYTES, CalibrationReport, CalibrationResult, RatePoint
from mpcompress.transforms.tiling import natural_tile

__all__ = ["CalibrationReport", "CalibrationResult", "RatePoint", "calibrate"]

MIN_TENSORS = 16
RECOMMENDED_TENSORS = 256

QP = QpRange(minimum=0, maximum=384, default=192)
_PREFIX_QP_OFFSET = -96
_REPORTED_QPS = (96, 144, 192, 240, 288)
_MAX_HELD_OUT = 64
# Per cent more bits at equal error than from 800 tensors; final features of a ViT-S, 257 x 384.
_MORE_BITS = ((16, 26), (32, 17), (64, 10), (128, 7), (256, 3))

_FOLDS = 4
_FOLDED_CHANNELS = 2048  # each fold holds a C x C matrix

Progress = Callable[[int, int, str], None]


def calibrate(
    sources: str | Path | Iterable[str | Path | NDArray[Any]],
    *,
    codec_id: str,
    description: str,
    prefix_tokens: int | None = None,
    token_res: tuple[int, int] | None = None,
    prefix_qp_offset_eighths: int = _PREFIX_QP_OFFSET,
    held_out: str | Path | Iterable[str | Path | NDArray[Any]] | None = None,
    notes: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Fits a codec of family `klt` to feature tensors (L, C), L = prefix tokens + H * W.

    Memory is bounded by the largest tensor, a few C x C matrices and 256 MB of samples, however many tensors there are.

    Args:
        sources: files, folders and arrays; see `open_features`.
        codec_id: 1 to 64 characters of [a-z0-9._-].
        description: one sentence: which model, which tap, which data.
        prefix_tokens: tokens in front of the patches (CLS, registers); None: none.
        token_res: (H, W) of all tensors; None: sequences of any length.
        prefix_qp_offset_eighths: the prefix tokens' qp less the patches'.
        held_out: what to measure the report on; None: every tenth tensor of `sources`, which is then not fitted.
        notes: more lines of the model card, by heading: model, tap, pictures, licence.
        progress: called with (done, total, stage).

    Raises:
        InvalidInputError: too few tensors, shapes that do not fit, NaN, infinity, constant features.
    """
    if not CODEC_ID.fullmatch(codec_id):
        raise InvalidInputError(f"codec id {codec_id!r} is not 1 to 64 characters of [a-z0-9._-]", field="codec_id")
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
        model = _fit(fitted, codec_id, description, prefix, token_res, prefix_qp_offset_eighths, progress)
        points, distances = _measure(KltCodec(model), tested, prefix, progress)
    report = CalibrationReport(
        codec_id=codec_id,
        tensors=len(fitted),
        held_out=len(tested),
        channels=model.channels,
        token_res=token_res,
        prefix_tokens=prefix,
        points=points,
        warnings=tuple(_warnings(fitted, len(fitted), prefix, token_res)),
    )
    notes = dict(notes or {})
    typical = max(float(np.median(distances)), 0.1)
    model = replace(
        model,
        domain_typical=typical,
        domain_bound=max(2.0, 1.5 * max(distances) / typical),
        card={**json.loads(json.dumps(asdict(report))), "notes": notes},
    )
    return CalibrationResult(
        file=model.to_bytes(), report=report, description=description, fingerprint=model.fingerprint(), notes=notes
    )


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


def _grid(tensor: FeatureTensor, prefix: int, token_res: tuple[int, int] | None) -> tuple[int, int]:
    return token_res or (1, tensor.shape[0] - prefix)


def _stream(tensors: Sequence[FeatureTensor], stage: str, progress: Progress | None) -> Iterator[NDArray[np.float32]]:
    for number, tensor in enumerate(tensors):
        if progress is not None:
            progress(number, len(tensors), stage)
        yield tensor.read()
    if progress is not None:
        progress(len(tensors), len(tensors), stage)


def _fit(
    tensors: Sequence[FeatureTensor],
    codec_id: str,
    description: str,
    prefix: int,
    token_res: tuple[int, int] | None,
    prefix_offset: int,
    progress: Progress | None,
) -> KltModel:
    folds = _FOLDS if tensors[0].shape[1] <= _FOLDED_CHANNELS else 1
    moments = fit_moments(_stream(tensors, "moments", progress), prefix, folds)
    grids = [_grid(tensor, prefix, token_res) for tensor in tensors]
    median = sorted(grids)[len(grids) // 2]
    tile = natural_tile(*median)
    scales = fit_scales(
        zip(_stream(tensors, "scales", progress), grids, strict=True),
        len(tensors),
        moments,
        tile,
    )
    scale_tile = log_scale(scales.tile / scales.tiles)
    scale_dc, scale_shift = fit_smaller_tiles(scale_tile, scales.sample, progress)
    base = fit_base_step(scales, float(moments.energy.mean() + moments.mean.var()))
    steps = [base + qp for qp in range(QP.minimum, QP.maximum + 1, 48)]
    statistics = row_statistics(scales, steps, prefix_offset, progress)
    return KltModel(
        id=codec_id,
        description=description,
        token_res=token_res,
        tile=tile,
        base_log2=base,
        row_cutoff=ROW_CUTOFF,
        row_shift=ROW_SHIFT,
        prefix_qp_offset_eighths=prefix_offset if prefix else 0,
        qp=QP,
        rounding=ROUNDING,
        domain_typical=1.0,
        domain_bound=1e9,
        mean=moments.mean.astype(np.float32),
        prefix_mean=moments.prefix_mean.astype(np.float32),
        basis=moments.basis.astype(np.float16),
        energy=moments.energy.astype(np.float32),
        scale_tile=scale_tile,
        scale_dc=scale_dc,
        scale_shift=scale_shift,
        scale_prefix=log_scale(scales.prefix / scales.tensors),
        centroid=fit_centroids(statistics),
        tables=fit_tables(statistics.counts),
    )


def _measure(
    codec: KltCodec, tensors: Sequence[FeatureTensor], prefix: int, progress: Progress | None
) -> tuple[tuple[RatePoint, ...], list[float]]:
    """Codes the held-out tensors at several qps: the points, and each tensor's distance from the calibration set."""
    rates, errors = np.zeros((2, len(_REPORTED_QPS), len(tensors)))
    distances = []
    for column, x in enumerate(_stream(tensors, "held out", progress)):
        spec = TensorSpec(name="h", dtype="float32", shape=x.shape)
        for row, qp in enumerate(_REPORTED_QPS):
            params = codec.resolve([spec], CodingParams(qp_eighths=qp, prefix_tokens=prefix))
            (coded,) = codec.compress([{"h": x}], params)
            (out,) = codec.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])
            rates[row, column] = 8 * (len(coded.strings[0]) + UNIT_OVERHEAD_BYTES) / x.size
            errors[row, column] = np.square(out["h_hat"] - x, dtype=np.float64).mean() / max(float(x.var()), 1e-30)
            if qp == codec.model.qp.default and coded.report.domain_distance is not None:
                distances.append(coded.report.domain_distance)
    points = [
        RatePoint(
            qp_eighths=qp,
            bpfp=float(rates[row].mean()),
            nmse=float(errors[row].mean()),
            worst_nmse=float(errors[row].max()),
            worst_bpfp=float(rates[row].max()),
        )
        for row, qp in enumerate(_REPORTED_QPS)
    ]
    return tuple(points), distances


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
    if token_res is None:
        for extra in (0, 1, 5):
            side = int(max(tensors[0].shape[0] - extra, 0) ** 0.5)
            if side > 3 and side * side == tensors[0].shape[0] - extra:
                yield (
                    f"{tensors[0].shape[0]} tokens are coded as a sequence; if they are {extra} prefix tokens and "
                    f"{side} x {side} patches, say so: fewer bits"
                )
                break
    shortest, longest = min(t.shape[0] for t in tensors), max(t.shape[0] for t in tensors)
    if longest > 4 * shortest:
        yield f"lengths from {shortest} to {longest} tokens: scales are fitted to the median length"
