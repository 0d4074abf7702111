"""What is refused before a byte is sent, by name; and parameters as users write them."""

from __future__ import annotations

import inspect

import ml_dtypes
import numpy as np
import pytest

from mpcompress_client import AsyncCompressionClient, CompressionClient, EdgeCodec, InvalidRequestError
from mpcompress_client.arrays import named_arrays, output_type, specs_of
from mpcompress_client.calls import CompressOptions
from mpcompress_client.params import coding_params, qp_eighths
from mpcompress_proto.v1 import compression_pb2 as pb

GOOD = np.ones((3, 4), np.float32)


class Like:
    """Something of another library."""

    def __init__(self, array):
        self._array = array

    def __array__(self, dtype=None, copy=None):
        if isinstance(self._array, Exception):
            raise self._array
        return self._array


class Exchanged:
    """Something that only speaks DLPack."""

    def __dlpack__(self, **options):
        return GOOD.__dlpack__()

    def __dlpack_device__(self):
        return GOOD.__dlpack_device__()


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        (np.float32(3), "tensors[0].shape", "'h' has no axes"),
        (np.empty((0, 4), np.float32), "tensors[0].shape", "'h' of shape (0, 4) is empty"),
        (GOOD.astype(">f4"), "tensors[0].dtype", "big-endian"),
        (GOOD.astype(np.complex64), "tensors[0].dtype", "complex64 does not travel"),
        (GOOD.astype(object), "tensors[0].dtype", "object does not travel"),
        (GOOD.astype(np.float64), "tensors[0].dtype", "float64 does not travel"),
        (GOOD.astype(bool), "tensors[0].dtype", "bool does not travel"),
        (np.ones((1,) * 7, np.float32), "tensors[0].shape", "1 to 6 axes"),
        (np.ma.masked_array(GOOD), "tensors", "masked"),
        ([[1.0, 2.0]], "tensors", "list, not an array"),
        ("features.npy", "tensors", "str, not an array"),
        (None, "tensors", "NoneType"),
        ({}, "tensors", "1 to 8"),
        ({f"t{i}": GOOD for i in range(9)}, "tensors", "1 to 8"),
        ({1: GOOD}, "tensors", "name is a string"),
        ({"H": GOOD}, "tensors[0].name", "'H'"),
        ({"h": GOOD, "ctx": GOOD[:0]}, "tensors[1].shape", "'ctx'"),
        (Like(RuntimeError("on a GPU")), "", "on a GPU"),
    ],
)
def test_tensors_that_cannot_travel(value, field, words):
    with pytest.raises(InvalidRequestError) as caught:
        specs_of(named_arrays(value))
    assert caught.value.field == field
    assert words in str(caught.value)


@pytest.mark.parametrize("value", [GOOD, Like(GOOD), Exchanged(), {"h": GOOD}, GOOD.T, GOOD[:, ::2]])
def test_tensors_that_can(value):
    (spec,) = specs_of(named_arrays(value))
    assert spec.name == "h"
    assert spec.dtype == pb.DATA_TYPE_FLOAT32


@pytest.mark.parametrize(("qp", "eighths"), [(24, 192), (24.125, 193), (-1.5, -12), ("8", 64), (np.float32(0.5), 4)])
def test_qp(qp, eighths):
    assert qp_eighths(qp) == eighths


@pytest.mark.parametrize("qp", [24.1, float("nan"), float("inf"), 1e9, "x", [1], 1j])
def test_no_qp(qp):
    with pytest.raises(InvalidRequestError) as caught:
        qp_eighths(qp)
    assert caught.value.field == "params.qp_eighths"


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"token_res": (16,)}, "params.token_res"),
        ({"token_res": (16, 0)}, "params.token_res"),
        ({"token_res": (16, 1 << 16)}, "params.token_res"),
        ({"token_res": (16, 1.5)}, "params.token_res"),
        ({"token_res": "x"}, "params.token_res"),
        ({"token_res": 16}, "params.token_res"),
        ({"prefix_tokens": -1}, "params.prefix_tokens"),
        ({"prefix_tokens": "1"}, "params.prefix_tokens"),
        ({"target_bpfp": 0}, "params.target_bpfp"),
        ({"target_nmse": float("nan")}, "params.target_nmse"),
        ({"target_nmse": "small"}, "params.target_nmse"),
        ({"qp": 3, "target_nmse": 0.1}, "params.target_bpfp"),
        ({"target_bpfp": 1, "target_nmse": 0.1}, "params.target_bpfp"),
        ({"target_policy": "maybe"}, "params.target_policy"),
    ],
)
def test_parameters_that_cannot_be_right(params, field):
    with pytest.raises(InvalidRequestError) as caught:
        coding_params(**params)
    assert caught.value.field == field


