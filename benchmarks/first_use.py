"""How long the first use of a calibrated codec takes after an installation, and every later one.

    python benchmarks/first_use.py

Fresh processes load a shipped codec and code one tensor there and back: with an empty cache of compiled code, then with
the one just filled. Prints wall and CPU seconds of the imports alone and of all, and medians of the later runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_CHILD = """
import json, time
begin = time.perf_counter(), time.process_time()
import numpy as np
from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.registry import load, preset
import mpcompress.transforms.klt_codec
imported = time.perf_counter(), time.process_time()
codec = load(preset("klt-imgfocus-vits14-final"))
h = np.load({features!r})[0]
spec = TensorSpec(name="h", dtype="float16", shape=h.shape)
(coded,) = codec.compress([{{"h": h}}], codec.resolve([spec], CodingParams()))
codec.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])
end = time.perf_counter(), time.process_time()
print(json.dumps([imported[0] - begin[0], imported[1] - begin[1], end[0] - begin[0], end[1] - begin[1]]))
"""
_FEATURES = Path(__file__).resolve().parent.parent / "tests" / "data" / "features_final.npy"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--later", type=int, default=5, help="runs with a filled cache")
    args = parser.parse_args()
    print("| | imports, s | CPU | imports, codec and a tensor, s | CPU |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as cache:
        first = _run(cache)
        print("| first use | " + " | ".join(f"{value:.2f}" for value in first) + " |", flush=True)
        later = [_run(cache) for _ in range(args.later)]
        medians = [statistics.median(column) for column in zip(*later, strict=True)]
        print(f"| later, median of {args.later} | " + " | ".join(f"{value:.2f}" for value in medians) + " |")


def _run(cache: str) -> list[float]:
    command = [sys.executable, "-c", _CHILD.format(features=str(_FEATURES))]
    environment = {**os.environ, "MPCOMPRESS_CACHE_DIR": cache}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    found: list[float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
