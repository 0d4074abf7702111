"""VTM on the judging sets, once: rate and quality of each tensor, written down as data for benchmarks/rate.py.

    VTM_HOME=/path/to/vtm python benchmarks/vtm_anchor.py --features judge --each 16

codes 16 stamps and 16 wallpapers of `judge` (benchmarks/extract_judge.py) at both taps with VTM, all intra, reference
speed, 10 bits, bounds +-20 (final) and +-2 (block6), at QP 22 and 27: a row per token (`vtm-dinov2-cls`); then every
fifth QP further until each tensor's figures bracket the NMSE of the comparisons; then channels as tiles
(`vtm-dinov2-cls-tiles`). 5 to 30 CPU seconds a figure. Each is written to benchmarks/vtm_anchor.json as soon as it is
measured and never measured twice, so the run may be stopped and resumed; tensors take turns, so that what is there at
any moment is balanced.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.coded_features import BOUNDS, Answers, figures, picture_family, round_trip, spread
from benchmarks.rate_tables import GOALS, ROWS, TILES
from demo.split_model import DEFAULT_CACHE
from mpcompress.codec import CodingParams
from mpcompress.errors import MpcompressError
from mpcompress.registry import load, preset

SETS = ("stamps", "wallpapers")
EACH = 16
SPEED = "reference"
QPS = (22, 27)
STEP, FINEST, COARSEST = 5, 7, 47


def main() -> None:
    """Measures what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="folder with TAP/stamps and TAP/wallpapers")
    parser.add_argument("--each", type=int, default=EACH, help="tensors of each set and tap")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the cut model is kept")
    args = parser.parse_args()

    rows: list[dict[str, Any]] = json.loads(args.out.read_text())["figures"] if args.out.is_file() else []
    answers = {tap: Answers(tap, args.cache) for tap in BOUNDS}
    tensors = names(args.features, args.each)

    def have(codec_id: str, tap: str, qp: int, tensor: str) -> float:
        """The NMSE there, measured unless it has been."""
        for row in rows:
            if (row["codec"], row["tap"], row["qp"], row["tensor"]) == (codec_id, tap, qp, tensor):
                return float(row["nmse"])
        rows.append(measure(args.features, answers[tap], codec_id, tap, qp, tensor))
        write(args.out, rows)
        print(rows[-1], flush=True)
        return float(rows[-1]["nmse"])

    for codec_id in (ROWS, TILES):
        for tensor, tap, qp in itertools.product(tensors, BOUNDS, QPS):
            have(codec_id, tap, qp, tensor)
        for tensor, tap in itertools.product(tensors, BOUNDS):
            qp = max(QPS)
            while have(codec_id, tap, qp, tensor) < max(at for of, at in GOALS if of == tap) and qp < COARSEST:
                qp += STEP
        for tensor, tap in itertools.product(tensors, BOUNDS):
            qp = min(QPS)
            while have(codec_id, tap, qp, tensor) > min(at for of, at in GOALS if of == tap) and qp > FINEST:
                qp -= STEP


def names(folder: Path, each: int) -> list[str]:
    """Every tensor ("stamps/0011_lion"), in the order to measure them."""
    tensors = []
    for turn in turns(each):
        for name in SETS:
            files = sorted((folder / "final" / name).glob("*.npy"))
            if not files:
                raise SystemExit(f"no tensors in {folder / 'final' / name}")
            tensors.append(f"{name}/{files[spread(len(files), each)[turn]].stem}")
    return tensors


def turns(count: int) -> list[int]:
    """0 to count - 1, far ones one after the other: a set that is broken off is spread as the whole one."""
    bits = max(1, (count - 1).bit_length())
    reversed_ = [int(f"{index:0{bits}b}"[::-1], 2) for index in range(1 << bits)]
    return [index for index in reversed_ if index < count]


def measure(folder: Path, answers: Answers, codec_id: str, tap: str, qp: int, tensor: str) -> dict[str, Any]:
    """One figure. Raises SystemExit where VTM is missing."""
    h = np.load(folder / tap / f"{tensor}.npy")
    codec = load(preset(codec_id))
    try:
        trip = round_trip(codec, h, CodingParams(qp_eighths=8 * qp, family=picture_family(tap, SPEED)))
    except MpcompressError as error:
        raise SystemExit(f"{codec_id}: {error}") from error
    return {
        "codec": codec_id,
        "tap": tap,
        "qp": qp,
        "tensor": tensor,
        "sha256": hashlib.sha256(h.tobytes()).hexdigest()[:16],
        "bytes": trip.mpc_bytes,
        **figures(answers.quality(tensor, h, trip.h_hat)),
        "encode_cpu_s": figures(trip.encode_cpu_s, 3),
        "encoder": trip.encoder,
    }


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row a line, replaced in one go: a reader never sees half a file."""
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = {"made_by": "benchmarks/vtm_anchor.py", "speed": SPEED, "bit_depth": 10, "bounds": BOUNDS}
    text = json.dumps(head)[:-1] + f',\n "figures": [\n  {lines}\n]}}\n'
    scratch = path.with_suffix(".part")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


if __name__ == "__main__":
    main()
