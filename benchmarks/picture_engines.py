"""Rate, quality and CPU seconds of every picture engine, and of klt, on the same real features, in one run.

    python benchmarks/picture_engines.py --features features --n 8 --json benchmarks/picture_engines.json
    VTM_HOME=/path/to/vtm python benchmarks/picture_engines.py ...              with VTM: minutes per tensor

Means over n tensors of each tap: bpfp of the complete .mpc file, NMSE, cosine of the CLS token, CPU seconds (of this
process and its children) to encode, verification by decoding included, and to decode a stranger's unit. The .json file
holds every single figure with the versions of the engines. Then come the tables of docs/vtm.md, the second with each
codec's bits over VTM's.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import json
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # CPU time must be the codec's, not that of waiting threads

import numpy as np

from benchmarks import rate_plots
from benchmarks.coded_features import BOUNDS, picture_family, round_trip
from mpcompress.codec import CodingParams, FeatureCodec
from mpcompress.errors import MpcompressError
from mpcompress.metrics import bpfp, cosine, nmse
from mpcompress.registry import load, preset

TAPS = {tap: f"klt-imgfocus-vits14-{tap}" for tap in BOUNDS}
# codec, speed, QPs
PLAN: tuple[tuple[str, str, tuple[float, ...]], ...] = (
    ("klt", "", (12, 18, 24, 30)),
    ("x265-dinov2-cls", "veryslow", (22, 27, 32, 37)),
    ("x265-dinov2-cls-tiles", "veryslow", (22, 27, 32, 37)),
    ("vvenc-dinov2-cls", "fast", (22, 27, 32, 37)),
    ("vvenc-dinov2-cls", "medium", (22, 27, 32, 37)),
    ("vvenc-dinov2-cls-tiles", "medium", (22, 27, 32, 37)),
    ("vtm-dinov2-cls", "faster", (27,)),
    ("vtm-dinov2-cls", "fast", (27,)),
    ("vtm-dinov2-cls", "reference", (22, 27, 32)),
    ("vtm-dinov2-cls-tiles", "reference", (22, 27, 32)),
)


def main() -> None:
    """Prints the table; writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="folder with final/test and block6/test")
    parser.add_argument("--n", type=int, default=8, help="tensors of each tap, evenly spread over the folder")
    parser.add_argument("--taps", nargs="+", default=list(TAPS), choices=list(TAPS))
    parser.add_argument("--only", nargs="*", default=[], help="codecs whose id begins so")
    parser.add_argument("--json", type=Path, help="file for all figures; what is in it and not measured again stays")
    parser.add_argument("--of", nargs="*", default=[], help="tables and plot of the tensors whose names begin so only")
    parser.add_argument("--plot", type=Path, help="picture file for a plot of all figures")
    args = parser.parse_args()
    figures: list[dict[str, Any]] = []
    if args.json and args.json.is_file():
        figures = json.loads(args.json.read_text(encoding="utf-8"))["figures"]
    print("| tap | codec | speed | n | qp | bpfp | NMSE | CLS cosine | encode CPU s | decode CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for tap in args.taps:
        files = sorted((args.features / tap / "test").glob("*.npy"))
        files = [files[index] for index in np.linspace(0, len(files) - 1, args.n).astype(int)]
        for name, speed, qps in PLAN:
            codec_id = TAPS[tap] if name == "klt" else name
            if args.only and not codec_id.startswith(tuple(args.only)):
                continue
            try:
                codec = load(preset(codec_id))
            except MpcompressError as error:
                print(f"{codec_id}: {error}")
                continue
            reason = getattr(codec, "unavailable_reason", "")
            if reason:
                print(f"{codec_id}: {reason}")
                continue
            codec.warm_up()
            for qp in qps:
                rows = [{"tensor": file.stem, **measure(codec, np.load(file), qp, speed, tap)} for file in files]
                mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key not in _WORDS}
                point = {"tap": tap, "codec": codec_id, "speed": speed, "qp": qp}
                figures = [entry for entry in figures if any(entry[key] != point[key] for key in point)]
                figures.append({**point, "mean": mean, "rows": rows})
                print(
                    f"| {tap} | {codec_id} | {speed} | {len(rows)} | {qp:g} | {mean['bpfp']:.3f} | {mean['nmse']:.4f} "
                    f"| {mean['cls_cosine']:.4f} | {mean['encode_cpu_s']:.3f} | {mean['decode_cpu_s']:.3f} |",
                    flush=True,
                )
                if args.json:
                    args.json.write_text(json.dumps(report(figures), indent=1) + "\n", encoding="utf-8")

    figures = restricted(figures, tuple(args.of))
    print_page(figures)
    if args.plot:
        rate_plots.draw_engines(figures, args.plot)


_WORDS = ("tensor", "encoder")
ANCHOR = ("vtm-dinov2-cls", "reference")
PAGE_QPS, KLT_QPS = (22, 27, 32), (12, 18, 24)


