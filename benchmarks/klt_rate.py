"""Rate, quality and CPU time of calibrated codecs on folders of features, complete units counted.

    python benchmarks/klt_rate.py --codec klt-imgfocus-vits14-final --features features/final/test

Prints, per codec and qp, medians over n tensors of bpfp (payload + the most that a unit has beside it), NMSE, cosine of
the prefix tokens, by how much the payload exceeds the ideal length of its symbols, and CPU milliseconds to encode and
decode: one tensor after the other, with nothing between. One thread.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # process time must be the codec's, not that of waiting threads

import numpy as np

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.feature_files import open_features
from mpcompress.metrics import bpfp, cosine, nmse
from mpcompress.registry import CodecSpec, load, preset, preset_ids
from mpcompress.transforms.klt_encoder import Encoder
from mpcompress.transforms.klt_engine import Engine
from mpcompress.transforms.klt_model_file import read_model
from mpcompress.transforms.klt_report import unit_overhead_bytes
from mpcompress.transforms.klt_sample import Sample
from mpcompress.transforms.klt_search import PASSES
from mpcompress.transforms.klt_statistics import Steps, statistics_at


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=Path, required=True, help="folders or files")
    parser.add_argument("--codec", nargs="+", required=True, help="preset ids or codec files, one per folder or one")
    parser.add_argument("--qp", nargs="+", type=float, default=[12, 18, 24, 30, 36])
    parser.add_argument("--prefix-qp-offset", type=float, help="qp of the prefix tokens less the patches'")
    parser.add_argument("--limit", type=int, default=200, help="tensors per folder")
    args = parser.parse_args()
    codecs = args.codec * len(args.features) if len(args.codec) == 1 else args.codec
    print("| features | codec | n | qp | bpfp | NMSE | prefix cosine | over ideal | encode ms | decode ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for folder, name in zip(args.features, codecs, strict=True):
        codec = load(_spec(name))
        codec.warm_up()
        encoder = Encoder(Engine(codec.model))
        tensors = [tensor.read().astype(np.float16) for tensor in open_features(folder)[: args.limit]]
        for qp in args.qp:
            units, encode_s = _timed(lambda h: _compress(codec, h, qp, args.prefix_qp_offset), tensors)  # noqa: B023
            decoded, decode_s = _timed(lambda unit: codec.decompress([unit])[0]["h_hat"], units)  # noqa: B023
            judged = [_judge(codec, encoder, *each) for each in zip(tensors, units, decoded, strict=True)]
            row = np.median(judged, axis=0)
            figures = f"{row[0]:.3f} | {row[1]:.4f} | {row[2]:.4f} | {100 * row[3]:.2f} %"
            figures += f" | {1000 * encode_s:.1f} | {1000 * decode_s:.1f}"
            where = "/".join(folder.parts[-2:])
            print(f"| {where} | {codec.id} | {len(tensors)} | {qp:g} | {figures} |", flush=True)


def _spec(name: str) -> CodecSpec:
    if name in preset_ids():
        return preset(name)
    return CodecSpec(id=read_model(Path(name).read_bytes()).id, family="klt", weights=name)


def _timed(work: Callable[[Any], Any], inputs: Iterable[Any]) -> tuple[list[Any], float]:
    """What each input becomes, and the median of CPU seconds."""
    found, spent = [], []
    for value in inputs:
        begin = time.process_time()
        found.append(work(value))
        spent.append(time.process_time() - begin)
    return found, float(np.median(spent))


def _compress(codec, h, qp, offset) -> Unit:
    spec = TensorSpec(name="h", dtype="float16", shape=h.shape)
    family = () if offset is None else (("prefix_qp_offset_eighths", round(8 * offset)),)
    (coded,) = codec.compress([{"h": h}], codec.resolve([spec], CodingParams(qp_eighths=round(8 * qp), family=family)))
    return Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))


def _judge(codec, encoder, h, unit, h_hat) -> tuple[float, ...]:
    prefix = codec.prefix_tokens
    return (
        bpfp(sum(map(len, unit.strings)) + unit_overhead_bytes(codec.id), h.size),
        nmse(h, h_hat),
        cosine(h[:prefix], h_hat[:prefix]) if prefix else 1.0,
        8 * len(unit.strings[0]) / _ideal_bits(codec, encoder, h, unit.pstate) - 1,
    )


def _ideal_bits(codec, encoder, h, pstate) -> float:
    """Sum of -log2 of the probabilities that the tables give to the symbols of a tensor, by coding it again."""
    model = codec.model
    offset = pstate.get("prefix_qp_offset_eighths", model.prefix_qp_offset_eighths)
    steps = Steps.of(model, pstate["qp_eighths"], offset, pstate.get("gain_eighths", 0))
    far = np.cumsum(np.array(pstate.get("far_tokens", []), np.int64) + 1) - 1
    height, width = codec.token_res or (1, len(h) - codec.prefix_tokens)
    sample = Sample(h.astype(np.float32), codec.prefix_tokens, height, width, far)
    symbols = encoder.quantise(sample, steps, statistics_at(model, steps), model.rate, None, PASSES[1])
    tables = model.tables
    at, sizes = symbols.values - tables.offsets[symbols.classes], tables.lengths[symbols.classes] - 1
    inside = (at >= 0) & (at < sizes)
    begins = np.cumsum(tables.lengths) - tables.lengths
    bits = tables.precision - np.log2(tables.freqs[begins[symbols.classes] + np.where(inside, at, sizes)])
    beyond = np.where(at < 0, -1 - at, at - sizes)[~inside]
    # An escape's side, and its distance as an Exp-Golomb code.
    return float(bits.sum() + (2 + 2 * np.floor(np.log2(beyond + 1))).sum())


if __name__ == "__main__":
    main()