def _options(family="klt", **params):
    return CompressOptions(codec="c", params=params, family_of=lambda _: family)


def test_family_parameters_find_their_message():
    assert _options(effort=2).message.klt.effort == 2
    assert _options(prefix_qp_offset_eighths=-96).message.klt.prefix_qp_offset_eighths == -96
    assert _options(speed="fast", strips=2).message.picture == pb.PictureParams(speed="fast", strips=2)
    assert _options().message == pb.CodingParams()
    assert _options(target_nmse=0.1, target_policy="error").message == pb.CodingParams(
        target_nmse=0.1, target_policy=pb.TARGET_POLICY_ERROR
    )


def test_names_that_two_families_share_are_settled_by_the_codec():
    assert list(_options("vtm", trun_low=-2.0, trun_high=[2.0]).message.picture.trun_low) == [-2.0]
    assert list(_options("feature_hyperprior", trun_low=[-2.0]).message.hyperprior.trun_low) == [-2.0]
    with pytest.raises(InvalidRequestError) as caught:
        _options("klt", trun_low=-2.0)
    assert caught.value.field == "params.trun_low"


@pytest.mark.parametrize("params", [{"nonsense": 1}, {"effort": "x"}, {"effort": -1}, {"speed": 3}, {"effort": [1]}])
def test_family_parameters_that_nobody_takes(params):
    with pytest.raises(InvalidRequestError) as caught:
        _options(**params)
    assert next(iter(params)) in caught.value.field


def test_output_types():
    assert output_type(None) == pb.DATA_TYPE_UNSPECIFIED
    for dtype in ("bfloat16", ml_dtypes.bfloat16, np.dtype(ml_dtypes.bfloat16)):
        assert output_type(dtype) == pb.DATA_TYPE_BFLOAT16
    assert output_type(np.float16) == output_type("float16") == pb.DATA_TYPE_FLOAT16
    for dtype in ("float64", float, "nonsense", 3):
        with pytest.raises(InvalidRequestError):
            output_type(dtype)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.compress(GOOD, codec=""),
        lambda client: client.compress(GOOD, codec=3),
        lambda client: client.compress(GOOD, codec="x", timeout_s=0),
        lambda client: client.compress(GOOD, codec="x", timeout_s="soon"),
        lambda client: client.compress_many([GOOD], codec="x", errors="ignore"),
        lambda client: client.compress_many([GOOD], codec="x", look_ahead=0),
        lambda client: client.compress_many([GOOD], codec="x", look_ahead_bytes=1.5),
        lambda client: client.compress_many([GOOD], codec="x", qp=0.1),
        lambda client: client.decompress_many([b""], dtype="float64"),
        lambda client: client.decompress(3),
        lambda client: client.decompress("/no/such/file.mpc"),
    ],
)
def test_mistakes_are_found_without_a_server(call):
    with CompressionClient("127.0.0.1:1") as client, pytest.raises(InvalidRequestError):
        call(client)


@pytest.mark.parametrize("target", ["", "  ", b"host:1", 50051, "http://host:1", "https://host:1/"])
def test_targets_that_are_none(target):
    with pytest.raises(InvalidRequestError):
        CompressionClient(target)


def test_a_closed_client_says_so():
    client = CompressionClient("127.0.0.1:1")
    client.close()
    client.close()
    for call in (lambda: client.compress(GOOD, codec="x"), client.codecs, lambda: client.codec_file("x")):
        with pytest.raises(InvalidRequestError, match="closed"):
            call()


def test_both_clients_have_the_same_calls():
    def calls(client: type) -> dict[str, object]:
        found = {name: getattr(client, name) for name in dir(client) if not name.startswith("_")}
        return {
            name: [(one.name, one.kind, one.default) for one in inspect.signature(call).parameters.values()]
            for name, call in found.items()
        }

    assert calls(AsyncCompressionClient) == calls(CompressionClient)
    assert {"compress", "decompress", "compress_many", "decompress_many"} <= calls(CompressionClient).keys()
    # Coding on the device is the same calls without what is about a server.
    for name in ("compress", "decompress"):
        device = inspect.signature(getattr(EdgeCodec, name)).parameters
        assert device.keys() <= inspect.signature(getattr(CompressionClient, name)).parameters.keys()
