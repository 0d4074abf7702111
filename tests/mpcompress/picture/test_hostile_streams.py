"""Bitstreams from anywhere: a clear error in bounded time, and never another picture than the one that was coded."""

import re

import numpy as np
import pytest

from mpcompress.errors import CodecUnavailableError, CorruptBitstreamError
from mpcompress.picture import decode as decode_module
from mpcompress.picture import pyav
from mpcompress.picture.annexb import check_one_picture, nal_types
from mpcompress.picture.coding import decode_picture, picture_crc32
from mpcompress.picture.decode import OwnStreams, PictureDecoder
from mpcompress.picture.engine import engine
from mpcompress.picture.process import Limits
from mpcompress.picture.vtm_tools import VtmTools

VVC = {"form": "vvc", "height": 52, "width": 48, "bit_depth": 10}


@pytest.fixture
def decoder():
    return PictureDecoder()


def test_own_and_foreign_streams_decode_alike(decoder, seg, monkeypatch):
    foreign = decoder.decode(seg.stream(37), **VVC)
    own = OwnStreams()
    own.add(seg.stream(37))
    monkeypatch.setattr(decode_module, "OWN_STREAMS", own)
    monkeypatch.setattr(decode_module, "run", None)
    np.testing.assert_array_equal(decoder.decode(seg.stream(37), **VVC), foreign)


def test_own_streams_are_forgotten_in_order():
    own = OwnStreams(capacity=2)
    for stream in (b"a", b"b", b"c"):
        own.add(stream)
    assert [stream in own for stream in (b"a", b"b", b"c")] == [False, True, True]


@pytest.mark.parametrize(
    "hostile",
    [b"", b"\0", b"\0\0\1", b"\0\0\0\1\x09", b"no bitstream at all" * 50, bytes(4096), b"\xff" * 4096],
    ids=["empty", "zero", "start", "header", "text", "zeros", "ones"],
)
def test_what_is_no_bitstream(decoder, hostile):
    with pytest.raises(CorruptBitstreamError):
        decoder.decode(hostile, **VVC)


