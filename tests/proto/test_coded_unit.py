"""CodedUnit and its pstate: what is checked when one is made, and dictionaries there and back."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage

from mpcompress_proto.coded_unit import CodedUnit, UnitMaker
from mpcompress_proto.errors import CorruptUnitError, MPCompressError, WireError
from mpcompress_proto.pstate import KINDS, get_pstate, set_pstate
from mpcompress_proto.tensors import spec_of
from mpcompress_proto.v1 import compression_pb2 as pb

STATES = {
    "klt": [
        {"qp_eighths": 192, "gain_eighths": 0},
        {
            "qp_eighths": -5,
            "token_width": 16,
            "prefix_tokens": 0,
            "prefix_qp_offset_eighths": -96,
            "gain_eighths": 8,
        },
    ],
    "vit_union": [
        {},
        {"y_shape": (8, 8), "z_shape": (2, 3), "y_pad": (0, 0), "token_res": (16, 17), "prefix_tokens": 0},
    ],
    "hyperprior": [
        {"packing": "", "batch": 0},
        {
            "z_shape": (1, 2),
            "map_shape": (3, 4),
            "packing": "rows",
            "trun_low": [-2.0, -1.5],
            "trun_high": [2.0, 1.5],
            "batch": 3,
        },
    ],
    "picture": [
        {
            "pack_shape": (514, 384),
            "bit_depth": 10,
            "packing": "tokens",
            "trun_low": [-2.0],
            "trun_high": [2.0],
            "format": "vvc",
            "strip_heights": [257, 257],
            "picture_crc32": 2**32 - 1,
            "encoder": "VTM 23.13",
        },
    ],
    "plugin": [{"type_url": "example.com/State", "value": b"\x00\xff"}],
}


def test_every_kind_of_state_is_tested():
    assert set(STATES) == set(KINDS)


@pytest.mark.parametrize(("kind", "state"), [(kind, state) for kind, states in STATES.items() for state in states])
def test_pstate_there_and_back(kind, state):
    header = pb.CodedUnitHeader()
    set_pstate(header, kind, state)
    again = pb.CodedUnitHeader.FromString(header.SerializeToString())
    assert get_pstate(again) == (kind, state)


def test_presence_survives_a_zero():
    header = pb.CodedUnitHeader()
    set_pstate(header, "vit_union", {"y_pad": (0, 0), "prefix_tokens": 0})
    assert header.vit_union.HasField("y_pad")
    assert header.vit_union.HasField("prefix_tokens")
    assert get_pstate(header)[1] == {"y_pad": (0, 0), "prefix_tokens": 0}


def test_numpy_numbers_are_numbers():
    header = pb.CodedUnitHeader()
    set_pstate(header, "vit_union", {"y_shape": np.array([3, 4]), "prefix_tokens": np.int64(2)})
    assert get_pstate(header)[1] == {"y_shape": (3, 4), "prefix_tokens": 2}


@pytest.mark.parametrize(
    ("kind", "state", "field"),
    [
        ("klt", {"qp": 3}, "unit.klt.qp"),
        ("klt", {"qp_eighths": "x"}, "unit.klt.qp_eighths"),
        ("klt", {"qp_eighths": None}, "unit.klt.qp_eighths"),
        ("klt", {"qp_eighths": 2**40}, "unit.klt.qp_eighths"),
        ("vit_union", {"y_shape": (1, 2, 3)}, "unit.vit_union.y_shape"),
        ("vit_union", {"y_shape": (-1, 2)}, "unit.vit_union.y_shape"),
        ("vit_union", {"y_shape": None}, "unit.vit_union.y_shape"),
        ("hyperprior", {"trun_low": ["a"]}, "unit.hyperprior.trun_low"),
        ("hyperprior", {"trun_low": 3.0}, "unit.hyperprior.trun_low"),
        ("picture", {"format": "jpeg"}, "unit.picture.format"),
        ("picture", {"format": 1}, "unit.picture.format"),
        ("nonsense", {}, "unit.pstate"),
    ],
)
def test_states_that_no_message_holds(kind, state, field):
    with pytest.raises(WireError) as caught:
        set_pstate(pb.CodedUnitHeader(), kind, state)
    assert caught.value.field == field


def test_an_unknown_enum_value_is_shown_as_its_number():
    header = pb.CodedUnitHeader(picture=pb.PictureState(format=77))
    assert get_pstate(header)[1]["format"] == "77"


def test_a_header_without_pstate():
    with pytest.raises(WireError, match="no pstate"):
        get_pstate(pb.CodedUnitHeader())


def _unit(**changes) -> CodedUnit:
    arguments = {
        "codec_id": "klt-x",
        "bitstream_version": 1,
        "fingerprint": b"12345678",
        "arithmetic": pb.ARITHMETIC_EXACT,
        "tensors": [spec_of(np.zeros((3, 4), np.float32))],
        "kind": "klt",
        "pstate": {"qp_eighths": 8},
        "strings": [b"abc", b"defg"],
    }
    return CodedUnit.build(**{**arguments, **changes})


def test_a_unit_knows_itself():
    unit = _unit()
    assert unit.strings == [b"abc", b"defg"]
    assert unit.payload == b"abcdefg"
    assert unit.elements == 12
    assert unit.bpfp == 8 * unit.nbytes / 12
    assert unit.nbytes == len(unit.to_bytes())
    assert unit.pstate == {"qp_eighths": 8, "gain_eighths": 0}
    assert "klt-x" in repr(unit)
    assert "abcdefg" not in repr(unit)


def test_a_maker_makes_what_build_does_again_and_again():
    common = {
        "codec_id": "klt-x",
        "bitstream_version": 1,
        "fingerprint": b"12345678",
        "arithmetic": pb.ARITHMETIC_EXACT,
        "tensors": [spec_of(np.zeros((3, 4), np.float32)), spec_of(np.zeros(300, np.int8), "more")],
        "kind": "klt",
    }
    maker = UnitMaker(**common)
    for own in (
        {"pstate": {"qp_eighths": 8}, "strings": [b"abc", b"defg"]},
        {"pstate": {"qp_eighths": 500, "gain_eighths": 3}, "strings": [bytes(300)], "ctx_hash": b"context!"},
        {"pstate": {}, "strings": []},
    ):
        made, built = maker.make(**own), CodedUnit.build(**common, **own)
        assert made == built
        assert made.nbytes == len(made.to_bytes()) == CodedUnit.from_bytes(built.to_bytes()).nbytes


def test_a_maker_refuses_what_no_unit_has():
    good = {"codec_id": "x", "bitstream_version": 1, "fingerprint": bytes(8), "arithmetic": pb.ARITHMETIC_EXACT}
    good |= {"tensors": [spec_of(np.zeros(3, np.float32))], "kind": "klt"}
    for name, bad in (("codec_id", "X"), ("bitstream_version", 64), ("fingerprint", b""), ("tensors", [])):
        with pytest.raises(WireError) as caught:
            UnitMaker(**{**good, name: bad})
        assert caught.value.field == f"unit.{name}"
    with pytest.raises(WireError, match="unknown kind"):
        UnitMaker(**{**good, "kind": "nothing"})
    maker = UnitMaker(**good)
    with pytest.raises(WireError, match="unknown key"):
        maker.make(pstate={"nothing": 1}, strings=[b""])
    with pytest.raises(WireError, match="ctx hash"):
        maker.make(pstate={}, strings=[b""], ctx_hash=b"short")


def test_one_stream_or_none():
    assert _unit(strings=[b"abc"]).strings == [b"abc"]
    assert _unit(strings=[b""]).strings == [b""]
    assert _unit(strings=[]).payload == b""


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"codec_id": "Klt"}, "unit.codec_id"),
        ({"bitstream_version": 0}, "unit.bitstream_version"),
        ({"bitstream_version": 64}, "unit.bitstream_version"),
        ({"fingerprint": b"1234567"}, "unit.fingerprint"),
        ({"arithmetic": pb.ARITHMETIC_UNSPECIFIED}, "unit.arithmetic"),
        ({"arithmetic": 3}, "unit.arithmetic"),
        ({"ctx_hash": b"1"}, "unit.ctx_hash"),
        ({"tensors": []}, "unit.tensors"),
        ({"tensors": [pb.TensorSpec(dtype=1, shape=[0])]}, "unit.tensors[0].shape"),
    ],
)
def test_headers_that_are_refused(changes, field):
    with pytest.raises(WireError) as caught:
        _unit(**changes)
    assert caught.value.field == field


def test_a_payload_of_another_header_is_refused():
    unit = _unit()
    for payload in (b"", b"abcdefX", b"abcdefgh"):
        with pytest.raises(CorruptUnitError):
            CodedUnit(header=unit.header, payload=payload)
    changed = pb.CodedUnitHeader()
    changed.CopyFrom(unit.header)
    changed.stream_bytes[0] = 4
    with pytest.raises(WireError, match="add up"):
        CodedUnit(header=changed, payload=unit.payload)


def test_the_report_is_no_part_of_the_unit():
    assert _unit(report=pb.CodingReport(bpfp=3)) == _unit()


def test_a_plugin_state_travels_in_a_file():
    state = AnyMessage(type_url="example.com/State", value=b"\x01\x02")
    unit = _unit(kind="plugin", pstate={"type_url": state.type_url, "value": state.value})
    assert CodedUnit.from_bytes(unit.to_bytes()).header.plugin == state


def test_errors_have_one_root():
    error = CorruptUnitError("damaged", field="unit")
    assert isinstance(error, MPCompressError)
    assert isinstance(error, ValueError)
    assert (str(error), error.field, error.reason, error.request_id) == ("damaged", "unit", "", "")
