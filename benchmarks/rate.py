"""Rate against quality of the calibrated codecs and of every anchor on held-out features, in one command.

    python benchmarks/rate.py --features judge features --json benchmarks/rate.json --docs docs

Folders as benchmarks/extract_judge.py (TAP/stamps, TAP/wallpapers) and benchmarks/extract_features.py (TAP/test, called
clip art here; its TAP/train gives the anchors' calibrated scales) write them. For every tap and set: complete .mpc
files, mean and worst NMSE, cosines of CLS and patch tokens, IoU of the saliency map that the rest of the model makes,
CPU milliseconds of one thread. Anchors: fp16, int8, int4 through zstd (their bytes alone); x265 and vvenc on channels
as tiles, and klt with effort 2, on the tensors that VTM was run on; VTM from benchmarks/vtm_anchor.json.

`--only klt` measures one series again and keeps the others of the .json file; `--report` measures nothing.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # CPU time must be the codec's, not that of waiting threads

import numpy as np
from rich.progress import track

from benchmarks import rate_plots, rate_tables, scalar_anchors
from benchmarks.coded_features import (
    BOUNDS,
    Answers,
    Coder,
    Features,
    figures,
    fp16_coder,
    picture_family,
    spread,
    trip_coder,
)
from benchmarks.page_tables import write_tables
from benchmarks.vtm_anchor import EACH
from benchmarks.vtm_anchor import SETS as JUDGED
from demo.split_model import DEFAULT_CACHE
from mpcompress.codec import CodingParams
from mpcompress.registry import load, preset

# Folder in the features -> the set's name.
SETS = {"stamps": "stamps", "wallpapers": "wallpapers", "test": "clip art"}
KLT_QPS = (8, 12, 16, 20, 24, 25, 26, 28, 30, 32, 36, 40, 44, 48)  # the filter begins between 24 and 25
PICTURE_QPS = (17, 22, 27, 32)
PICTURES = {"x265": ("x265-dinov2-cls-tiles", "veryslow"), "vvenc": ("vvenc-dinov2-cls-tiles", "medium")}
INT_BITS = (8, 4)
SLOW = "klt effort 2"
SERIES = ("klt", SLOW, "fp16+zstd", "int8+zstd", "int4+zstd", "x265", "vvenc")
_CALIBRATION_TENSORS = 200
_CHOICE_TENSORS = 8


def main() -> None:
    """Measures, writes, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=Path, default=[], help="folders with TAP/SET/*.npy")
    parser.add_argument("--n", type=int, default=160, help="tensors of each set, evenly spread over the folder")
    parser.add_argument("--only", nargs="+", default=list(SERIES), choices=SERIES)
    parser.add_argument("--taps", nargs="+", default=list(BOUNDS), choices=list(BOUNDS))
    parser.add_argument("--codec", nargs="*", default=[], metavar="TAP=ID", help="codecs instead of the shipped ones")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--vtm", type=Path, default=Path(__file__).with_name("vtm_anchor.json"))
    parser.add_argument("--docs", type=Path, help="folder of rate.md: its tables and its plot are written anew")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the cut model is kept")
    args = parser.parse_args()

    points: list[dict[str, Any]] = json.loads(args.json.read_text())["points"] if args.json.is_file() else []
    vtm = json.loads(args.vtm.read_text())["figures"]
    codecs = {tap: f"klt-imgfocus-vits14-{tap}" for tap in BOUNDS} | dict(entry.split("=") for entry in args.codec)
    if not args.report:
        for tap in args.taps:
            answers = Answers(tap, args.cache)
            for folder, name in ((folder, name) for folder in args.features for name in SETS):
                files = sorted((folder / tap / name).glob("*.npy"))
                if not files:
                    continue
                chosen = {files[index] for index in spread(len(files), args.n)}
                anchored = {files[index] for index in spread(len(files), EACH)} if name in JUDGED else set()
                tensors = {f"{name}/{file.stem}": np.load(file) for file in sorted(chosen | anchored)}
                anchor_names = [f"{name}/{file.stem}" for file in sorted(anchored)]
                scalars = Scalars(args.features, tap)
                for series in args.only:
                    for entry in measure(series, tap, tensors, anchor_names, codecs[tap], scalars, answers):
                        key = (entry["series"], tap, SETS[name], entry["qp"])
                        points = [p for p in points if (p["series"], p["tap"], p["set"], p["qp"]) != key]
                        points.append({"tap": tap, "set": SETS[name], **entry})
                    write(args.json, points)
    for name, table in rate_tables.report(points, vtm).items():
        print(f"{table}\n")
        if args.docs:
            write_tables(args.docs / "rate.md", name, table)
    if args.docs:
        rate_plots.draw(points, vtm, args.docs / "rate.png")


