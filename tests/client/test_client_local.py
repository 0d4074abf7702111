"""Coding on this device gives the units that a server gives, and says what is missing where it cannot."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import BLOCK6, FINAL

from mpcompress_client import (
    CodecMismatchError,
    CodecUnavailableError,
    CodedUnit,
    CorruptUnitError,
    InvalidRequestError,
    UnknownCodecError,
)
from mpcompress_client.library import library
from mpcompress_client.local import EdgeCodec, shipped_codecs
from mpcompress_proto.v1 import compression_pb2 as pb


@pytest.fixture(scope="module")
def edge() -> EdgeCodec:
    """A shipped codec, here."""
    return EdgeCodec.load(FINAL)


def test_the_shipped_codecs_are_known():
    assert {BLOCK6, FINAL} <= set(shipped_codecs())


@pytest.mark.parametrize("codec", [BLOCK6, FINAL])
@pytest.mark.parametrize("arguments", [{}, {"qp": 30.125}, {"qp": 24, "token_res": (8, 32)}], ids=str)
def test_units_are_the_servers_byte_for_byte(client, block6, final, codec, arguments):
    h = {BLOCK6: block6, FINAL: final}[codec][2]
    here = EdgeCodec.load(codec)
    ours, theirs = here.compress(h, **arguments), client.compress(h, codec=codec, **arguments)
    assert ours.to_bytes() == theirs.to_bytes()
    assert ours.report.bpfp == theirs.report.bpfp
    assert ours.report.domain_distance == theirs.report.domain_distance
    for dtype in (None, "float32", "bfloat16"):
        x, y = here.decompress(theirs, dtype=dtype), client.decompress(ours, dtype=dtype)
        assert x.dtype == y.dtype
        assert x.tobytes() == y.tobytes()


def test_bad_input_has_the_same_names_as_through_a_server(client, edge, final):
    h = final[0].astype(np.float32)
    for change, arguments in (
        (lambda x: x.__setitem__((3, 4), np.nan), {}),
        (lambda x: x.__setitem__((3, 4), 1e30), {}),
        (lambda x: None, {"qp": 99}),
        (lambda x: None, {"token_res": (15, 16)}),
        (lambda x: None, {"prefix_tokens": 300}),
        (lambda x: None, {"target_bpfp": 0.5, "target_policy": "error", "effort": 9}),
    ):
        bad = h.copy()
        change(bad)
        errors = []
        for compress in (lambda x, a: edge.compress(x, **a), lambda x, a: client.compress(x, codec=FINAL, **a)):
            with pytest.raises(InvalidRequestError) as caught:
                compress(bad, arguments)
            errors.append(caught.value)
        assert errors[0].field == errors[1].field
        assert errors[0].message in errors[1].message


def test_units_that_are_not_this_codecs(edge, final, block6):
    with pytest.raises(CodecMismatchError):
        edge.decompress(EdgeCodec.load(BLOCK6).compress(block6[0]))
    unit = edge.compress(final[0])
    header = pb.CodedUnitHeader()
    header.CopyFrom(unit.header)
    header.bitstream_version += 1
    with pytest.raises(CodecMismatchError):
        edge.decompress(CodedUnit(header=header, payload=unit.payload))
    header.CopyFrom(unit.header)
    header.vit_union.SetInParent()
    with pytest.raises(CorruptUnitError):
        edge.decompress(CodedUnit(header=header, payload=unit.payload))
    header.CopyFrom(unit.header)
    header.klt.qp_eighths = 10**6
    with pytest.raises(CorruptUnitError):
        edge.decompress(CodedUnit(header=header, payload=unit.payload))
    with pytest.raises(CorruptUnitError):
        edge.decompress(unit.to_bytes()[:-1])
    with pytest.raises(InvalidRequestError, match="int8"):
        edge.decompress(unit, dtype="int8")


def test_out_takes_the_result(edge, final):
    unit = edge.compress(final[0], qp=24)
    whole = edge.decompress(unit, dtype="float32")
    for out in (np.zeros((257, 384), np.float32), np.zeros((384, 257), np.float32).T):
        assert edge.decompress(unit, out=out) is out
        np.testing.assert_array_equal(out, whole)
    named = {"h_hat": np.zeros((257, 384), np.float16)}
    assert edge.decompress(unit, out=named) is named
    np.testing.assert_array_equal(named["h_hat"], edge.decompress(unit))
    for out, arguments in (
        (np.zeros((256, 384), np.float32), {}),
        (np.zeros((257, 384), np.float16), {"dtype": "float32"}),
        ({"h": np.zeros((257, 384), np.float16)}, {}),
        ([0.0], {}),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            edge.decompress(unit, out=out, **arguments)
        assert caught.value.field == "out"


def test_parameters_of_another_family(edge, final):
    with pytest.raises(InvalidRequestError) as caught:
        edge.compress(final[0], speed="fast")
    assert caught.value.field == "params.picture"


def test_codecs_that_are_none(tmp_path):
    with pytest.raises(UnknownCodecError, match="nobody"):
        EdgeCodec.load("nobody")
    for name, data in (
        ("empty", b""),
        ("pickle", b"\x80\x04K\x01."),
        ("no metadata", (2).to_bytes(8, "little") + b"{}"),
        ("metadata is a list", (22).to_bytes(8, "little") + b'{"__metadata__": [1]  }'[:22]),
        ("size lies", (1 << 60).to_bytes(8, "little") + b"{}"),
    ):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(InvalidRequestError):
            EdgeCodec.load(path)


def test_a_damaged_codec_file_is_no_traceback(tmp_path):
    from importlib import resources

    shipped = next((resources.files("mpcompress") / "weights").glob(f"*{FINAL}*"))
    data = shipped.read_bytes()
    path = tmp_path / "codec.safetensors"
    for damaged in (data[:-1], data[: len(data) // 2], data + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(InvalidRequestError):
            EdgeCodec.load(path)


@pytest.mark.parametrize(("missing", "extra"), [("numba", "edge"), ("safetensors", "edge")])
def test_what_is_not_installed_is_named_with_its_extra(missing, extra):
    code = f"""
import sys
sys.modules[{missing!r}] = sys.modules["av"] = None
from mpcompress_client.cli import main
main(["codecs", "--local"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert missing in done.stderr
    assert f"pip install 'mpcompress[{extra}]'" in done.stderr


def test_a_codec_without_its_engine_is_listed_with_the_remedy():
    code = """
import sys
sys.modules["av"] = None
from mpcompress_client.cli import main
main(["codecs", "--local", "--json"])
"""
    environment = {key: value for key, value in os.environ.items() if key != "VTM_HOME"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    listed = {info["id"]: info for info in json.loads(done.stdout)}
    assert listed["klt-imgfocus-vits14-final"]["available"]
    for family in ("vtm", "vvenc", "x265"):
        info = listed[f"{family}-dinov2-cls"]
        assert not info["available"]
        assert info["family"] == family
        assert "pip install 'mpcompress[vvc]'" in info["unavailable_reason"]


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs the extra [vvc]")
def test_a_codec_that_only_decodes_here_says_so(monkeypatch):
    monkeypatch.delenv("VTM_HOME", raising=False)
    info = EdgeCodec.load("vtm-dinov2-cls").info
    assert not info.available
    assert "VTM_HOME" in info.unavailable_reason
    assert info.fingerprint


def test_other_errors_pass_the_border_untouched():
    with pytest.raises(ZeroDivisionError), library():
        _ = 1 / 0
    with pytest.raises(CodecUnavailableError), library():
        raise ModuleNotFoundError("No module named 'torch'", name="torch.nn")
