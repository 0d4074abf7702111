"""The .mpc file: exact bytes of all layouts, its overhead, and that nothing damaged is ever taken for a unit."""

from __future__ import annotations

import itertools
import random
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcompress_proto import mpc_file
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.errors import CorruptUnitError, WireError
from mpcompress_proto.known_ids import EDITIONS, KNOWN_IDS
from mpcompress_proto.tensors import spec_of
from mpcompress_proto.v1 import compression_pb2 as pb

PAYLOAD = bytes(range(16))
DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"

# A unit in layouts 1 and 2. These bytes may never change: files out there have to be read for ever.
GOLDEN = bytes.fromhex(
    "4d50c1"  # magic, layout 1
    "079000ec"  # CRC-32 of everything else
    "0123456789abcdef"  # fingerprint
    "05"  # exact arithmetic, bitstream version 1
    "b44635f5bf2c1b1639f71480dac75b4de849"  # klt-imgfocus-vits14-block6: b446 is 11, 12, 20 in base 40, "klt"
    "2281028003"  # one float16 tensor of two axes, 257 and 384
    "07"  # seven bytes of state
    "4205"  # klt, five bytes
    "088003"  # qp_eighths 192
    "100c"  # token_width 12
    "000102030405060708090a0b0c0d0e0f"  # payload
)
NUMBERED = bytes.fromhex(
    "4d50c2"  # magic, layout 2
    "2c03ddc8"
    "0123456789abcdef"
    "05"
    "01fa"  # klt-imgfocus-vits14-block6 is number 1: 64000 + 1
    "2281028003"
    "07"
    "4205"
    "088003"
    "100c"
    "000102030405060708090a0b0c0d0e0f"
)
# The same in layout 3, where it has the fingerprint and the bitstream version that edition 1 has.
EDITION = bytes.fromhex(
    "4d50c3"  # magic, layout 3
    "10e1f1eb"
    "01"  # edition 1
    "2281028003"
    "07"
    "4205"
    "088003"
    "100c"
    "000102030405060708090a0b0c0d0e0f"
)
# Layout 1 is also what units of codecs without a number are written in.
SPELT = bytes.fromhex(
    "4d50c1"
    "30026f8d"
    "0123456789abcdef"
    "05"
    "b446cdf5"  # klt-me: 11, 12, 20; 39, 13, 5; and the 0
    "0000"
    "2281028003"
    "07"
    "4205"
    "088003"
    "100c"
    "000102030405060708090a0b0c0d0e0f"
)


def klt_unit(
    shape: tuple[int, ...] = (1, 257, 384),
    codec_id: str = "klt-imgfocus-vits14-block6",
    payload: bytes = PAYLOAD,
    fingerprint: bytes = bytes.fromhex("0123456789abcdef"),
    version: int = 1,
    **state: int,
) -> CodedUnit:
    return CodedUnit.build(
        codec_id=codec_id,
        bitstream_version=version,
        fingerprint=fingerprint,
        arithmetic=pb.ARITHMETIC_EXACT,
        tensors=[spec_of(np.zeros(shape, np.float16))],
        kind="klt",
        pstate={"qp_eighths": 192, **state},
        strings=[payload],
    )


def two_tensor_unit() -> CodedUnit:
    return CodedUnit.build(
        codec_id="vit_union_ctx.v2",
        bitstream_version=63,
        fingerprint=b"\xff" * 8,
        arithmetic=pb.ARITHMETIC_FLOAT32,
        tensors=[spec_of(np.zeros((2, 5, 3), np.float32), "h"), spec_of(np.zeros(300, np.int8), "h_2")],
        kind="vit_union",
        pstate={"y_shape": (4, 300), "z_shape": (1, 1), "prefix_tokens": 0},
        strings=[b"abc", b"", b"defg"],
        ctx_hash=b"context!",
    )


def edition_unit(number: int = 1, shape: tuple[int, ...] = (257, 384), **state: int) -> CodedUnit:
    edition = EDITIONS[number]
    return klt_unit(shape, edition.codec_id, PAYLOAD, edition.fingerprint, edition.bitstream_version, **state)


UNITS = {
    "klt": klt_unit(),
    "an edition of klt": edition_unit(),
    "klt without a number": klt_unit(codec_id="klt-of-mine"),
    "two tensors": two_tensor_unit(),
    "empty payload": klt_unit(payload=b""),
}


