"""The tables of docs/rate.md, in Markdown, from the points of benchmarks/rate.py and the figures of VTM."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Point = dict[str, Any]

TAPS = {"final": "final LayerNorm", "block6": "after block 6"}
SETS = ("stamps", "wallpapers", "clip art")
ROWS, TILES = "vtm-dinov2-cls", "vtm-dinov2-cls-tiles"
VTM = {ROWS: "a row per token", TILES: "channels as tiles"}
#: NMSE of the comparison -> share of VTM's bits that is aimed at.
GOALS = {("final", 0.04): 12, ("final", 0.015): 30, ("block6", 0.24): 10, ("block6", 0.10): 25}
CLS_BPFP, CLS_GOAL = 0.10, 0.99
SHOWN_QPS = range(8, 41, 4)
ENCODE_GOAL_MS, DECODE_GOAL_MS, TIMED_QP = 4.0, 3.0, 24
_LABELS = {name: name for name in ("klt", "klt effort 2", "fp16+zstd", "int8+zstd", "int4+zstd")} | {
    "x265": "x265 veryslow, tiles",
    "vvenc": "vvenc medium, tiles",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Bytes at an NMSE read off a tensor's curve."""

    nbytes: float
    extrapolated: bool


def read(curve: Sequence[tuple[float, float]], at: float) -> Reading | None:
    """Read bytes off (bytes, NMSE) points at an NMSE: straight lines between logarithms, the last ones prolonged."""
    known = sorted({(math.log(error), math.log(nbytes)) for nbytes, error in curve if error > 0})
    if len(known) < 2:
        return None
    x, y = np.array(known).T
    target = math.log(at)
    k = int(np.clip(np.searchsorted(x, target), 1, len(x) - 1))
    value = y[k - 1] + (y[k] - y[k - 1]) * (target - x[k - 1]) / (x[k] - x[k - 1])
    return Reading(nbytes=math.exp(value), extrapolated=not x[0] <= target <= x[-1])


def tensor_curves(points: list[Point], series: str, tap: str) -> dict[str, list[tuple[float, float]]]:
    """(bytes, NMSE) of every tensor that has rows, over the points of a series."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if point["series"] == series and point["tap"] == tap:
            for name, (nbytes, error) in point["rows"].items():
                curves.setdefault(name, []).append((nbytes, error))
    return curves


def vtm_curves(figures: list[Point], codec: str, tap: str) -> dict[str, list[tuple[float, float]]]:
    """The same of VTM."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in figures:
        if row["codec"] == codec and row["tap"] == tap:
            curves.setdefault(row["tensor"], []).append((row["bytes"], row["nmse"]))
    return {name: curve for name, curve in curves.items() if len(curve) >= 2}


@dataclass(frozen=True, kw_only=True)
class Share:
    """Bits of a series as a share of VTM's at one NMSE, over the tensors both have."""

    n: int
    of_total: float
    """Sum of the bytes over sum of the bytes."""
    mean: float
    """Of each tensor's share."""
    worst: float
    extrapolated: float
    """Share of the tensors where VTM's curve had to be prolonged."""


def share(
    ours: dict[str, list[tuple[float, float]]],
    theirs: dict[str, list[tuple[float, float]]],
    at: float,
    *,
    to_smallest: bool,
) -> Share | None:
    """Compare two series at an NMSE.

    With `to_smallest` our curves are not prolonged below their smallest file: that counts, at its smaller error.
    """
    pairs = []
    for name in sorted(ours.keys() & theirs.keys()):
        mine, its = read(ours[name], at), read(theirs[name], at)
        if mine and its:
            smallest = min(nbytes for nbytes, _ in ours[name]) if to_smallest else 0.0
            pairs.append((max(mine.nbytes, smallest), its.nbytes, its.extrapolated))
    if not pairs:
        return None
    mine_, its_, beyond = np.array(pairs).T
    ratios = mine_ / its_
    return Share(
        n=len(pairs),
        of_total=float(mine_.sum() / its_.sum()),
        mean=float(ratios.mean()),
        worst=float(ratios.max()),
        extrapolated=float(beyond.mean()),
    )


def report(points: list[Point], vtm: list[Point]) -> dict[str, str]:
    """All tables, by the name of their place in docs/rate.md."""
    blocks = {"goals": goals(points, vtm), "answers": answers(points), "anchors": against_vtm(points, vtm)}
    blocks |= {f"rates {tap}": rates(points, tap) for tap in TAPS}
    return {name: "\n".join(lines) for name, lines in blocks.items()}


