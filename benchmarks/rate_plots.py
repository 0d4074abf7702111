"""The plots of docs/rate.md and docs/vtm.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from benchmarks.rate_tables import SETS, TAPS, VTM, select
from benchmarks.scalar_anchors import SCALES

Point = dict[str, Any]

_STYLES: dict[str, dict[str, Any]] = {
    "klt": {"color": "#c1121f", "marker": "o", "lw": 2},
    "fp16+zstd": {"color": "#555555", "marker": "D", "ls": "none"},
    "int8+zstd": {"color": "#888888", "marker": "s", "ls": "none"},
    "int4+zstd": {"color": "#222222", "marker": "^", "ls": "none"},
    "x265": {"color": "#2a9d8f", "marker": "x"},
    "vvenc": {"color": "#e9a23b", "marker": "+"},
    "vtm-dinov2-cls": {"color": "#7aa6d6", "marker": "v", "ls": "--"},
    "vtm-dinov2-cls-tiles": {"color": "#1d4e89", "marker": "v"},
}
_NAMES = {"x265": "x265, tiles", "vvenc": "vvenc, tiles"} | {codec: f"VTM, {how}" for codec, how in VTM.items()}
_MEASURES = {"nmse": "NMSE", "cls_cosine": "CLS cosine", "saliency_iou": "saliency IoU"}


def draw(points: list[Point], vtm: list[Point], path: Path) -> None:
    """Draw every measure of benchmarks/rate.py over rate, judging sets pooled."""
    _save(_rates(points, vtm), path)


def draw_text(points: list[Point], path: Path) -> None:
    """Draw what is left of the sentence's vector and of the search, over rate; dashed and hollow: other sources."""
    cuts, splits = list(dict.fromkeys(p["cut"] for p in points)), list(dict.fromkeys(p["set"] for p in points))
    figure, axes = plt.subplots(2, len(cuts), figsize=(5 * len(cuts), 7.5), squeeze=False)
    for column, cut in enumerate(cuts):
        for split, line in zip(splits, ("-", "--"), strict=False):
            mine = [p for p in points if p["cut"] == cut and p["set"] == split]
            for series in dict.fromkeys(p["series"] for p in mine):
                curve = sorted(
                    (p["bpfp"], 1 - p["sentence_cosine"], p["same_answer"]) for p in mine if p["series"] == series
                )
                style = _STYLES[series.split(",")[0]] | ({"ls": line} if series == "klt" else {})
                style |= {"mfc": "none"} if split != splits[0] else {}
                # The four scales of int4 share one mark; which is which is in the table.
                first = split == splits[0] and series not in {f"int4+zstd, {kind}" for kind in SCALES[1:]}
                label = series.split(",")[0] if first else None
                for row in (0, 1):
                    axes[row, column].plot(
                        [c[0] for c in curve], [c[row + 1] for c in curve], label=label, ms=5, **style
                    )
        for row, name in enumerate(("1 - sentence cosine", "same answer of the search")):
            axes[row, column].set_title(f"{cut}: {name}", fontsize=10)
            axes[row, column].set_xlabel("bits per feature point, whole files")
            axes[row, column].set_xscale("log")
            axes[row, column].grid(alpha=0.3, which="both", lw=0.4)
        axes[0, column].set_yscale("log")
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def draw_engines(figures: list[Point], path: Path) -> None:
    """Draw the figures of benchmarks/picture_engines.py: NMSE over rate, and bits over CPU at equal error."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8.5))
    for row, (tap, where) in zip(axes, TAPS.items(), strict=True):
        mine = [entry for entry in figures if entry["tap"] == tap]
        series = list(dict.fromkeys((entry["codec"], entry["speed"]) for entry in mine))
        anchor = _engine_curve(mine, *_ANCHOR)
        for codec, speed in series:
            style, label = _engine_style(codec, speed)
            curve = _engine_curve(mine, codec, speed)
            row[0].plot([c[0] for c in curve], [c[1] for c in curve], label=label, ms=5, **style)
            gaps = [(c[2], _bits_over(c, anchor)) for c in curve]
            known = [(seconds, gap) for seconds, gap in gaps if gap]
            if known:
                seconds, gap = np.exp(np.log(np.array(known)).mean(0))
                row[1].plot(seconds, 100 * gap, ms=8, **style | {"ls": "none"})
                where_to = _ABOVE if label.endswith("rows") else _BELOW
                row[1].annotate(label, (seconds, 100 * gap), textcoords="offset points", fontsize=7, **where_to)
        row[0].set_ylabel("NMSE")
        row[0].set_xlabel("bits per feature point, whole files")
        row[1].set_xlabel("CPU seconds to encode")
        row[1].set_ylabel("% of VTM's bits (rows) at equal NMSE")
        for axis in row:
            axis.set_title(where, fontsize=10)
            axis.set_xscale("log")
            axis.set_yscale("log")
            axis.grid(alpha=0.3, which="both", lw=0.4)
        row[1].set_ylim(7, 700)
        row[1].margins(x=0.15)
        row[1].set_yticks([10, 15, 20, 30, 50, 70, 100, 150], minor=False)
        row[1].yaxis.set_major_formatter(ScalarFormatter())
        row[1].yaxis.set_minor_locator(NullLocator())
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    _save(figure, path)


_ANCHOR = ("vtm-dinov2-cls", "reference")
# Marks of row packings stand close together above those of tiles.
_ABOVE: dict[str, Any] = {"xytext": (0, 8), "rotation": 75, "ha": "left", "va": "bottom", "rotation_mode": "anchor"}
_BELOW: dict[str, Any] = {"xytext": (0, -14), "ha": "center"}
_SPEEDS = {"fast": {"alpha": 0.6, "mfc": "none"}, "faster": {"alpha": 0.35, "mfc": "none"}}


def _engine_style(codec: str, speed: str) -> tuple[dict[str, Any], str]:
    family = codec.split("-")[0]
    base = _STYLES["vtm-dinov2-cls-tiles" if family == "vtm" else family]
    if family == "klt":
        return base, "klt, calibrated"
    tiles = codec.endswith("-tiles")
    label = f"{family} {speed}, {'tiles' if tiles else 'rows'}"
    return base | {"ls": "-" if tiles else "--", **_SPEEDS.get(speed, {})}, label


def _engine_curve(figures: list[Point], codec: str, speed: str) -> list[tuple[float, float, float]]:
    """(bpfp, NMSE, CPU seconds to encode) by rate."""
    means = [entry["mean"] for entry in figures if (entry["codec"], entry["speed"]) == (codec, speed)]
    return sorted((mean["bpfp"], mean["nmse"], mean["encode_cpu_s"]) for mean in means)


def _bits_over(point: tuple[float, float, float], anchor: list[tuple[float, float, float]]) -> float | None:
    """Bits of a point over the anchor's at its NMSE; None outside of the anchor's range."""
    x, y = np.log([(c[1], c[0]) for c in reversed(anchor)]).T if anchor else (np.zeros(0), np.zeros(0))
    at = np.log(point[1])
    return float(point[0] / np.exp(np.interp(at, x, y))) if len(x) and x[0] <= at <= x[-1] else None


def _rates(points: list[Point], vtm: list[Point]) -> Figure:
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5))
    for row, (tap, where) in zip(axes, TAPS.items(), strict=True):
        for axis, (key, label) in zip(row, _MEASURES.items(), strict=True):
            for series in ("klt", "x265", "vvenc", "int4+zstd", "int8+zstd", "fp16+zstd"):
                _line(axis, series, _pooled(points, series, tap, key))
            for codec in VTM:
                rows = [r for r in vtm if r["tap"] == tap and r["codec"] == codec]
                _line(axis, codec, _vtm_means(rows, key))
            axis.set_xscale("log")
            axis.set_xlim(0.02, 20)
            axis.set_title(f"{where}: {label}", fontsize=10)
            axis.set_xlabel("bits per feature point, whole files")
            axis.grid(alpha=0.3, which="both", lw=0.4)
            if key == "nmse":
                axis.set_yscale("log")
                axis.set_ylim(1e-4, 0.5)
            elif key == "cls_cosine":
                axis.set_ylim(0.9, 1.002)
            else:
                axis.set_ylim(0.5, 1.01)
    axes[0, 0].legend(fontsize=8)
    figure.tight_layout()
    return figure


def _line(axis: Axes, series: str, curve: list[tuple[float, float]]) -> None:
    if curve:
        x, y = zip(*sorted(curve), strict=True)
        axis.plot(x, y, label=_NAMES.get(series, series), ms=5, **_STYLES[series])


def _pooled(points: list[Point], series: str, tap: str, key: str) -> list[tuple[float, float]]:
    """(bpfp, measure) at each qp over the judging sets, weighted by their tensors."""
    pooled = []
    for qp in sorted({p["qp"] for p in points if p["series"] == series}):
        found = [p for name in SETS[:2] for p in select(points, series, tap, name) if p["qp"] == qp]
        if found:
            weights = [p["n"] for p in found]
            pooled.append(tuple(float(np.average([p[name] for p in found], weights=weights)) for name in ("bpfp", key)))
    return pooled  # type: ignore[return-value]


def _vtm_means(rows: list[Point], key: str) -> list[tuple[float, float]]:
    """Means over the tensors that all QPs have."""
    qps = sorted({row["qp"] for row in rows})
    common = set.intersection(*({r["tensor"] for r in rows if r["qp"] == qp} for qp in qps)) if qps else set()
    means = []
    for qp in qps:
        mine = [row for row in rows if row["qp"] == qp and row["tensor"] in common]
        if mine:
            bits = np.mean([8 * row["bytes"] for row in mine]) / (257 * 384)
            means.append((float(bits), float(np.mean([row[key] for row in mine]))))
    return means


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