def with_checksum(data: bytes) -> bytes:
    """What a forger would do: damaged bytes under a checksum that fits."""
    crc = zlib.crc32(data[7:], zlib.crc32(data[:3]))
    return data[:3] + crc.to_bytes(4, "little") + data[7:]


def with_id(layout: int, *words: int) -> bytes:
    """The golden unit's file in a layout with a codec id of these words, under a checksum that fits."""
    packed = b"".join(word.to_bytes(2, "little") for word in words)
    return with_checksum(GOLDEN[:2] + bytes([0xC0 | layout]) + GOLDEN[3:16] + packed + GOLDEN[34:])


def test_golden_bytes():
    unit = klt_unit((257, 384), token_width=12)
    assert unit.to_bytes().hex() == NUMBERED.hex()
    assert CodedUnit.from_bytes(NUMBERED) == unit
    mine = klt_unit((257, 384), "klt-me", token_width=12)
    assert mine.to_bytes().hex() == SPELT.hex()
    assert CodedUnit.from_bytes(SPELT) == mine


def test_golden_bytes_of_an_edition():
    unit = edition_unit(token_width=12)
    assert unit.to_bytes().hex() == EDITION.hex()
    assert CodedUnit.from_bytes(EDITION) == unit
    assert unit.nbytes == len(EDITION) == len(NUMBERED) - 10


@pytest.mark.parametrize("number", range(len(EDITIONS)))
def test_every_edition_says_all_of_its_codec(number):
    unit = edition_unit(number)
    data = unit.to_bytes()
    assert data[2:8:5] == bytes([0xC3, number])
    again = CodedUnit.from_bytes(data)
    assert again == unit
    header, edition = again.header, EDITIONS[number]
    assert (header.codec_id, header.fingerprint) == (edition.codec_id, edition.fingerprint)
    assert (header.bitstream_version, header.arithmetic) == (edition.bitstream_version, pb.ARITHMETIC_EXACT)


def test_what_is_no_edition_is_written_in_layout_2():
    edition = EDITIONS[1]
    others = [
        klt_unit(codec_id=edition.codec_id, fingerprint=edition.fingerprint, version=edition.bitstream_version - 2),
        klt_unit(codec_id=edition.codec_id, fingerprint=bytes(8), version=edition.bitstream_version),
        klt_unit(codec_id=EDITIONS[0].codec_id, fingerprint=edition.fingerprint, version=edition.bitstream_version),
    ]
    for unit in others:
        assert unit.to_bytes()[2] == 0xC2
        assert CodedUnit.from_bytes(unit.to_bytes()) == unit


def test_units_of_an_edition_are_read_in_older_layouts():
    unit = edition_unit()
    body = unit.fingerprint + bytes([1 | unit.header.bitstream_version << 2])
    rest = unit.to_bytes()[8:]
    for layout, name in ((2, b"\x01\xfa"), (2, GOLDEN[16:34]), (1, GOLDEN[16:34])):
        data = with_checksum(b"MP" + bytes([0xC0 | layout]) + bytes(4) + body + name + rest)
        assert CodedUnit.from_bytes(data) == unit
        assert CodedUnit.from_bytes(data).to_bytes() == unit.to_bytes()


@pytest.mark.parametrize("number", [bytes([len(EDITIONS)]), b"\x7f", b"\xff\xff\xff\xff\x0f"])
def test_an_edition_from_the_future_says_so(number):
    with pytest.raises(CorruptUnitError, match=r"number \d+, .* newer") as caught:
        CodedUnit.from_bytes(with_checksum(EDITION[:7] + number + EDITION[8:]))
    assert caught.value.field == "unit.codec_id"


def test_files_from_before_codecs_had_numbers_are_read():
    unit = CodedUnit.from_bytes(GOLDEN)
    assert unit == klt_unit((257, 384), token_width=12)
    assert unit.to_bytes() == NUMBERED
    assert unit.nbytes == len(NUMBERED) == len(GOLDEN) - 16


def test_the_layout_is_no_part_of_the_unit():
    for data in (GOLDEN, NUMBERED, EDITION, SPELT, with_checksum(SPELT[:2] + b"\xc2" + SPELT[3:])):
        assert mpc_file.read(data)[0].format_version == 1


