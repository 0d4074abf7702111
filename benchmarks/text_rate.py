"""Rate against the answer on text: klt and integers through zstd on MiniLM's hidden states, in one command.

    python benchmarks/text_rate.py --features text --json benchmarks/text_rate.json --docs docs

`text` is what benchmarks/extract_text.py writes. The features of a passage are coded, decoded and finished by the rest
of the model: the cosine between the sentence vector and that of the exact features, and whether a search still finds
the text that follows the passage among those of all passages. Complete .mpc files for klt; for the others their
payload alone. Sets: `test`, files held out of the sources that klt was calibrated on; `judge`, other sources.
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
from rich.progress import track

from benchmarks import rate_plots, scalar_anchors
from benchmarks.coded_features import Coder, Features, figures, fp16_coder, mean_token_cosine, trip_coder
from benchmarks.minilm import CUTS, MiniLm
from benchmarks.page_tables import write_tables
from benchmarks.rate_tables import number, percent
from mpcompress.codec import CodingParams
from mpcompress.metrics import nmse
from mpcompress.registry import load, preset

Point = dict[str, Any]

SETS = ("test", "judge")
SET_NAMES = {"test": "held-out files", "judge": "other sources"}
KLT_QPS = (4, 8, 12, 16, 20, 24, 28, 32)
GOAL = 0.30
_CALIBRATION_TENSORS = 400
_CHOICE_TENSORS = 12


class Search:
    """The task of a set at a cut.

    Args:
        model: the encoder.
        cut: where the features are from.
        tensors: features (L, C) of the passages.
        partners: what each should find, (N, 384).
    """

    def __init__(self, model: MiniLm, cut: str, tensors: list[Features], partners: Features) -> None:
        self._model, self._cut, self._partners = model, cut, partners
        self.truth = np.array([model.sentence(cut, h.astype(np.float32)) for h in tensors])
        self._found = (self.truth @ partners.T).argmax(1)

    def answers(self, decoded: list[Features]) -> dict[str, float]:
        """Cosines of the sentences, share of passages that find their partner, and that find what the exact ones do."""
        vectors = np.array([self._model.sentence(self._cut, h.astype(np.float32)) for h in decoded])
        cosines = (vectors * self.truth).sum(1)
        found = (vectors @ self._partners.T).argmax(1)
        return {
            "sentence_cosine": float(cosines.mean()),
            "worst_sentence_cosine": float(cosines.min()),
            "top1": float((found == np.arange(len(found))).mean()),
            "top1_exact": float((self._found == np.arange(len(found))).mean()),
            "same_answer": float((found == self._found).mean()),
        }


def main() -> None:
    """Measures, writes, reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, help="folder of extract_text.py")
    parser.add_argument("--n", type=int, default=200, help="passages of each set")
    parser.add_argument("--codec", nargs="*", default=[], metavar="CUT=ID", help="codecs instead of the shipped ones")
    parser.add_argument("--json", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--docs", type=Path, help="folder of rate.md: its tables and its plot are written anew")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the installed package")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    args = parser.parse_args()
    if args.report:
        points: list[Point] = json.loads(args.json.read_text())["points"]
    else:
        codecs = {cut: f"klt-minilm-{cut}" for cut in CUTS} | dict(entry.split("=") for entry in args.codec)
        model = MiniLm(args.model)
        partners = np.load(args.features / "partners.npz")
        points = []
        for cut in CUTS:
            for split in SETS:
                points += measure(args.features, model, partners, cut, split, args.n, codecs[cut])
                write(args.json, points)
    for name, lines in {"text goals": goals(points), "text rates": rates(points)}.items():
        table = "\n".join(lines)
        print(f"{table}\n")
        if args.docs:
            write_tables(args.docs / "rate.md", name, table)
    if args.docs:
        rate_plots.draw_text(points, args.docs / "rate_text.png")


def measure(
    folder: Path, model: MiniLm, partners: Any, cut: str, split: str, count: int, codec_id: str
) -> Iterator[Point]:
    """Every point of a cut on a set."""
    files = sorted((folder / cut / split).glob("*.npy"))[:count]
    tensors = [np.load(file) for file in files]
    search = Search(model, cut, tensors, np.array([partners[f"{split}/{file.stem}"] for file in files]))
    train = sorted((folder / cut / "train").glob("*.npy"))[:_CALIBRATION_TENSORS]
    largest = scalar_anchors.largest_magnitudes([np.load(file) for file in train])
    for series, qp, coder, note in coders(codec_id, tensors, largest):
        trips = [coder(h) for h in track(tensors, description=f"{cut} {split} {series} {qp:g}", transient=True)]
        decoded = [trip[1] for trip in trips]
        errors = [nmse(h, h_hat) for h, h_hat in zip(tensors, decoded, strict=True)]
        token_cosines = [mean_token_cosine(h, h_hat) for h, h_hat in zip(tensors, decoded, strict=True)]
        yield figures(
            {
                "cut": cut,
                "set": split,
                "n": len(files),
                "series": series,
                "qp": float(qp),
                **note,
                "bpfp": 8 * sum(trip[0] for trip in trips) / sum(h.size for h in tensors),
                "mean_bytes": float(np.mean([trip[0] for trip in trips])),
                "nmse": float(np.mean(errors)),
                "worst_nmse": float(np.max(errors)),
                "token_cosine": float(np.mean(token_cosines)),
                **search.answers(decoded),
                "encode_ms": 1000 * float(np.median([trip[2] for trip in trips])),
                "decode_ms": 1000 * float(np.median([trip[3] for trip in trips])),
            }
        )


