"""The adapters against the contract of a codec: batches, files, fingerprints, requests and units of every kind."""

from dataclasses import replace
from functools import cache

import ml_dtypes
import numpy as np
import pytest
import torch

from mpcompress.checkpoints import numpy_state
from mpcompress.codec import CodingParams, TensorSpec, Unit
from mpcompress.errors import (
    CodecFileError,
    CodecMismatchError,
    CodecUnavailableError,
    CorruptBitstreamError,
    InvalidInputError,
    NonFiniteError,
    OutOfRangeError,
)
from mpcompress.neural.codec_file import NeuralFile
from mpcompress.neural.networks import NETWORKS, untrained
from mpcompress.registry import CodecSpec, load

OPTIONS = {
    "vit_union": {"h_dim": 64, "y_dim": 16, "z_dim": 8, "groups": [4, 12], "num_prefix_tokens": 1},
    "vit_union_ctx": {"h_dim": 64, "y_dim": 16, "z_dim": 8, "ctx_dim": 8, "groups": 8, "num_prefix_tokens": 2},
    "feature_hyperprior": {"N": 8, "M": 12},
    "hyper_latent_ctx": {"y_channels": 16, "z_channels": 8, "ctx_channels": 8},
    "hyperprior_latent_ctx": {"y_channels": 16, "z_channels": 8, "ctx_channels": 8},
}
BOUNDS = {"model_type": "dinov2", "trun_low": -5.0, "trun_high": 5.0}
GRID = (4, 6)


