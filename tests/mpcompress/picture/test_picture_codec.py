"""The families vtm, vvenc and x265 behind the contract of every codec, and on the wire."""

import os
import threading
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import CodecFileError, CodecUnavailableError, CorruptBitstreamError, InvalidInputError
from mpcompress.picture import decode as decode_module
from mpcompress.picture.cancel import CodingCancelledError
from mpcompress.picture.decode import OwnStreams
from mpcompress.registry import CodecSpec, load, preset, preset_ids
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.v1 import compression_pb2 as pb

REAL_VTM = os.environ.get("VTM_HOME", "")
FAMILIES = ("vtm", "vvenc", "x265")
CONDITIONS = ("dinov2-cls", "dinov2-cls-tiles", "dinov2-dpt", "dinov2-seg", "llama3-csr", "sd3-tti")
SHAPES = {"dinov2-dpt": (1, 4, 17, 24), "sd3-tti": (16, 6, 10), "llama3-csr": (4, 96)}
QUICK = CodingParams(qp_eighths=8 * 30)


@pytest.fixture(
    params=[*FAMILIES, pytest.param("vtm real", marks=pytest.mark.skipif(not REAL_VTM, reason="no VTM_HOME"))]
)
def family(request, stand_in, monkeypatch):
    """Every family; vtm through the stand-in, and the real one where there is one."""
    name, _, real = request.param.partition(" ")
    if name == "vtm" and not real:
        monkeypatch.setenv("VTM_HOME", str(stand_in()))
    return name


def items(codec, shape, dtype="float32", seed=0):
    rows = np.random.default_rng(seed).normal(size=(*shape[:-1], 1)) + np.zeros(shape)
    h = rows.astype(getattr(ml_dtypes, dtype) if dtype == "bfloat16" else dtype)
    return h, TensorSpec(name="h", dtype=dtype, shape=shape)


def there_and_back(codec, h, spec, params=QUICK):
    (coded,) = codec.compress([{"h": h}], codec.resolve([spec], params))
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
    (out,) = codec.check_unit(unit)
    h_hat = codec.decompress([unit])[0][out.name]
    assert (h_hat.shape, h_hat.dtype.name) == (out.shape, out.dtype)
    return coded, h_hat


def test_every_condition_has_its_three_codecs():
    expected = {f"{family}-{condition}" for family in FAMILIES for condition in CONDITIONS}
    assert expected <= set(preset_ids())
    assert {preset(codec_id).family for codec_id in expected} == set(FAMILIES)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_preset_there_and_back(family, condition):
    codec = load(preset(f"{family}-{condition}"))
    assert codec.unavailable_reason == ""
    assert codec.pstate_kind == "picture"
    h, spec = items(codec, SHAPES.get(condition, (17, 24)))
    coded, h_hat = there_and_back(codec, h, spec, CodingParams(qp_eighths=8 * 4, token_res=(4, 4)))
    assert np.abs(h_hat - np.clip(h, -1, 1) if "dpt" in condition else h_hat - h).mean() < 0.3
    assert coded.report.nmse is not None


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(17, 24), (2, 17, 24), (2, 1, 17, 24)])
def test_ranks_and_dtypes(dtype, shape):
    codec = load(preset("x265-dinov2-cls"))
    h, spec = items(codec, shape, dtype)
    _, h_hat = there_and_back(codec, h, spec, CodingParams(qp_eighths=0))
    assert np.abs(h_hat.astype(np.float32) - h.astype(np.float32)).mean() < 0.1


