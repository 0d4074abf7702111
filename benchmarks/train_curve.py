"""Trained neural codecs beside a calibrated one on the same tensors, complete .mpc files counted.

    python benchmarks/train_curve.py vit-l3.safetensors vit-l12.safetensors --features features/final/test

Prints per codec means over n tensors: bpfp, NMSE, the cosine of the prefix tokens, CPU milliseconds to encode and
decode, the bpfp that the calibrated codec needs for the same NMSE (between its points, a straight line in log NMSE),
and how many times more bits that makes. One thread.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # process time must be the codec's, not that of waiting threads

import numpy as np

from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec, Unit
from mpcompress.feature_files import open_features
from mpcompress.metrics import cosine, nmse
from mpcompress.registry import CodecSpec, load, preset
from mpcompress.transforms.tensor_file import read_tensor_file
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.tensors import spec_of
from mpcompress_proto.v1 import compression_pb2 as pb

_QPS = tuple(range(12, 49, 6))
_ARITHMETIC = {"exact": pb.ARITHMETIC_EXACT, "float32": pb.ARITHMETIC_FLOAT32}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codecs", nargs="+", type=Path, help="codec files that `mpcompress train` wrote")
    parser.add_argument("--features", type=Path, required=True, help="folder or file of test tensors")
    parser.add_argument("--klt", default="klt-imgfocus-vits14-final", help="calibrated codec, a preset's id")
    parser.add_argument("--limit", type=int, default=32, help="tensors, spread over the folder")
    args = parser.parse_args()
    found = open_features(args.features)
    tensors = [tensor.read().astype(np.float16) for tensor in found[:: max(1, len(found) // args.limit)][: args.limit]]
    print(f"{len(tensors)} tensors of {tensors[0].shape}, float16")
    print("| codec | bpfp | NMSE | prefix cosine | encode ms | decode ms | klt bpfp | times klt |")
    print("|---|---|---|---|---|---|---|---|")
    calibrated = load(preset(args.klt))
    calibrated.warm_up()
    curve = []
    for qp in _QPS:
        row = _mean(calibrated, tensors, qp)
        curve.append(row[:2])
        print(f"| {args.klt}, qp {qp} | {_figures(row)} | | |", flush=True)
    for path in args.codecs:
        codec = _load(path)
        codec.warm_up()
        row = _mean(codec, tensors, None)
        print(f"| {codec.id} | {_figures(row)} | {_compared(curve, row)} |", flush=True)


def _load(path: Path) -> FeatureCodec:
    header = json.loads(read_tensor_file(path.read_bytes())[1]["mpcompress"])
    return load(CodecSpec(id=header["id"], family=header["family"], weights=str(path)))


def _mean(codec: FeatureCodec, tensors: list[np.ndarray], qp: int | None) -> np.ndarray:
    return np.mean([_measure(codec, h, qp) for h in tensors], axis=0)


def _measure(codec: FeatureCodec, h: np.ndarray, qp: int | None) -> tuple[float, ...]:
    spec = TensorSpec(name="h", dtype="float16", shape=h.shape)
    params = codec.resolve([spec], CodingParams(qp_eighths=None if qp is None else 8 * qp))
    begin = time.process_time()
    (coded,) = codec.compress([{"h": h}], params)
    middle = time.process_time()
    (out,) = codec.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])
    end = time.process_time()
    unit = CodedUnit.build(
        codec_id=codec.id,
        bitstream_version=codec.bitstream_version,
        fingerprint=codec.fingerprint,
        arithmetic=_ARITHMETIC[codec.arithmetic],
        tensors=[spec_of(h, "h")],
        kind=codec.pstate_kind,
        pstate=coded.pstate,
        strings=coded.strings,
    )
    prefix = max(codec.prefix_tokens, 1)
    h_hat = out["h_hat"]
    return (
        unit.bpfp,
        nmse(h, h_hat),
        cosine(h[:prefix], h_hat[:prefix]),
        1000 * (middle - begin),
        1000 * (end - middle),
    )


def _figures(row: np.ndarray) -> str:
    return f"{row[0]:.4f} | {row[1]:.4f} | {row[2]:.3f} | {row[3]:.0f} | {row[4]:.0f}"


def _compared(curve: list[np.ndarray], row: np.ndarray) -> str:
    """Bpfp of the curve at the row's NMSE, and the row's over it; a bound beyond the curve's ends."""
    rates, errors = np.array(sorted(curve, key=lambda point: point[1])).T
    if row[1] > errors[-1]:
        return f"under {rates[-1]:.4f} | over {row[0] / rates[-1]:.0f}"
    if row[1] < errors[0]:
        return f"over {rates[0]:.4f} | under {row[0] / rates[0]:.1f}"
    needed = float(np.interp(np.log(row[1]), np.log(errors), rates))
    return f"{needed:.4f} | {row[0] / needed:.1f}"


if __name__ == "__main__":
    main()