@cache
def busy(family: str):
    """The state of a network whose latents are far from zero, so that strings and errors mean something."""
    net = untrained(NETWORKS[family], OPTIONS[family], 1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            last = {"f_a.2.weight", "g_a.6.weight", "h_a.net.2.weight", "hyper.h_a.net.2.weight"}
            if name in last:
                parameter.mul_(30)
    net.update(force=True)
    return numpy_state(net.state_dict())


def file_of(family: str, **changes) -> NeuralFile:
    settings = BOUNDS if family == "feature_hyperprior" else {}
    values = {"id": "c", "family": family, "description": "d", "sizes": OPTIONS[family], "settings": settings}
    return NeuralFile(**{**values, "tensors": busy(family), **changes})


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = {family: folder / f"{family}.safetensors" for family in OPTIONS}
    for family, path in paths.items():
        path.write_bytes(file_of(family).to_bytes())
    return paths


@pytest.fixture(scope="module")
def codecs(files):
    return {family: load(CodecSpec(id="c", family=family, weights=str(path))) for family, path in files.items()}


def item_of(family: str, seed: int = 0, *, batch: int = 0, dtype="float32", grid=GRID) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lead = (batch,) if batch else ()
    if family.startswith("vit_union"):
        item = {"h": rng.standard_normal((*lead, OPTIONS[family]["num_prefix_tokens"] + grid[0] * grid[1], 64))}
        if family == "vit_union_ctx":
            item["ctx"] = rng.standard_normal((*lead, 8, *grid))
    elif family == "feature_hyperprior":
        item = {"h": 2 * rng.standard_normal((*lead, 25, 40))}
    else:
        item = {"h": 5 * rng.standard_normal((*lead, 16, *grid)), "ctx": rng.standard_normal((*lead, 8, *grid))}
    return {name: array.astype(dtype) for name, array in item.items()}


def specs_of(item) -> list[TensorSpec]:
    return [TensorSpec(name=name, dtype=array.dtype.name, shape=array.shape) for name, array in item.items()]


def params_of(codec, item, grid=GRID):
    return codec.resolve(specs_of(item), CodingParams(token_res=grid))


def unit_of(coded, item, **changes) -> Unit:
    context = {name: array for name, array in item.items() if name != "h"}
    values = {"strings": coded.strings, "pstate": coded.pstate, "specs": tuple(specs_of(item)[:1])}
    return Unit(**{**values, "ctx_hash": coded.ctx_hash, "context": context, **changes})


def coded_unit(codec, item, **changes) -> Unit:
    (coded,) = codec.compress([item], params_of(codec, item))
    return unit_of(coded, item, **changes)


@pytest.mark.parametrize("family", OPTIONS)
def test_a_batch_gives_the_strings_of_single_calls(codecs, family):
    codec = codecs[family]
    items = [item_of(family, seed) for seed in range(3)]
    params = params_of(codec, items[0])
    together = codec.compress(items, params)
    alone = [codec.compress([item], params)[0] for item in items]
    assert [coded.strings for coded in together] == [coded.strings for coded in alone]
    assert len({coded.strings[0] for coded in together}) == 3
    units = [unit_of(coded, item) for coded, item in zip(together, items, strict=True)]
    for unit in units:
        assert [spec.name for spec in codec.check_unit(unit)] == [port.name for port in codec.outputs]
    for unit, found in zip(units, codec.decompress(units), strict=True):
        (single,) = codec.decompress([unit])
        for spec in codec.check_unit(unit):
            assert (found[spec.name].shape, found[spec.name].dtype.name) == (spec.shape, spec.dtype)
            np.testing.assert_allclose(found[spec.name], single[spec.name], atol=1e-4)


def test_units_of_several_grids_and_batches_share_a_call(codecs):
    codec = codecs["vit_union_ctx"]
    units, expected = [], []
    for seed, (grid, batch) in enumerate([((4, 6), 0), ((3, 5), 2), ((4, 6), 3), ((1, 7), 0), ((3, 5), 0)]):
        item = item_of("vit_union_ctx", seed, grid=grid, batch=batch)
        (coded,) = codec.compress([item], params_of(codec, item, grid))
        units.append(unit_of(coded, item))
        expected.extend(codec.decompress(units[-1:]))
    for found, single in zip(codec.decompress(units), expected, strict=True):
        for name, array in single.items():
            np.testing.assert_allclose(found[name], array, atol=1e-4)


@pytest.mark.parametrize("family", [family for family in OPTIONS if family != "feature_hyperprior"])
def test_samples_of_an_item_are_items(codecs, family):
    codec, whole = codecs[family], item_of(family, batch=2)
    (coded,) = codec.compress([whole], params_of(codec, whole))
    parts = [{name: array[b] for name, array in whole.items()} for b in range(2)]
    singles = codec.compress(parts, params_of(codec, parts[0]))
    assert coded.strings == [string for pair in zip(*(c.strings for c in singles), strict=True) for string in pair]


@pytest.mark.parametrize("dtype", ["float16", ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", OPTIONS)
def test_the_same_numbers_in_other_dtypes(codecs, family, dtype):
    codec, item = codecs[family], item_of(family, dtype=dtype)
    wide = {name: array.astype(np.float32) for name, array in item.items()}
    unit, same = coded_unit(codec, item), coded_unit(codec, wide)
    assert (unit.strings, unit.pstate, unit.ctx_hash) == (same.strings, same.pstate, same.ctx_hash)
    (out,) = codec.decompress([unit])
    assert {array.dtype for array in out.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("family", OPTIONS)
def test_a_file_keeps_everything(codecs, files, family):
    codec = codecs[family]
    data = files[family].read_bytes()
    assert codec.codec_file() == data == NeuralFile.from_bytes(data).to_bytes()
    assert load(CodecSpec(id="c", family=family, weights=str(files[family]))).fingerprint == codec.fingerprint
    codec.warm_up()
    assert codec.trained
    assert codec.arithmetic == "float32"


@pytest.mark.parametrize("family", OPTIONS)
def test_the_fingerprint_covers_what_decoding_needs_and_nothing_else(codecs, tmp_path, family):
    network = NETWORKS[family]
    for part, changes in (
        (network.encoder_only[0], False),
        ("entropy_parameters" if "vit" in family else "h_s.", True),
    ):
        tensors = {name: array.copy() for name, array in file_of(family).tensors.items()}
        touched = [name for name in tensors if part in name and name.endswith("weight")]
        assert touched
        tensors[touched[0]].flat[0] += 1
        path = tmp_path / "other.safetensors"
        path.write_bytes(file_of(family, tensors=tensors, description="another").to_bytes())
        other = load(CodecSpec(id="c", family=family, weights=str(path)))
        assert (other.fingerprint != codecs[family].fingerprint) is changes


def test_untrained_networks_depend_on_their_seed_alone():
    specs = [
        CodecSpec(id="u", family="vit_union", options={**OPTIONS["vit_union"], "seed": seed}) for seed in (1, 1, 2)
    ]
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    codecs = [load(spec) for spec in specs]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert codecs[0].fingerprint == codecs[1].fingerprint != codecs[2].fingerprint
    assert not codecs[0].trained
    assert codecs[0].codec_file() is None


BAD_OPTIONS = [
    ("vit_union", {"h_dim": 129}),
    ("vit_union", {"h_dim": "64"}),
    ("vit_union", {"y_dim": 10**9}),
    ("vit_union", {"groups": 7}),
    ("vit_union", {"groups": [8, 9]}),
    ("vit_union", {"num_prefix_tokens": -1}),
    ("vit_union", {"colour": 1}),
    ("vit_union", {"seed": "x"}),
    ("vit_union", {"token_res": [0, 4]}),
    ("vit_union", {"device": "tpu"}),
    ("feature_hyperprior", {"N": None}),
    ("feature_hyperprior", {"trun_low": -5.0}),
    ("feature_hyperprior", {"model_type": "dinov2"}),
    ("feature_hyperprior", {"model_type": "dinov2", "trun_low": 5.0, "trun_high": -5.0}),
    ("feature_hyperprior", {"model_type": "bert", "trun_low": -5.0, "trun_high": 5.0}),
]


@pytest.mark.parametrize(("family", "options"), BAD_OPTIONS)
def test_bad_options_are_errors_of_the_specification(family, options):
    with pytest.raises(CodecFileError):
        load(CodecSpec(id="u", family=family, options={**OPTIONS[family], **options}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_devices_that_are_not_there():
    options = {**OPTIONS["vit_union"], "device": "cuda"}
    with pytest.raises(CodecUnavailableError, match="cuda"):
        load(CodecSpec(id="u", family="vit_union", options=options))
    assert load(CodecSpec(id="u", family="vit_union", options={**options, "device": "auto"})).device.type == "cpu"


def damaged_files():
    good = file_of("vit_union")
    tensors = dict(good.tensors)
    short, odd, unknown, poisoned = (dict(tensors) for _ in range(4))
    del short["f_s.2.bias"]
    odd["f_s.2.bias"] = odd["f_s.2.bias"][:-1]
    unknown["surplus"] = odd["f_s.2.bias"]
    poisoned["f_s.2.bias"] = np.full_like(tensors["f_s.2.bias"], np.nan)
    data = good.to_bytes()
    yield "truncated", data[:-5]
    yield "empty", b""
    yield "missing", replace(good, tensors=short).to_bytes()
    yield "shape", replace(good, tensors=odd).to_bytes()
    yield "unknown", replace(good, tensors=unknown).to_bytes()
    yield "nan", data.replace(tensors["f_s.2.bias"].tobytes(), poisoned["f_s.2.bias"].tobytes())
    yield "sizes", replace(good, sizes={**good.sizes, "y_dim": 32}).to_bytes()
    yield "family", replace(good, family="vit_union_ctx").to_bytes()
    yield "id", replace(good, id="d").to_bytes()


def test_damaged_files_are_refused(tmp_path):
    for name, data in damaged_files():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(CodecFileError):
            load(CodecSpec(id="c", family="vit_union", weights=str(path)))


def test_missing_tables_are_computed(files, codecs, tmp_path):
    good = file_of("feature_hyperprior")
    tables = ("_quantized_cdf", "_cdf_length", "_offset")
    path = tmp_path / "bare.safetensors"
    bare = {name: array for name, array in good.tensors.items() if not name.endswith(tables)}
    path.write_bytes(replace(good, tensors=bare).to_bytes())
    codec = load(CodecSpec(id="c", family="feature_hyperprior", weights=str(path)))
    assert codec.fingerprint == codecs["feature_hyperprior"].fingerprint


@pytest.mark.parametrize("family", OPTIONS)
def test_requests_are_refused_bytes_unseen(codecs, family):
    codec = codecs[family]
    specs = specs_of(item_of(family))
    good = CodingParams(token_res=GRID)
    bad = [
        ([replace(specs[0], dtype="int8"), *specs[1:]], good),
        ([replace(specs[0], shape=specs[0].shape[:1]), *specs[1:]], good),
        ([replace(specs[0], shape=(0, *specs[0].shape[1:])), *specs[1:]], good),
        (specs, replace(good, qp_eighths=8)),
        (specs, replace(good, target_bpfp=0.1)),
        (specs, replace(good, family=(("colour", 1),))),
        (specs[1:], good),
    ]
    if family != "feature_hyperprior":
        bad.append(([replace(specs[0], shape=(specs[0].shape[0], 5, 6)), *specs[1:]], good))
    if len(specs) > 1:
        bad += [(specs[:1], good), ([specs[0], replace(specs[1], shape=(8, 3, 3))], good)]
    if family.startswith("vit"):
        bad += [
            (specs, CodingParams()),
            (specs, replace(good, prefix_tokens=9)),
            (specs, replace(good, token_res=(5, 5))),
        ]
        huge = codec.prefix_tokens + 200 * 200
        bad.append(([replace(specs[0], shape=(huge, 64)), *specs[1:]], replace(good, token_res=(200, 200))))
    for request in bad:
        with pytest.raises(InvalidInputError) as caught:
            codec.resolve(*request)
        assert caught.value.field


@pytest.mark.parametrize("family", OPTIONS)
def test_numbers_that_cannot_be_coded(codecs, family):
    codec, item = codecs[family], item_of(family)
    params = params_of(codec, item)
    for value in (np.nan, np.inf):
        spoilt = {name: array.copy() for name, array in item.items()}
        spoilt["h"].flat[7] = value
        with pytest.raises(NonFiniteError):
            codec.compress([spoilt], params)
    if family != "feature_hyperprior":
        with pytest.raises((NonFiniteError, OutOfRangeError)) as caught:
            codec.compress([{**item, "h": np.full_like(item["h"], 1e38)}], params)
        assert caught.value.field == "tensors[0]"


@pytest.mark.parametrize("family", OPTIONS)
def test_hostile_units_are_refused_or_decoded_never_worse(codecs, family):
    codec, item = codecs[family], item_of(family)
    unit = coded_unit(codec, item)
    huge = {key: (65535, 65535) for key in unit.pstate if isinstance(unit.pstate[key], tuple)}
    hostile = [
        replace(unit, strings=unit.strings[:-1]),
        replace(unit, strings=[*unit.strings, b""]),
        replace(unit, strings=[bytes(1 << 20), *unit.strings[1:]]),
        replace(unit, pstate={}),
        replace(unit, pstate={**unit.pstate, "z_shape": (9, 9)}),
        replace(unit, pstate={**unit.pstate, "z_shape": "zz"}),
        replace(unit, pstate={**unit.pstate, "colour": 1}),
        replace(unit, pstate={**unit.pstate, **huge}),
        replace(unit, specs=(replace(unit.specs[0], shape=(1 << 20, 1 << 20)),)),
        replace(unit, specs=unit.specs * 2),
        replace(unit, ctx_hash=b"" if unit.ctx_hash else bytes(8)),
    ]
    for bad in hostile:
        with pytest.raises((CorruptBitstreamError, InvalidInputError)):
            codec.check_unit(bad)
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise = [rng.bytes(len(string)) for string in unit.strings]
        try:
            (out,) = codec.decompress([replace(unit, strings=noise)])
        except CorruptBitstreamError:
            continue
        assert all(array.shape for array in out.values())


@pytest.mark.parametrize("family", [family for family in OPTIONS if family.endswith("ctx")])
def test_another_context_is_a_mismatch(codecs, family):
    codec, item = codecs[family], item_of(family)
    unit = coded_unit(codec, item)
    assert len(unit.ctx_hash) == 8
    other = {"ctx": item["ctx"] + np.float32(1e-3)}
    with pytest.raises(CodecMismatchError, match="context"):
        codec.decompress([replace(unit, context=other)])
    with pytest.raises(InvalidInputError):
        codec.check_unit(replace(unit, context={}))
    with pytest.raises(InvalidInputError):
        codec.check_unit(replace(unit, context={"ctx": item["ctx"][:, :2]}))
