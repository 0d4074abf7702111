"""Writes the golden units of the shipped calibrated codecs; refuses to replace one.

    python tests/mpcompress/transforms/write_golden.py

A unit that is here decodes for ever: a codec that cannot decode it is another codec and takes another id. A codec that
only takes another bitstream version gets a further stream of the same symbols; its old file is `as_of_version`.
"""

import json
import re
from pathlib import Path

import numpy as np
from klt_reference import decode

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.entropy import encode
from mpcompress.registry import load, preset

HERE = Path(__file__).resolve().parent
CASES = {
    "default": ({}, slice(None)),
    "qp36-grid10x13": ({"qp_eighths": 288, "token_res": (10, 13), "prefix_tokens": 2}, slice(0, 132)),
    "qp20-sequence-gain": ({"qp_eighths": 160, "token_res": (1, 100), "prefix_tokens": 0}, slice(20, 120)),
    "qp28-far": ({"qp_eighths": 224}, slice(None)),
}


CODECS = {
    "klt-imgfocus-vits14-block6": ("block6", tuple(CASES)),
    "klt-imgfocus-vits14-final": ("final", tuple(CASES)),
    "klt-minilm-last": ("final", ("qp20-sequence-gain",)),
}
"""Features and cases; the codec without a filter takes features of another model, which is as good a test."""


def features_of(tap: str, case: str) -> np.ndarray:
    """Real features; 20 times as large for the gain, and with massive activations in two tokens for far ones."""
    h = np.load(HERE.parents[1] / "data" / f"features_{tap}.npy")[1][CASES[case][1]]
    if case.endswith("gain"):
        return h * np.float16(20)
    if case.endswith("far"):
        h = h.copy()
        h[[18, 205], 7] = 480
        h[[18, 205], 100] = -500
    return h


def as_of_version(file: bytes, version: int) -> bytes:
    """A codec file that says it is of another version."""
    changed, count = re.subn(rb'(bitstream_version\\": )[0-9]', rb"\g<1>%d" % version, file)
    assert count == 1
    return changed


def transcoded(codec, target: Path, known: dict) -> bytes:
    """The stream of the codec's version, of the symbols of an older one."""
    version = max(known["fingerprints"])
    stream = target.with_suffix(f".v{version}.bin").read_bytes()
    file = as_of_version(codec.codec_file(), int(version))
    q, classes, _ = decode(file, stream, known["pstate"], known["shape"])
    return encode(q[classes >= 0], classes[classes >= 0], codec.model.tables, codec.model.ending)


def main() -> None:
    for codec_id, (tap, cases) in CODECS.items():
        codec = load(preset(codec_id))
        version = str(codec.bitstream_version)
        for case in cases:
            target = HERE / "golden" / f"{codec.id}-{case}"
            target.parent.mkdir(exist_ok=True)
            if target.with_suffix(".json").exists():
                known = json.loads(target.with_suffix(".json").read_text(encoding="utf-8"))
                if version in known["fingerprints"]:
                    print(f"{target.name} is there already")
                    continue
                stream = transcoded(codec, target, known)
            else:
                known, stream = new_unit(codec, features_of(tap, case), CASES[case][0], target)
            known["fingerprints"][version] = codec.fingerprint.hex()
            target.with_suffix(".json").write_text(json.dumps(known) + "\n", encoding="utf-8")
            target.with_suffix(f".v{version}.bin").write_bytes(stream)
            print(target.name, version, len(stream))


def new_unit(codec, h: np.ndarray, params: dict, target: Path) -> tuple[dict, bytes]:
    """What is known of a unit, no version yet, and its stream; symbols and features are written."""
    spec = TensorSpec(name="h", dtype="float16", shape=h.shape)
    (coded,) = codec.compress([{"h": h}], codec.resolve([spec], CodingParams(**params)))
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
    (decoded,) = codec.read_symbols(unit)
    (out,) = codec.decompress([unit])
    arrays = {"index": decoded.index, "classes": decoded.classes, "values": decoded.values}
    np.savez_compressed(target.with_suffix(".npz"), sample=out["h_hat"][::9, ::16], **arrays)
    return {"codec": codec.id, "shape": h.shape, "pstate": coded.pstate, "fingerprints": {}}, coded.strings[0]


if __name__ == "__main__":
    main()