def test_layout_2_takes_spelt_ids_too():
    for data in (GOLDEN, SPELT):
        assert CodedUnit.from_bytes(with_checksum(data[:2] + b"\xc2" + data[3:])) == CodedUnit.from_bytes(data)


@pytest.mark.parametrize("number", range(len(KNOWN_IDS)))
def test_every_number_is_its_codec(number):
    unit = CodedUnit.from_bytes(with_id(2, 64000 + number))
    assert unit.codec_id == KNOWN_IDS[number]
    assert unit.to_bytes() == with_id(2, 64000 + number)


@pytest.mark.parametrize("number", [len(KNOWN_IDS), 1000, 1535])
def test_a_number_from_the_future_says_so(number):
    with pytest.raises(CorruptUnitError, match=rf"number {number}\b.* newer") as caught:
        CodedUnit.from_bytes(with_id(2, 64000 + number))
    assert caught.value.field == "unit.codec_id"


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (1, (64000,)),
        (1, (65535,)),
        (1, (0x46B4, 64000)),
        (2, (0x46B4, 64000)),
        (2, (0x46B4, 65535)),
        (2, (0,)),
    ],
)
def test_words_that_name_no_codec(layout, words):
    with pytest.raises(CorruptUnitError) as caught:
        CodedUnit.from_bytes(with_id(layout, *words))
    assert caught.value.field == "unit.codec_id"


@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("rest", [b"", b"\x01", b"\x01\xfa"])
def test_files_that_end_at_the_codec(layout, rest):
    with pytest.raises(CorruptUnitError):
        CodedUnit.from_bytes(with_checksum(GOLDEN[:2] + bytes([0xC0 | layout]) + GOLDEN[3:16] + rest))
    for size in (7, 8, 12, 15):
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(with_checksum(GOLDEN[:2] + bytes([0xC0 | layout]) + GOLDEN[3:size]))
    for end in (b"", b"\x01", b"\x81"):
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(with_checksum(EDITION[:7] + end))


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_round_trip(unit, tmp_path):
    again = CodedUnit.from_bytes(unit.to_bytes())
    assert again == unit
    assert again.strings == unit.strings
    assert again.pstate == unit.pstate
    assert again.to_bytes() == unit.to_bytes()
    unit.save(tmp_path / "unit.mpc")
    assert CodedUnit.load(tmp_path / "unit.mpc") == unit
    assert unit.nbytes == (tmp_path / "unit.mpc").stat().st_size


@pytest.mark.parametrize("state", [{}, {"token_width": 12}], ids=["own grid", "another grid"])
@pytest.mark.parametrize("shape", [(257, 384), (1, 257, 384)])
@pytest.mark.parametrize("number", range(len(EDITIONS)))
def test_a_klt_unit_costs_at_most_22_bytes_beyond_its_payload(shape, state, number):
    unit = edition_unit(number, shape, **state)
    assert unit.nbytes - len(unit.payload) <= 22
    assert unit.bpfp == 8 * unit.nbytes / (257 * 384)


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_every_flipped_bit_is_noticed(unit):
    data = unit.to_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(bytes(flipped))


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_every_truncation_and_extension_is_noticed(unit):
    data = unit.to_bytes()
    for size in range(len(data)):
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(data[:size])
    for byte in range(256):
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(data + bytes([byte]))
    for more in range(1, 64):
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(data + bytes(more))
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(data + data[:more])


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_unit(data):
    forged = [with_checksum(b"MP" + bytes([0xC0 | layout]) + bytes(4) + data) for layout in (1, 2, 3)]
    for candidate in (data, b"MP\xc1" + data, b"MP\xc2" + data, b"MP\xc3" + data, *forged):
        try:
            unit = CodedUnit.from_bytes(candidate)
        except CorruptUnitError:
            continue
        assert CodedUnit.from_bytes(unit.to_bytes()) == unit