def coders(
    codec_id: str, tensors: list[Features], largest: Features
) -> Iterator[tuple[str, float, Coder, dict[str, str]]]:
    """Series, qp or bits, coder, and what to say about it."""
    codec = load(preset(codec_id))
    codec.warm_up()
    note = {"codec": codec_id, "fingerprint": codec.fingerprint.hex()}
    for qp in KLT_QPS:
        coder = trip_coder(codec, CodingParams(qp_eighths=8 * qp))
        coder(tensors[0])
        yield "klt", qp, coder, note
    yield "fp16+zstd", 16, fp16_coder, {}
    sample = tensors[:: max(1, len(tensors) // _CHOICE_TENSORS)]
    yield "int8+zstd", 8, *_integers(scalar_anchors.best(sample, 8, largest), largest)
    for kind in scalar_anchors.SCALES:
        variant = scalar_anchors.best(sample, 4, largest, scales=(kind,))
        yield f"int4+zstd, {kind}", 4, *_integers(variant, largest)


def _integers(variant: scalar_anchors.Variant, largest: Features) -> tuple[Coder, dict[str, str]]:
    return lambda h: scalar_anchors.integers(h, variant, largest), {"variant": str(variant)}


def bits_at(curve: list[Point], cosine: float) -> float:
    """Read bpfp off a curve at a mean sentence cosine: lines between the logarithms of bits and of 1 - cosine."""
    x, y = zip(*sorted((math.log(1 - p["sentence_cosine"]), math.log(p["bpfp"])) for p in curve), strict=True)
    at = math.log(1 - cosine)
    k = int(np.clip(np.searchsorted(x, at), 1, len(x) - 1))
    return math.exp(y[k - 1] + (y[k] - y[k - 1]) * (at - x[k - 1]) / (x[k] - x[k - 1]))


def goals(points: list[Point]) -> Iterator[str]:
    """Bits against int4 at equal sentence cosine."""
    yield "| cut | set | n | against int4 with scales per | its bpfp | sentence cosine | klt's bpfp | fewer bits |"
    yield "|---|---|---|---|---|---|---|---|"
    for cut, split, mine in _parts(points):
        curve = [p for p in mine if p["series"] == "klt"]
        for p in (p for p in mine if p["series"].startswith("int4")):
            ours = bits_at(curve, p["sentence_cosine"])
            cells = [cut, SET_NAMES[split], str(p["n"]), p["series"].split(", ")[1], number(p["bpfp"])]
            cells += [number(p["sentence_cosine"], 4), number(ours), f"**{percent(1 - ours / p['bpfp'])}**"]
            yield "| " + " | ".join(cells) + " |"


def rates(points: list[Point]) -> Iterator[str]:
    """Every point."""
    yield (
        "| cut | set | codec | qp | bpfp | bytes | NMSE | worst | token cosine | sentence cosine | worst "
        "| top-1 (exact) | same answer | encode ms | decode ms |"
    )
    yield "|---|" + "---|" * 14
    for cut, split, mine in _parts(points):
        for p in mine:
            cells = [cut, SET_NAMES[split], p["series"], f"{p['qp']:g}" if p["series"] == "klt" else ""]
            cells += [number(p["bpfp"]), f"{p['mean_bytes']:.0f}"]
            keys = ("nmse", "worst_nmse", "token_cosine", "sentence_cosine", "worst_sentence_cosine")
            cells += [number(p[key], 4) for key in keys]
            cells += [f"{number(p['top1'])} ({number(p['top1_exact'])})", number(p["same_answer"])]
            cells += [f"{p[key]:.1f}" for key in ("encode_ms", "decode_ms")]
            yield "| " + " | ".join(cells) + " |"


def _parts(points: list[Point]) -> Iterator[tuple[str, str, list[Point]]]:
    for cut in CUTS:
        for split in SETS:
            mine = [p for p in points if p["cut"] == cut and p["set"] == split]
            if mine:
                yield cut, split, mine


def write(path: Path, points: list[Point]) -> None:
    """One point a line."""
    where = {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
    lines = ",\n  ".join(json.dumps(point) for point in points)
    text = (
        json.dumps({"made_by": "benchmarks/text_rate.py", "where": where})[:-1] + f',\n "points": [\n  {lines}\n]}}\n'
    )
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
