"""The model cut in two computes what the whole model computes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")

from PIL import Image

from demo import split_model

PICTURES = sorted((Path(split_model.__file__).parent / "pictures").glob("*.png"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        split_model.model_path()
    except split_model.ModelMissingError as error:
        pytest.skip(str(error))
    return tmp_path_factory.mktemp("halves")


@pytest.fixture(scope="module")
def uncut(cache: Path) -> Path:
    """The whole model, with both taps shown as further outputs."""
    import onnx

    model = onnx.load(str(split_model.model_path()))
    for name in split_model.TAPS.values():
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    path = cache / "uncut.onnx"
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("tap", split_model.TAPS)
def test_the_halves_reproduce_the_uncut_model(
    tap: str, fuse: bool, cache: Path, uncut: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_model, "open_session", partial(split_model.open_session, fuse=fuse))
    edge, cloud = split_model.EdgeHalf(tap, cache=cache), split_model.CloudHalf(tap, cache=cache)
    picture = Image.open(PICTURES[0])
    names = ["output_importance", split_model.TAPS[tap], split_model.TAPS["final"]]
    whole = split_model.open_session(uncut).run(names, {"input_image": split_model.preprocess(picture)})
    saliency, at_tap, final = whole
    features = edge(picture)
    assert features.shape == (257, 384)
    assert features.dtype == np.float32
    result = cloud(features)
    assert result.saliency.shape == (224, 224)
    # Without merged operators nothing may differ; with them, by a few roundings of values around 10.
    np.testing.assert_allclose(features, at_tap[0], rtol=0, atol=1e-5 if fuse else 0)
    np.testing.assert_allclose(result.cls, final[0, 0], rtol=0, atol=1e-5 if fuse else 0)
    np.testing.assert_allclose(result.saliency, saliency[0, 0], rtol=0, atol=1e-6 if fuse else 0)


def test_both_taps_in_one_pass_equal_the_edge_halves(cache: Path) -> None:
    picture = Image.open(PICTURES[0])
    both = split_model.TwoTaps(cache=cache)(picture)
    for tap, features in both.items():
        np.testing.assert_array_equal(features, split_model.EdgeHalf(tap, cache=cache)(picture))


def test_the_halves_are_cut_once(cache: Path) -> None:
    split_model.EdgeHalf("block6", cache=cache)
    before = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    split_model.EdgeHalf("block6", cache=cache)
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == before


@pytest.mark.parametrize("size", [(400, 200), (30, 90), (224, 224), (1, 1)])
def test_preprocess_pads_to_a_normalised_square(size: tuple[int, int]) -> None:
    planes = split_model.preprocess(Image.new("RGB", size, (255, 255, 255)))
    assert planes.shape == (1, 3, 224, 224)
    assert planes.dtype == np.float32
    white = planes[0, 0] > 0
    longest = max(size)
    width, height = (max(1, round(side * 224 / longest)) for side in size)
    assert white.sum() == width * height
    assert white[112, 112]
