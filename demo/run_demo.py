"""Split a real model, put a real server between the halves, and show what compression costs.

    python -m demo.run_demo [--qp 16 24 32] [--json FILE] [PICTURE ...]

For every picture: edge half -> Compress -> coded unit -> Decompress -> cloud half, at three qps and both cuts; then a
table, and demo/report.png with the model's answers before and after.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from demo.report import Measurement, Row, Sample, draw, summarise, tables, write_json
from demo.server_process import ServerDiedError, running_server
from demo.split_model import (
    DEFAULT_CACHE,
    GRID,
    TAPS,
    CloudHalf,
    CloudResult,
    EdgeHalf,
    Floats,
    ModelMissingError,
    fit,
)
from mpcompress import registry
from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import MpcompressError
from mpcompress.metrics import bpfp, cosine, nmse
from mpcompress_client import CompressionClient, MPCompressError

HERE = Path(__file__).resolve().parent
CODECS = {tap: f"klt-imgfocus-vits14-{tap}" for tap in TAPS}
REPEATS = 5  # of each timed call; the quickest counts, being the least disturbed by whatever else the machine does

CONSOLE = Console()

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """Call `REPEATS` times; return the last result and the shortest time, ms."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = call()
        times.append(1e3 * (time.perf_counter() - start))
    return result, min(times)


class LocalTimer:
    """The same codec in this process, to tell its time from that of gRPC and the server."""

    def __init__(self, codec_id: str) -> None:
        self._codec = registry.load(registry.preset(codec_id))
        self._codec.warm_up()

    def times_ms(self, features: Floats, qp: float) -> tuple[float, float]:
        """Return the time to encode and to decode, ms."""
        spec = TensorSpec(name="h", dtype="float32", shape=features.shape)
        params = self._codec.resolve([spec], CodingParams(qp_eighths=round(8 * qp), token_res=GRID))
        (coded,), encode_ms = timed(lambda: self._codec.compress([{"h": features}], params))
        unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
        return encode_ms, timed(lambda: self._codec.decompress([unit]))[1]


def through_server(client: CompressionClient, codec: str, features: Floats, qp: float) -> tuple[int, Floats, float]:
    """Compress and decompress on the server; return the .mpc bytes, the decoded features and the time of both, ms."""
    unit, compress_ms = timed(lambda: client.compress(features, codec=codec, qp=qp, token_res=GRID))
    decoded, decompress_ms = timed(lambda: client.decompress(unit))
    return unit.nbytes, np.asarray(decoded, dtype=np.float32), compress_ms + decompress_ms


def overlap(before: Floats, after: Floats) -> float:
    """Return the intersection over union of two saliency maps thresholded at 0.5; 1 when both are empty."""
    a, b = before > 0.5, after > 0.5
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def measure(
    client: CompressionClient, timer: LocalTimer, cloud: CloudHalf, features: Floats, truth: CloudResult, qp: float
) -> tuple[Measurement, Floats]:
    """Send one picture's features through the server at one qp; return the figures and the saliency map after."""
    nbytes, decoded, calls_ms = through_server(client, CODECS[cloud.tap], features, qp)
    answer = cloud(decoded)
    encode_ms, decode_ms = timer.times_ms(features, qp)
    figures = Measurement(
        raw_bytes=2 * features.size,
        mpc_bytes=nbytes,
        bpfp=bpfp(nbytes, features.size),
        nmse=nmse(features, decoded),
        cls_cosine=cosine(truth.cls, answer.cls),
        saliency_iou=overlap(truth.saliency, answer.saliency),
        encode_ms=encode_ms,
        decode_ms=decode_ms,
        rpc_ms=calls_ms,
    )
    return figures, answer.saliency


def run(paths: Sequence[Path], qps: Sequence[float], cache: Path) -> tuple[list[Row], list[Sample]]:
    """Send every picture through both cuts at every qp; return the rows of the table and the samples of the figure."""
    pictures = [fit(Image.open(path)) for path in paths]
    rows: list[Row] = []
    samples: list[Sample] = []
    CONSOLE.print("starting the server; the first start on a machine compiles its coder")
    with running_server() as target, CompressionClient(target) as client:
        for tap, codec in CODECS.items():
            edge, cloud, timer = EdgeHalf(tap, cache=cache), CloudHalf(tap, cache=cache), LocalTimer(codec)
            features = [edge(picture) for picture in pictures]
            truths = [cloud(one) for one in features]
            if not samples:
                samples = [
                    Sample(name=path.stem, picture=picture, raw_bytes=2 * one.size, before=truth.saliency, after={})
                    for path, picture, one, truth in zip(paths, pictures, features, truths, strict=True)
                ]
            for qp in qps:
                figures = []
                jobs = list(zip(features, truths, samples, strict=True))
                title, quiet = f"{tap}, qp {qp:g}", not CONSOLE.is_terminal
                for one, truth, sample in track(jobs, title, transient=True, disable=quiet):
                    measured, saliency = measure(client, timer, cloud, one, truth, qp)
                    sample.after[title] = (measured.mpc_bytes, saliency)
                    figures.append(measured)
                rows.append(summarise(codec, qp, figures))
    return rows, samples


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, help="default: the ones in demo/pictures")
    parser.add_argument("--qp", nargs="+", type=float, default=[16.0, 24.0, 32.0], help="smaller is finer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the table as JSON")
    parser.add_argument(
        "--report", type=Path, default=HERE / "report.png", metavar="FILE", help="where the figure goes"
    )
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where the halves of the model are kept")
    args = parser.parse_args(arguments)
    paths = args.pictures or sorted((HERE / "pictures").glob("*.png"))
    try:
        rows, samples = run(paths, args.qp, args.cache)
    except (ModelMissingError, ServerDiedError, MpcompressError, MPCompressError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    draw(samples, args.report)
    if args.json:
        write_json(rows, args.json, pictures=len(paths))
    CONSOLE.print(tables(rows, pictures=len(paths)))
    print(f"{args.report}: each picture's saliency before and after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