def measure(
    series: str,
    tap: str,
    tensors: dict[str, Features],
    anchored: list[str],
    codec_id: str,
    scalars: Scalars,
    answers: Answers,
) -> Iterator[dict[str, Any]]:
    """The points of one series on one set."""
    names = anchored if series in PICTURES or series == SLOW else list(tensors)
    if not names:
        return
    for qp, coder, note in coders(series, tap, list(tensors.values()), codec_id, scalars):
        rows = {}
        for name in track(names, description=f"{tap} {series} {qp:g}", transient=True):
            h = tensors[name]
            nbytes, h_hat, encode_s, decode_s = coder(h)
            rows[name] = {
                "bytes": nbytes,
                "bpfp": 8 * nbytes / h.size,
                **answers.quality(name, h, h_hat),
                "encode_ms": 1000 * encode_s,
                "decode_ms": 1000 * decode_s,
            }
        yield figures({"series": series, "qp": float(qp), **note, **summary(rows, anchored)})


def coders(
    series: str, tap: str, tensors: list[Features], codec_id: str, scalars: Scalars
) -> Iterator[tuple[float, Coder, dict[str, str]]]:
    """The operating points of a series: qp (or bits), coder, what to say about it."""
    if series in ("klt", SLOW):
        codec = load(preset(codec_id))
        codec.warm_up()
        note = {"codec": codec_id, "fingerprint": codec.fingerprint.hex()}
        for qp in KLT_QPS:
            params = CodingParams(qp_eighths=8 * qp, family=(("effort", 2 if series == SLOW else 1),))
            trip_coder(codec, params)(tensors[0])
            yield qp, trip_coder(codec, params), note
    elif series in PICTURES:
        codec_id, speed = PICTURES[series]
        codec = load(preset(codec_id))
        for qp in PICTURE_QPS:
            params = CodingParams(qp_eighths=8 * qp, family=picture_family(tap, speed))
            yield qp, trip_coder(codec, params), {"codec": codec_id, "speed": speed}
    elif series == "fp16+zstd":
        yield 16, fp16_coder, {}
    else:
        bits = int(series[3])
        variant = scalars.variant(bits, tensors)
        yield bits, lambda h: scalar_anchors.integers(h, variant, scalars.largest), {"variant": str(variant)}


class Scalars:
    """What the integers of a tap share: the range of each channel, and the best variant, chosen on the first set.

    Args:
        folders: the features; the first TAP/train in them gives the ranges.
        tap: which.
    """

    def __init__(self, folders: list[Path], tap: str) -> None:
        files = [file for folder in folders for file in sorted((folder / tap / "train").glob("*.npy"))]
        tensors = [np.load(file) for file in files[:_CALIBRATION_TENSORS]]
        self.largest = scalar_anchors.largest_magnitudes(tensors) if tensors else None
        self._variants: dict[int, scalar_anchors.Variant] = {}

    def variant(self, bits: int, tensors: list[Features]) -> scalar_anchors.Variant:
        """The best for `bits` bits."""
        if bits not in self._variants:
            sample = tensors[:: max(1, len(tensors) // _CHOICE_TENSORS)]
            self._variants[bits] = scalar_anchors.best(sample, bits, self.largest)
        return self._variants[bits]


def summary(rows: dict[str, dict[str, float]], anchored: list[str]) -> dict[str, Any]:
    """Means, medians and worst of a point; bytes and NMSE of each tensor that VTM was run on."""
    column = {key: np.array([row[key] for row in rows.values()]) for key in next(iter(rows.values()))}
    means = ("bpfp", "nmse", "cls_cosine", "patch_cosine", "final_cls_cosine", "saliency_iou")
    return {
        "n": len(rows),
        **{key: float(column[key].mean()) for key in means},
        "worst_bpfp": float(column["bpfp"].max()),
        "worst_nmse": float(column["nmse"].max()),
        **{f"worst_{key}": float(column[key].min()) for key in means[2:]},
        **{key: float(np.median(column[key])) for key in ("encode_ms", "decode_ms")},
        "rows": {name: [int(rows[name]["bytes"]), rows[name]["nmse"]] for name in anchored if name in rows},
    }


def write(path: Path, points: list[dict[str, Any]]) -> None:
    """One point a line."""
    where = {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
    lines = ",\n  ".join(json.dumps(point) for point in points)
    text = json.dumps({"made_by": "benchmarks/rate.py", "where": where})[:-1] + f',\n "points": [\n  {lines}\n]}}\n'
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
