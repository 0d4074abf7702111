"""Writes the golden units of the shipped calibrated codecs; refuses to replace one.

    python tests/mpcompress/transforms/write_golden.py

A unit that is here decodes for ever: a codec that cannot decode it is another codec and takes another id.
"""

import json
from pathlib import Path

import numpy as np

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.entropy.rans import decode
from mpcompress.registry import load, preset
from mpcompress.transforms.klt_state import read_state
from mpcompress.transforms.klt_symbols import Steps
from mpcompress.transforms.tiling import Layout

HERE = Path(__file__).resolve().parent
CASES = {
    "default": ({}, slice(None)),
    "qp36-grid10x13": ({"qp_eighths": 288, "token_res": (10, 13), "prefix_tokens": 2}, slice(0, 132)),
    "qp20-sequence-gain": ({"qp_eighths": 160, "token_res": (1, 100), "prefix_tokens": 0}, slice(20, 120)),
}


def main() -> None:
    for tap in ("block6", "final"):
        codec = load(preset(f"klt-imgfocus-vits14-{tap}"))
        features = np.load(HERE.parents[1] / "data" / f"features_{tap}.npy")[1]
        for case, (params, tokens) in CASES.items():
            target = HERE / "golden" / f"{codec.id}-{case}"
            if target.with_suffix(".json").exists():
                print(f"{target.name} is there already")
                continue
            h = features[tokens] * np.float16(20 if case.endswith("gain") else 1)
            spec = TensorSpec(name="h", dtype="float16", shape=h.shape)
            (coded,) = codec.compress([{"h": h}], codec.resolve([spec], CodingParams(**params)))
            unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
            state, _ = read_state(codec.model, unit)
            layout = Layout(state.prefix, state.height, state.width, codec.model.tile)
            steps = Steps.of(codec.model, state.qp_eighths, state.prefix_offset_eighths, state.gain_eighths)
            rows = codec._planner.plan(layout, steps).rows
            symbols = decode(coded.strings[0], rows, codec.model.tables)
            (out,) = codec.decompress([unit])
            known = {"shape": h.shape, "pstate": coded.pstate, "fingerprint": codec.fingerprint.hex()}
            target.with_suffix(".json").write_text(json.dumps(known) + "\n", encoding="utf-8")
            target.with_suffix(".bin").write_bytes(coded.strings[0])
            np.savez_compressed(
                target.with_suffix(".npz"), symbols=symbols.astype(np.int16), sample=out["h_hat"][::9, ::16]
            )
            print(target.name, len(coded.strings[0]), coded.pstate, symbols.size, int(np.abs(symbols).max()))


if __name__ == "__main__":
    main()