def test_the_unit_survives_the_wire(family, monkeypatch):
    codec = load(preset(f"{family}-dinov2-cls"))
    h, spec = items(codec, (70, 24))
    params = codec.resolve([spec], CodingParams(qp_eighths=8 * 10, family=(("strips", 2),)))
    (coded,) = codec.compress([{"h": h}], params)
    assert len(coded.strings) == 2
    written = CodedUnit.build(
        codec_id=codec.id,
        bitstream_version=codec.bitstream_version,
        fingerprint=codec.fingerprint,
        arithmetic=pb.ARITHMETIC_EXACT,
        tensors=[pb.TensorSpec(name="h", dtype=pb.DATA_TYPE_FLOAT32, shape=h.shape)],
        kind=codec.pstate_kind,
        pstate=coded.pstate,
        strings=coded.strings,
    )
    read = CodedUnit.from_bytes(written.to_bytes())
    here = codec.decompress([Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))])[0]["h_hat"]
    monkeypatch.setattr(decode_module, "OWN_STREAMS", OwnStreams())
    unit = Unit(strings=read.strings, pstate=read.pstate, specs=(spec,))
    codec.check_unit(unit)
    np.testing.assert_array_equal(codec.decompress([unit])[0]["h_hat"], here)


def test_lists_in_lists_out():
    codec = load(preset("x265-dinov2-cls"))
    tensors = [items(codec, (17, 24), seed=seed) for seed in range(3)]
    params = codec.resolve([tensors[0][1]], QUICK)
    together = codec.compress([{"h": h} for h, _ in tensors], params)
    alone = [codec.compress([{"h": h}], params)[0] for h, _ in tensors]
    assert [coded.strings for coded in together] == [coded.strings for coded in alone]
    units = [
        Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
        for coded, (_, spec) in zip(together, tensors, strict=True)
    ]
    for out, unit in zip(codec.decompress(units), units, strict=True):
        np.testing.assert_array_equal(out["h_hat"], codec.decompress([unit])[0]["h_hat"])


def test_any_picture_codec_decodes_any_of_its_family():
    codec, other = load(preset("x265-dinov2-cls")), load(preset("x265-sd3-tti"))
    h, spec = items(codec, (17, 24))
    coded, h_hat = there_and_back(codec, h, spec)
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
    assert codec.fingerprint == other.fingerprint
    np.testing.assert_array_equal(other.decompress([unit])[0]["h_hat"], h_hat)


def test_bounds_of_the_request():
    codec = load(preset("x265-dinov2-cls"))
    h, spec = items(codec, (17, 24))
    family = (("trun_high", (0.5,)), ("trun_low", (-0.5,)))
    coded, h_hat = there_and_back(codec, h, spec, CodingParams(qp_eighths=0, family=family))
    assert (coded.pstate["trun_low"], coded.pstate["trun_high"]) == ([-0.5], [0.5])
    assert np.abs(h_hat).max() <= 0.5


def test_the_grid_of_the_request_is_in_the_packings_name():
    codec = load(preset("x265-dinov2-cls-tiles"))
    h, spec = items(codec, (18, 24))
    coded, _ = there_and_back(codec, h, spec, CodingParams(token_res=(2, 8)))
    assert coded.pstate["packing"] == "channel_tiles:2x8"