def test_truncated_streams(decoder, seg):
    stream = seg.stream(37)
    right = picture_crc32(seg.reconstruction(37))
    for size in (len(stream) - 1, len(stream) // 2, len(stream) // 4, 100):
        with pytest.raises(CorruptBitstreamError):
            decode_picture(
                [stream[:size]], form="vvc", heights=[52], width=48, bit_depth=10, crc32=right, decoder=decoder
            )


def test_concatenated_streams(decoder, seg):
    with pytest.raises(CorruptBitstreamError, match="2 coded slices"):
        decoder.decode(seg.stream(37) + seg.stream(22), **VVC)


def test_flipped_bits_never_pass_for_the_picture(seg, monkeypatch):
    """In this process, for speed: FFmpeg is what is tried here, not the process around it."""
    random = np.random.default_rng(5)
    right, stream = seg.reconstruction(37), seg.stream(37)
    own = OwnStreams()
    monkeypatch.setattr(decode_module, "OWN_STREAMS", own)
    refused = 0
    for _ in range(60):
        damaged = bytearray(stream)
        damaged[int(random.integers(len(damaged)))] ^= 1 << int(random.integers(8))
        own.add(bytes(damaged))
        try:
            decoded = decode_picture(
                [bytes(damaged)],
                form="vvc",
                heights=[52],
                width=48,
                bit_depth=10,
                crc32=picture_crc32(right),
                decoder=PictureDecoder(),
            )
        except CorruptBitstreamError:
            refused += 1
        else:
            np.testing.assert_array_equal(decoded, right)
    assert refused > 40


@pytest.mark.parametrize("change", [{"height": 60}, {"width": 40}, {"bit_depth": 8}, {"form": "hevc"}])
def test_another_picture_than_the_state_says(decoder, seg, change):
    with pytest.raises(CorruptBitstreamError):
        decoder.decode(seg.stream(37), **(VVC | change))


def test_huge_dimensions_are_refused_before_they_are_allocated(decoder, smooth):
    stream = engine("x265").encode(smooth(1024, 2048), bit_depth=10, qp=51, speed="veryfast")
    with pytest.raises(pyav.UndecodableError):
        pyav.decode_frames("hevc", stream, 1024 * 2047)
    with pytest.raises(CorruptBitstreamError):
        decoder.decode(stream, form="hevc", height=64, width=64, bit_depth=10)


def _ue(value):
    """ue(v) of H.265 and H.266, as text of bits."""
    bits = f"{value + 1:b}"
    return "0" * (len(bits) - 1) + bits


def _claiming(stream, sides, claimed):
    """The stream with other sides (width, height) in its parameter sets: how many sets were changed, and the bytes."""
    changed, units = 0, []
    for unit in re.split(rb"\x00{2,3}\x01", stream)[1:]:
        bits = "".join(f"{byte:08b}" for byte in unit.replace(b"\0\0\3", b"\0\0"))
        said = "".join(map(_ue, sides))
        if said in bits:
            changed += 1
            # What follows moves; the stop bit is the last one that is set.
            bits = bits.replace(said, "".join(map(_ue, claimed)), 1).rstrip("0")
            bits += "0" * (-len(bits) % 8)
            unit = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
            unit = re.sub(rb"\x00\x00(?=[\x00-\x03])", b"\0\0\3", unit)
        units.append(unit)
    return changed, b"".join(b"\0\0\0\1" + unit for unit in units)


HUGE = 65528, 65528


def test_parameter_sets_are_forged_as_meant(decoder, seg):
    """With other sides that are true, the stream is what it was: sides lie in the sequence's and the picture's set."""
    # VTM codes whole groups of 8 rows.
    changed, same = _claiming(seg.stream(37), (48, 56), (48, 56))
    assert changed == 2
    np.testing.assert_array_equal(decoder.decode(same, **VVC), seg.reconstruction(37))


def test_claims_of_huge_dimensions(decoder, seg, vtm_home, smooth):
    """4 gigasamples, in 2 kB."""
    changed, forged = _claiming(seg.stream(37), (48, 56), HUGE)
    assert changed == 2
    for height, width in ((52, 48), (4096, 4096)):
        with pytest.raises(CorruptBitstreamError):
            decoder.decode(forged, form="vvc", height=height, width=width, bit_depth=10)
    for raw_bytes in (52 * 48 * 2, None):
        with pytest.raises(CorruptBitstreamError):
            VtmTools.find(vtm_home).decode(forged, bit_depth=10, raw_bytes=raw_bytes)
    stream = engine("x265").encode(smooth(56, 48), bit_depth=10, qp=37, speed="veryfast")
    changed, forged = _claiming(stream, (48, 56), HUGE)
    assert changed == 1
    with pytest.raises(CorruptBitstreamError):
        decoder.decode(forged, form="hevc", height=56, width=48, bit_depth=10)


def test_a_decoder_that_dies_takes_nobody_with_it(decoder, seg, monkeypatch, tmp_path):
    crash = tmp_path / "crash.py"
    crash.write_text("import os; os.kill(os.getpid(), 11)", encoding="ascii")
    monkeypatch.setattr(pyav, "__file__", str(crash))
    with pytest.raises(CorruptBitstreamError, match="SIGSEGV"):
        decoder.decode(seg.stream(37), **VVC)


def test_nal_units(seg):
    kinds = list(nal_types(seg.stream(37), "vvc"))
    assert sum(kind < 12 for kind in kinds) == 1
    check_one_picture(seg.stream(37), "vvc")


def test_decoder_app_where_pyav_is_missing(seg, vtm_home, monkeypatch):
    monkeypatch.setattr(decode_module, "_pyav_decodes", lambda bit_depth: False)
    decoded = PictureDecoder(VtmTools.find(vtm_home)).decode(seg.stream(37), **VVC)
    np.testing.assert_array_equal(decoded, seg.reconstruction(37))


def test_no_decoder_at_all(seg, monkeypatch, without_vtm):
    monkeypatch.setattr(decode_module, "_pyav_decodes", lambda bit_depth: False)
    with pytest.raises(CodecUnavailableError, match=r"mpcompress\[vvc\].*VTM_HOME"):
        PictureDecoder().decode(seg.stream(37), **VVC)
    with pytest.raises(CodecUnavailableError, match=r"mpcompress\[vvc\]"):
        PictureDecoder().require("hevc", 10)


def test_limits_of_the_decoder_are_finite(decoder, seg, monkeypatch):
    seen = []

    def spy(argv, *, limits, **kwargs):
        seen.append(limits)
        raise CorruptBitstreamError("spied")

    monkeypatch.setattr(decode_module, "run", spy)
    with pytest.raises(CorruptBitstreamError, match="spied"):
        decoder.decode(seg.stream(37), **VVC)
    (limits,) = seen
    assert isinstance(limits, Limits)
    assert limits.cpu_s < 60
    assert limits.memory_bytes < 4 << 30