@settings(max_examples=600, deadline=None)
@given(name=st.sampled_from(sorted(UNITS)), seed=st.integers(0, 2**32), edits=st.integers(1, 6))
def test_forged_files_are_refused_or_are_units(name, seed, edits):
    """Edits under a checksum that fits reach the parser behind it."""
    chance = random.Random(seed)
    data = bytearray(UNITS[name].to_bytes())
    for _ in range(edits):
        place = chance.randrange(3, len(data))
        match chance.randrange(3):
            case 0:
                data[place] = chance.randrange(256)
            case 1:
                del data[place]
            case _:
                data.insert(place, chance.randrange(256))
    try:
        unit = CodedUnit.from_bytes(with_checksum(bytes(data)))
    except CorruptUnitError:
        return
    assert CodedUnit.from_bytes(unit.to_bytes()) == unit


@pytest.mark.parametrize("size", [0, 1, 2, 3, 15, 16])
def test_short_files(size):
    with pytest.raises(CorruptUnitError):
        CodedUnit.from_bytes(GOLDEN[:size])


def test_other_files_and_newer_layouts_say_so():
    with pytest.raises(CorruptUnitError, match=r"not a \.mpc file"):
        CodedUnit.from_bytes(b"\x93NUMPY" + bytes(100))
    for layout in (0, 4, 15):
        with pytest.raises(CorruptUnitError, match=f"layout {layout}; this reader knows 1 to 3"):
            CodedUnit.from_bytes(with_checksum(GOLDEN[:2] + bytes([0xC0 | layout]) + GOLDEN[3:]))


FORGED_SIZES = (
    b"\x22\xff\xff\xff\xff\x07\xff\xff\xff\xff\x07\x00",  # a shape of 2^62 elements
    b"\x22\x01\x01\xff\xff\xff\xff\x0f",  # a state of 4 GiB
    b"\x22" + b"\x80" * 20,  # a number without an end
    b"\x22\x80\x80\x80\x80\x80\x00",
    b"\x82" * 9,  # nine tensors
    b"\x02",  # no axes
    b"\x72",  # seven axes
)


def test_a_forged_size_allocates_nothing():
    for head, tail in itertools.product((GOLDEN[:34], NUMBERED[:18], EDITION[:8]), FORGED_SIZES):
        with pytest.raises(CorruptUnitError):
            CodedUnit.from_bytes(with_checksum(head + tail))


@pytest.mark.parametrize("codec_id", ["a", "a.b_c-9", "0" * 64, "x" * 62, "x" * 63, *KNOWN_IDS])
def test_ids_of_every_length(codec_id):
    assert CodedUnit.from_bytes(klt_unit(codec_id=codec_id).to_bytes()).codec_id == codec_id


@pytest.mark.parametrize("codec_id", ["", "A", "-a", ".a", "a b", "ä", "a" * 65, "a\n"])
def test_ids_that_are_none(codec_id):
    with pytest.raises(WireError) as caught:
        klt_unit(codec_id=codec_id)
    assert caught.value.field == "unit.codec_id"


def test_what_the_layout_cannot_hold_is_not_written():
    header = klt_unit().header
    for name, value in (("bitstream_version", 64), ("fingerprint", b"short")):
        changed = pb.CodedUnitHeader()
        changed.CopyFrom(header)
        setattr(changed, name, value)
        with pytest.raises(WireError) as caught:
            mpc_file.write(changed, PAYLOAD)
        assert caught.value.field == f"unit.{name}"
    large = pb.CodedUnitHeader()
    large.CopyFrom(header)
    large.stream_bytes.extend([1 << 28] * 300_000)
    with pytest.raises(WireError, match="state of"):
        mpc_file.write(large, PAYLOAD)


def test_the_examples_in_the_documentation_are_the_golden_files():
    text = DOCUMENT.read_text(encoding="utf-8")
    examples = re.split(r"in layout [123]:\n", text.partition("## An example")[2].partition("\n## ")[0])[1:]
    for example, golden in zip(examples, (EDITION, NUMBERED, GOLDEN), strict=True):
        lines = re.findall(r"^    ((?:[0-9a-f]{2} ?)+?)(?: {2,}|$)", example, re.MULTILINE)
        assert bytes.fromhex("".join(lines)) == golden
    third, second, first = (len(golden) - len(PAYLOAD) for golden in (EDITION, NUMBERED, GOLDEN))
    said = f"The example has {third} bytes beside its payload in layout 3, {second} in layout 2 and {first} in layout 1"
    assert said in " ".join(text.split())