def goals(points: list[Point], vtm: list[Point]) -> Iterator[str]:
    """Bits against VTM at the NMSE of the goals."""
    heads = ["tap", "NMSE", "goal", "VTM with", "set", "n", "bits over VTM's", "mean of ratios", "worst tensor"]
    heads += ["effort 2", "VTM prolonged for"]
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * (len(heads) - 1)
    for (tap, at), goal in GOALS.items():
        for codec, packing in VTM.items():
            theirs = vtm_curves(vtm, codec, tap)
            for name in (*SETS[:2], "both"):
                mine = {key: curve for key, curve in theirs.items() if name in ("both", key.split("/")[0])}
                found = share(tensor_curves(points, "klt", tap), mine, at, to_smallest=True)
                slow = share(tensor_curves(points, "klt effort 2", tap), mine, at, to_smallest=True)
                if found:
                    cells = [TAPS[tap], number(at), f"{goal} %", packing, name, str(found.n)]
                    cells += [f"**{percent(found.of_total)}**", percent(found.mean), percent(found.worst)]
                    cells += [percent(slow.of_total) if slow else "", percent(found.extrapolated)]
                    yield "| " + " | ".join(cells) + " |"


def answers(points: list[Point]) -> Iterator[str]:
    """CLS cosine at a rate, CPU at the default qp."""
    yield f"| tap | set | n | CLS cosine at {number(CLS_BPFP)} bpfp | qp {TIMED_QP}: bpfp | encode ms | decode ms |"
    yield "|---|---|---|---|---|---|---|"
    for tap, where in TAPS.items():
        for name in SETS:
            curve = sorted(select(points, "klt", tap, name), key=lambda p: p["bpfp"])
            timed = [p for p in curve if p["qp"] == TIMED_QP]
            if timed:
                x, y = [math.log(p["bpfp"]) for p in curve], [p["cls_cosine"] for p in curve]
                at = float(np.interp(math.log(CLS_BPFP), x, y))
                p = timed[0]
                yield (
                    f"| {where} | {name} | {p['n']} | {number(at, 4)} | {number(p['bpfp'])} "
                    f"| {p['encode_ms']:.1f} | {p['decode_ms']:.1f} |"
                )


def against_vtm(points: list[Point], vtm: list[Point]) -> Iterator[str]:
    """Every picture codec and klt against VTM on rows, at equal NMSE."""
    heads = [f"{TAPS[tap]}, {number(at)}" for tap, at in GOALS]
    yield "| bits over VTM's with a row per token, at NMSE | " + " | ".join(heads) + " |"
    yield "|---|" + "---|" * len(heads)
    rows = {"VTM, channels as tiles": None, **{_LABELS[s]: s for s in ("vvenc", "x265", "klt")}}
    for label, series in rows.items():
        cells = []
        for tap, at in GOALS:
            ours = vtm_curves(vtm, TILES, tap) if series is None else tensor_curves(points, series, tap)
            found = share(ours, vtm_curves(vtm, ROWS, tap), at, to_smallest=series == "klt")
            cells.append(f"{100 * found.of_total:.0f} % (n {found.n})" if found else "")
        if any(cells):
            yield f"| {label} | " + " | ".join(cells) + " |"


def rates(points: list[Point], tap: str) -> Iterator[str]:
    """The points of a tap; the .json file has some more."""
    yield (
        "| set | codec | n | qp | bpfp | NMSE | worst | CLS cosine | worst | patch cosine "
        "| saliency IoU | worst | encode ms | decode ms |"
    )
    yield "|---|---|" + "---:|" * 12
    for name in SETS:
        for series in sorted({p["series"] for p in points}, key=list(_LABELS).index):
            for p in sorted(select(points, series, tap, name), key=lambda p: p["qp"]):
                if series.startswith("klt") and p["qp"] not in SHOWN_QPS:
                    continue
                cells = [number(p["bpfp"])]
                cells += [number(p[key], 4) for key in ("nmse", "worst_nmse", "cls_cosine", "worst_cls_cosine")]
                cells += [number(p["patch_cosine"], 4), number(p["saliency_iou"]), number(p["worst_saliency_iou"])]
                cells += [f"{p['encode_ms']:.1f}", f"{p['decode_ms']:.1f}"]
                qp = "" if series.endswith("zstd") else f"{p['qp']:g}"
                yield f"| {name} | {_LABELS[series]} | {p['n']} | {qp} | " + " | ".join(cells) + " |"


def select(points: list[Point], series: str, tap: str, name: str) -> list[Point]:
    """The points of a series on a set."""
    return [p for p in points if (p["series"], p["tap"], p["set"]) == (series, tap, name)]


def number(value: float, digits: int = 3) -> str:
    """Fixed digits without the leading zero."""
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("0.") else text


def percent(value: float) -> str:
    """A share, with a digit after the point where it is small."""
    return f"{100 * value:.{1 if 0 < value < 0.5 else 0}f} %"
