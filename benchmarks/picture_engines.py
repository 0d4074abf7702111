"""Rate, quality and CPU seconds of every picture engine, and of klt, on the same real features, in one run.

    python benchmarks/picture_engines.py --features features --n 8 --json benchmarks/picture_engines.json
    VTM_HOME=/path/to/vtm python benchmarks/picture_engines.py ...              with VTM: minutes per tensor

Means over n tensors of each tap: bpfp of the complete .mpc file, NMSE, cosine of the CLS token, CPU seconds (of this
process and its children) to encode, verification by decoding included, and to decode a stranger's unit. The .json file
holds every single figure with the versions of the engines. A second table gives each codec's bits over VTM's.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # CPU time must be the codec's, not that of waiting threads

import numpy as np

from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec, Unit
from mpcompress.errors import MpcompressError
from mpcompress.metrics import cosine, nmse
from mpcompress.picture import decode
from mpcompress.registry import load, preset
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.v1 import compression_pb2 as pb

# Folder -> truncation bound of the picture codecs, and the calibrated codec.
TAPS = {"final": (20.0, "klt-imgfocus-vits14-final"), "block6": (2.0, "klt-imgfocus-vits14-block6")}
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
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args()
    figures: list[dict[str, Any]] = []
    print("| tap | codec | speed | n | qp | bpfp | NMSE | CLS cosine | encode CPU s | decode CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for tap in args.taps:
        bound, klt = TAPS[tap]
        files = sorted((args.features / tap / "test").glob("*.npy"))
        files = [files[index] for index in np.linspace(0, len(files) - 1, args.n).astype(int)]
        for name, speed, qps in PLAN:
            codec_id = klt if name == "klt" else name
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
                rows = [{"tensor": file.stem, **measure(codec, np.load(file), qp, speed, bound)} for file in files]
                mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key not in _WORDS}
                figures.append({"tap": tap, "codec": codec_id, "speed": speed, "qp": qp, "mean": mean, "rows": rows})
                print(
                    f"| {tap} | {codec_id} | {speed} | {len(rows)} | {qp:g} | {mean['bpfp']:.3f} | {mean['nmse']:.4f} "
                    f"| {mean['cls_cosine']:.4f} | {mean['encode_cpu_s']:.3f} | {mean['decode_cpu_s']:.3f} |",
                    flush=True,
                )
                if args.json:
                    args.json.write_text(json.dumps(report(figures), indent=1) + "\n", encoding="utf-8")

    print_comparison(figures)


_WORDS = ("tensor", "encoder")
ANCHOR = ("vtm-dinov2-cls", "reference")


def print_comparison(figures: list[dict[str, Any]]) -> None:
    """Bits of each codec over the anchor's at equal NMSE: the mean over the range both cover, interpolated in logs."""
    print("\n| tap | codec | speed | bits against the anchor | NMSE range |\n|---|---|---|---|---|")
    for tap in TAPS:
        curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for entry in figures:
            if entry["tap"] == tap:
                point = math.log(entry["mean"]["nmse"]), math.log(entry["mean"]["bpfp"])
                curves.setdefault((entry["codec"], entry["speed"]), []).append(point)
        if ANCHOR not in curves:
            continue
        anchor = np.array(sorted(curves[ANCHOR]))
        for (codec_id, speed), points in curves.items():
            curve = np.array(sorted(points))
            low, high = max(curve[0, 0], anchor[0, 0]), min(curve[-1, 0], anchor[-1, 0])
            ratio, covered = "", "at one point"
            # One point within the anchor's range has low == high; without a common range low is above high.
            if low <= high:
                grid = np.linspace(low, high, 50)
                gap = np.interp(grid, curve[:, 0], curve[:, 1]) - np.interp(grid, anchor[:, 0], anchor[:, 1])
                ratio = f"{100 * math.expm1(gap.mean()):+.0f} %"
                if low < high:
                    covered = f"{math.exp(low):.3f} to {math.exp(high):.3f}"
            print(f"| {tap} | {codec_id} | {speed} | {ratio} | {covered} |")


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


def measure(codec: FeatureCodec, h: np.ndarray, qp: float, speed: str, bound: float) -> dict[str, Any]:
    """Codes one tensor (L, C), float16, there and back."""
    spec = TensorSpec(name="h", dtype=h.dtype.name, shape=h.shape)
    family: tuple[tuple[str, Any], ...] = ()
    if codec.pstate_kind == "picture":
        # One strip: the figures are those of one process.
        family = (("speed", speed), ("strips", 1), ("trun_high", (bound,)), ("trun_low", (-bound,)))
    params = codec.resolve([spec], CodingParams(qp_eighths=round(8 * qp), family=family))
    begin = cpu_s()
    (coded,) = codec.compress([{"h": h}], params)
    encode_cpu_s = cpu_s() - begin
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
    decode.OWN_STREAMS.forget()
    begin = cpu_s()
    h_hat = codec.decompress([unit])[0]["h_hat"]
    decode_cpu_s = cpu_s() - begin
    built = CodedUnit.build(
        codec_id=codec.id,
        fingerprint=codec.fingerprint,
        bitstream_version=codec.bitstream_version,
        arithmetic=pb.ARITHMETIC_EXACT,
        tensors=[pb.TensorSpec(name="h", dtype=pb.DATA_TYPE_FLOAT16, shape=h.shape)],
        kind=codec.pstate_kind,
        pstate=coded.pstate,
        strings=coded.strings,
    )
    return {
        "bpfp": built.bpfp,
        "payload_bytes": sum(map(len, coded.strings)),
        "nmse": nmse(h, h_hat),
        "cls_cosine": cosine(h[:1], h_hat[:1]),
        "encode_cpu_s": encode_cpu_s,
        "decode_cpu_s": decode_cpu_s,
        "encoder": coded.pstate.get("encoder", codec.id),
    }


def cpu_s() -> float:
    """CPU seconds of this process and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