def test_measured_bounds():
    spec = CodecSpec(id="mine", family="x265", options={"model_type": "dinov2", "trun_flag": False})
    codec = load(spec)
    h, tensor = items(codec, (17, 24))
    coded, _ = there_and_back(codec, 1000 * h, tensor)
    assert coded.pstate["trun_high"] == [float((1000 * h).max())]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": "int8"}, "tensors[0].dtype"),
        ({"shape": (24,)}, "tensors[0].shape"),
        ({"shape": (70000, 24)}, "tensors[0].shape"),
        ({"name": "ctx"}, "tensors"),
    ],
)
def test_tensors_it_refuses(change, field):
    codec = load(preset("x265-dinov2-cls"))
    spec = replace(TensorSpec(name="h", dtype="float32", shape=(17, 24)), **change)
    with pytest.raises(InvalidInputError) as caught:
        codec.resolve([spec], QUICK)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (CodingParams(qp_eighths=100), "params.qp_eighths"),
        (CodingParams(qp_eighths=8 * 52), "params.qp_eighths"),
        (CodingParams(target_bpfp=1.0), "params.target_bpfp"),
        (CodingParams(family=(("effort", 1),)), "params.effort"),
        (CodingParams(family=(("speed", "warp"),)), "params.picture.speed"),
        (CodingParams(family=(("strips", 65),)), "params.picture.strips"),
        (CodingParams(family=(("trun_high", (1.0,)), ("trun_low", (2.0,)))), "trun_low"),
        (CodingParams(family=(("trun_low", (2.0,)),)), "trun_low"),
    ],
)
def test_parameters_it_refuses(params, field):
    codec = load(preset("x265-dinov2-cls"))
    with pytest.raises(InvalidInputError) as caught:
        codec.resolve([TensorSpec(name="h", dtype="float32", shape=(17, 24))], params)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "change",
    [
        {"strings": []},
        {"strings": [b"x", b"y"]},
        {"strings": [bytes(1 << 20)]},
        {"ctx_hash": b"12345678"},
        {"specs": (TensorSpec(name="h", dtype="float32", shape=(18, 24)),)},
        {"specs": (TensorSpec(name="h", dtype="int8", shape=(17, 24)),)},
        {"specs": (TensorSpec(name="h", dtype="float32", shape=(2**31 - 1, 2**31 - 1)),)},
        {"pstate": {}},
    ],
)
def test_units_it_refuses(change):
    codec = load(preset("x265-dinov2-cls"))
    h, spec = items(codec, (17, 24))
    (coded,) = codec.compress([{"h": h}], codec.resolve([spec], QUICK))
    unit = Unit(strings=coded.strings, pstate=coded.pstate, specs=(spec,))
    codec.check_unit(unit)
    with pytest.raises(CorruptBitstreamError):
        codec.check_unit(replace(unit, **change))


def test_cancel_reaches_the_engine(stand_in, tmp_path, await_file, monkeypatch):
    started, token = tmp_path / "started", threading.Event()
    monkeypatch.setenv("VTM_HOME", str(stand_in(encoder="slow", started=str(started))))
    codec = load(preset("vtm-dinov2-cls"))
    h, spec = items(codec, (17, 24))
    thread = threading.Thread(target=lambda: (await_file(started), token.set()))
    thread.start()
    with pytest.raises(CodingCancelledError):
        codec.compress([{"h": h}], codec.resolve([spec], QUICK), cancel=token)
    thread.join()


def test_without_vtm_it_decodes_and_says_why_it_cannot_compress(seg, without_vtm):
    codec = load(preset("vtm-dinov2-seg"))
    assert "VTM_HOME" in codec.unavailable_reason
    spec = TensorSpec(name="h", dtype="float32", shape=seg.features.shape)
    with pytest.raises(CodecUnavailableError, match=r"docs/vtm\.md"):
        codec.resolve([spec], QUICK)
    pstate = {"bit_depth": 10, "packing": "tokens_by_channels", "trun_low": [-20.0], "trun_high": [20.0]}
    unit = Unit(strings=[seg.stream(22)], pstate=pstate | {"format": "vvc"}, specs=(spec,))
    codec.check_unit(unit)
    assert np.abs(codec.decompress([unit])[0]["h_hat"] - np.clip(seg.features, -20, 20)).mean() < 1


def test_without_any_decoder_it_does_not_load(monkeypatch, without_vtm):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(CodecUnavailableError, match=r"mpcompress\[vvc\]"):
        load(preset("x265-dinov2-cls"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model_type"),
        ({"model_type": "dinov2", "colour": "red"}, "colour"),
        ({"model_type": "vgg"}, "vgg"),
        ({"model_type": "dinov2", "bit_depth": 9}, "8, 10, 12 bits"),
        ({"model_type": "dinov2", "trun_low": 30}, "low below high"),
        ({"model_type": "dinov2", "qp": 99}, "qp"),
    ],
)
def test_bad_specifications(options, message):
    with pytest.raises(CodecFileError, match=message):
        load(CodecSpec(id="mine", family="x265", options=options))