def restricted(figures: list[dict[str, Any]], names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The figures of some of their tensors; of all without names."""
    found = []
    for entry in figures:
        rows = [row for row in entry["rows"] if not names or row["tensor"].startswith(names)]
        if rows:
            mean = {key: float(np.mean([row[key] for row in rows])) for key in entry["mean"]}
            found.append({**entry, "mean": mean, "rows": rows})
    return found


def print_page(figures: list[dict[str, Any]]) -> None:
    """The two tables of docs/vtm.md."""
    print("\n| tap | codec, speed | QP 22 | QP 27 | QP 32 | CLS cosine at 27 | CPU s to encode at 27 |")
    print("|---|---|---|---|---|---|---|")
    labels = dict.fromkeys(_series(entry) for entry in figures)
    for tap in TAPS:
        for codec_id, speed in labels:
            mine = {e["qp"]: e["mean"] for e in figures if e["tap"] == tap and _series(e) == (codec_id, speed)}
            # Comparable qualities have other numbers there.
            qps = KLT_QPS if codec_id == "klt" else PAGE_QPS
            if qps[1] not in mine:
                continue
            cells = [f"{mine[qp]['bpfp']:.3f} -> {mine[qp]['nmse']:.4f}" if qp in mine else "" for qp in qps]
            name = f"{TAPS[tap]}, qp {', '.join(map(str, qps))}" if codec_id == "klt" else f"{codec_id}, {speed}"
            middle = mine[qps[1]]
            seconds = middle["encode_cpu_s"]
            ends = f"{middle['cls_cosine']:.4f} | {seconds:.{1 if seconds >= 1 else 2 if seconds >= 0.1 else 3}f}"
            print(f"| {tap} | {name} | {' | '.join(cells)} | {ends} |")
    print(f"\n| codec, speed | {' | '.join(TAPS)} |\n|---|{'---|' * len(TAPS)}")
    for codec_id, speed in labels:
        ratios = [_bits_over_anchor(figures, tap, codec_id, speed) for tap in TAPS]
        if (codec_id, speed) != ANCHOR:
            name = "klt, calibrated on such features" if codec_id == "klt" else f"{codec_id}, {speed}"
            print(f"| {name} | {' | '.join(ratios)} |")


def _series(entry: dict[str, Any]) -> tuple[str, str]:
    return "klt" if entry["codec"] in TAPS.values() else entry["codec"], entry["speed"]


def _bits_over_anchor(figures: list[dict[str, Any]], tap: str, codec_id: str, speed: str) -> str:
    """Like "-37 %": the mean over the range of NMSE that both cover, interpolated in logs; "" if there is none."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for entry in figures:
        if entry["tap"] == tap:
            point = math.log(entry["mean"]["nmse"]), math.log(entry["mean"]["bpfp"])
            curves.setdefault(_series(entry), []).append(point)
    if ANCHOR not in curves or (codec_id, speed) not in curves:
        return ""
    anchor, curve = np.array(sorted(curves[ANCHOR])), np.array(sorted(curves[codec_id, speed]))
    low, high = max(curve[0, 0], anchor[0, 0]), min(curve[-1, 0], anchor[-1, 0])
    # One point within the anchor's range has low == high.
    if low > high:
        return ""
    grid = np.linspace(low, high, 50)
    gap = np.interp(grid, curve[:, 0], curve[:, 1]) - np.interp(grid, anchor[:, 0], anchor[:, 1])
    return f"{100 * math.expm1(gap.mean()):+.0f} %" + (" (one point)" if low == high else "")


def report(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures with what they were measured on."""
    machine = {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
    return {"made_by": "benchmarks/picture_engines.py", "where": machine, "figures": list(rounded(figures))}


def rounded(figures: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Five significant digits are more than the figures have."""
    for entry in figures:
        numbers = [entry["mean"], *entry["rows"]]
        for values in numbers:
            values.update({key: float(f"{value:.5g}") for key, value in values.items() if isinstance(value, float)})
        yield entry


def measure(codec: FeatureCodec, h: np.ndarray, qp: float, speed: str, tap: str) -> dict[str, Any]:
    """Codes one tensor (L, C), float16, there and back."""
    family = picture_family(tap, speed) if codec.pstate_kind == "picture" else ()
    trip = round_trip(codec, h, CodingParams(qp_eighths=round(8 * qp), family=family))
    return {
        "bpfp": bpfp(trip.mpc_bytes, h.size),
        "nmse": nmse(h, trip.h_hat),
        "cls_cosine": cosine(h[:1], trip.h_hat[:1]),
        "encode_cpu_s": trip.encode_cpu_s,
        "decode_cpu_s": trip.decode_cpu_s,
        "encoder": trip.encoder,
    }


if __name__ == "__main__":
    main()
