"""Features of another layer never pass silently: held-out ones of each shipped codec, and those of its neighbour."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mpcompress import registry
from mpcompress.codec import CodingParams, Report, TensorSpec
from mpcompress.transforms.klt_codec import KltCodec

DATA = Path(__file__).parents[2] / "data"
PICTURES = {tap: np.load(DATA / f"features_{tap}.npy") for tap in ("final", "block6")}
TEXTS = {cut: np.load(DATA / f"text_{cut}.npz") for cut in ("l3", "last")}
FEATURES = {
    **{f"klt-imgfocus-vits14-{tap}": list(tensors) for tap, tensors in PICTURES.items()},
    **{f"klt-minilm-{cut}": list(tensors.values()) for cut, tensors in TEXTS.items()},
}
NEIGHBOUR = {
    "klt-imgfocus-vits14-final": "klt-imgfocus-vits14-block6",
    "klt-imgfocus-vits14-block6": "klt-imgfocus-vits14-final",
    "klt-minilm-l3": "klt-minilm-last",
    "klt-minilm-last": "klt-minilm-l3",
}


@pytest.fixture(params=list(FEATURES), scope="module")
def codec(request) -> KltCodec:
    codec = registry.load(registry.preset(request.param))
    assert isinstance(codec, KltCodec)
    return codec


def report(codec: KltCodec, h: np.ndarray, **params) -> Report:
    spec = TensorSpec(name="h", dtype=h.dtype.name, shape=h.shape)
    (coded,) = codec.compress([{"h": h}], codec.resolve([spec], CodingParams(**params)))
    assert coded.report is not None
    return coded.report


@pytest.mark.parametrize("qp", [64, 192, 288])
def test_held_out_tensors_pass(codec, qp):
    for h in FEATURES[codec.id]:
        found = report(codec, h, qp_eighths=qp)
        assert not found.warnings
        assert found.domain_distance is None or found.domain_distance < codec.model.domain_bound


@pytest.mark.parametrize("qp", [64, 192, 288])
def test_those_of_another_layer_are_told(codec, qp):
    for h in FEATURES[NEIGHBOUR[codec.id]]:
        found = report(codec, h, qp_eighths=qp)
        assert found.domain_distance > codec.model.domain_bound
        assert codec.id in found.warnings[0]


@pytest.mark.parametrize(("own", "other"), [("l3", "last"), ("last", "l3")])
def test_ten_tokens_are_enough_for_that(own, other):
    codec = registry.load(registry.preset(f"klt-minilm-{own}"))
    for h in TEXTS[other].values():
        assert report(codec, h[:10]).warnings


def test_few_tokens_of_its_own_have_no_distance(codec):
    prefix = codec.prefix_tokens
    for h in FEATURES[codec.id]:
        assert report(codec, h[: prefix + 10], token_res=(1, 10), prefix_tokens=prefix).domain_distance is None


@pytest.mark.parametrize("scale", [-32768, 32767])
def test_any_scale_in_a_file_has_a_distance(codec, scale):
    odd = KltCodec(replace(codec.model, base=np.full_like(codec.model.base, scale)))
    distance = report(odd, FEATURES[codec.id][-1]).domain_distance
    assert distance is None or math.isfinite(distance)
