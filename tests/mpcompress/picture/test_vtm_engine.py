"""VTM as a program: a stand-in that misbehaves on demand, and the real one where VTM_HOME points to it."""

import json
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from mpcompress.errors import CodecCrashedError, CodecUnavailableError, CorruptBitstreamError, InvalidInputError
from mpcompress.picture import vtm_tools
from mpcompress.picture.cancel import CodingCancelledError
from mpcompress.picture.coding import PictureJob, encode_picture
from mpcompress.picture.decode import PictureDecoder
from mpcompress.picture.process import Limits
from mpcompress.picture.vtm import VtmEngine
from mpcompress.picture.vtm_tools import VtmTools, encode_limits

JOB = PictureJob(bit_depth=10, qp=37)


def limits_for(kind):
    """Limits that a test can wait for, where it is the limit that ends the encoder."""
    return Limits(
        wall_s=5 if kind in ("slow", "ignores_sigterm") else 120,
        cpu_s=1 if kind == "spins" else 60,
        memory_bytes=1 << 30,
        file_bytes=1 << 20,
    )


def encode(folder, picture, job=JOB, **kwargs):
    engine = VtmEngine(folder)
    return encode_picture(engine, picture, job, decoder=PictureDecoder(engine.tools), **kwargs)


def test_there_and_back(vtm_home, smooth):
    picture = smooth(17, 33)
    coded = encode(vtm_home, picture, PictureJob(bit_depth=10, qp=8))
    assert coded.decoded.shape == picture.shape
    assert np.abs(coded.decoded.astype(int) - picture).mean() < 4
    raw, _ = VtmTools.find(vtm_home).decode(coded.streams[0], bit_depth=10)
    assert len(raw) >= picture.size * 2


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("crashes", "SIGSEGV"),
        ("fails", "exit status 1: the stand-in was told to fail"),
        ("floods", "exit status 1: .*the last word"),
        ("empty", "0 bytes and ended with exit status 0"),
        ("garbage", "does not decode"),
        ("wrong_size", "does not decode.*not 20 x 24"),
        ("two_frames", "does not decode: the bitstream holds 2 coded slices"),
        ("spins", "more than 1 CPU seconds"),
        ("slow", "ran past its time limit"),
        ("ignores_sigterm", "ran past its time limit"),
        ("fills_disk", "ended with|bytes"),
        ("fills_memory", "MemoryError"),
    ],
)
def test_a_misbehaving_encoder_is_a_clear_error(stand_in, smooth, monkeypatch, tmp_path, gone, kind, message):
    monkeypatch.setattr(vtm_tools, "encode_limits", lambda samples, qp: limits_for(kind))
    folder = stand_in(encoder=kind, started=str(tmp_path / "started"))
    before = set(Path(tempfile.gettempdir()).glob("mpcompress*"))
    with pytest.raises(CodecCrashedError, match=f"(?s){message}"):
        encode(folder, smooth(20, 24))
    assert all(gone(pid) for pid in json.loads((tmp_path / "started").read_text(encoding="ascii")))
    assert not set(Path(tempfile.gettempdir()).glob("mpcompress*")) - before


def test_a_chatty_encoder_is_no_error(stand_in, smooth):
    assert encode(stand_in(encoder="chatty"), smooth(20, 24)).streams[0]


@pytest.mark.parametrize("kind", ["slow", "spins", "ignores_sigterm"])
def test_cancel_leaves_nothing(stand_in, smooth, tmp_path, await_file, gone, kind):
    started, token = tmp_path / "started", threading.Event()
    folder = stand_in(encoder=kind, started=str(started))
    thread = threading.Thread(target=lambda: (await_file(started), token.set()))
    thread.start()
    with pytest.raises(CodingCancelledError):
        encode(folder, smooth(20, 24), cancel=token)
    thread.join()
    assert all(gone(pid) for pid in json.loads(started.read_text(encoding="ascii")))


def test_cancel_stops_the_real_encoder(real_vtm, smooth):
    token = threading.Event()
    timer = threading.Timer(0.3, token.set)
    timer.start()
    with pytest.raises(CodingCancelledError):
        encode(real_vtm, smooth(512, 512), PictureJob(bit_depth=10, qp=10), cancel=token)
    timer.join()


@pytest.mark.parametrize("change", [-2, 2])
def test_a_raw_frame_of_another_size_never_reaches_the_encoder(vtm_home, change):
    raw = bytes(20 * 24 * 2 + change)
    with pytest.raises(InvalidInputError, match="needs 960"):
        VtmTools.find(vtm_home).encode(raw, width=24, height=20, qp=32, bit_depth=10)


@pytest.mark.parametrize("kind", ["crashes", "fails", "empty", "floods"])
def test_a_misbehaving_decoder_is_a_corrupt_stream(stand_in, seg, kind):
    with pytest.raises(CorruptBitstreamError):
        VtmTools.find(stand_in(decoder=kind)).decode(seg.stream(37), bit_depth=10, raw_bytes=seg.picture.size * 2)


@pytest.mark.parametrize("hostile", [b"", b"\0\0\1", b"no bitstream at all" * 50, bytes(4096), b"\xff" * 4096])
def test_hostile_streams_for_the_decoder(vtm_home, hostile):
    with pytest.raises(CorruptBitstreamError):
        VtmTools.find(vtm_home).decode(hostile, bit_depth=10, raw_bytes=960)


def test_truncated_and_concatenated_streams_for_the_decoder(vtm_home, seg):
    stream, tools = seg.stream(37), VtmTools.find(vtm_home)
    for hostile in (stream[: len(stream) // 2], stream + stream):
        with pytest.raises(CorruptBitstreamError):
            tools.decode(hostile, bit_depth=10, raw_bytes=seg.picture.size * 2)


def test_a_missing_vtm_says_how_to_supply_it(tmp_path, without_vtm):
    assert "VTM_HOME" in VtmEngine().available()
    assert "bin/EncoderApp" in VtmEngine(tmp_path).available()
    with pytest.raises(CodecUnavailableError, match=r"docs/vtm\.md"):
        VtmEngine(tmp_path).encode(np.zeros((8, 8), np.uint16), bit_depth=10, qp=32)


def test_found_by_argument_or_variable(stand_in, monkeypatch, tmp_path):
    folder = stand_in()
    monkeypatch.setenv("VTM_HOME", str(folder))
    assert VtmEngine().tools.encoder == folder / "bin/EncoderAppStatic"
    assert not VtmEngine().available()
    assert VtmEngine(tmp_path).available()


def test_the_banner_is_read_once(stand_in, monkeypatch):
    tools = VtmTools.find(stand_in())
    assert tools.banner() == "VTM 0.0"
    monkeypatch.setattr(vtm_tools, "run", None)
    assert tools.banner() == "VTM 0.0"


def test_limits_grow_with_samples_and_fall_with_qp():
    assert encode_limits(10**6, 22).cpu_s > 2 * encode_limits(10**5, 22).cpu_s
    assert encode_limits(10**6, -12).cpu_s > encode_limits(10**6, 22).cpu_s > encode_limits(10**6, 40).cpu_s


@pytest.mark.parametrize("bit_depth", [8, 9, 10, 11, 12])
def test_every_depth_of_the_real_encoder(real_vtm, smooth, bit_depth):
    picture = smooth(16, 24, bit_depth)
    coded = encode(real_vtm, picture, PictureJob(bit_depth=bit_depth, qp=-6 * (bit_depth - 8)))
    np.testing.assert_allclose(coded.decoded, picture, atol=1 << (bit_depth - 8))


@pytest.mark.parametrize("bit_depth", [13, 16])
def test_more_bits_where_the_real_vtm_was_built_for_them(real_vtm, smooth, bit_depth):
    picture, coded, reason = smooth(16, 24, bit_depth), None, ""
    try:
        coded = encode(real_vtm, picture, PictureJob(bit_depth=bit_depth, qp=-6 * (bit_depth - 8)))
    except CodecUnavailableError as error:
        reason = error.message
    if coded is None:
        assert "RExt__HIGH_BIT_DEPTH_SUPPORT=1" in reason
    else:
        np.testing.assert_allclose(coded.decoded, picture, atol=1 << (bit_depth - 8))


def test_too_many_bits_for_a_usual_build(stand_in, smooth, seg):
    tools = VtmTools.find(stand_in(encoder="low_depths", decoder="low_depths"))
    with pytest.raises(CodecUnavailableError, match="RExt__HIGH_BIT_DEPTH_SUPPORT=1"):
        encode(tools.folder, smooth(20, 24, 16), PictureJob(bit_depth=16, qp=37))
    with pytest.raises(CodecUnavailableError, match="RExt__HIGH_BIT_DEPTH_SUPPORT=1"):
        tools.decode(seg.stream(37), bit_depth=14, raw_bytes=960)
    # Of a depth that every build takes, the same words are the stream's fault.
    with pytest.raises(CorruptBitstreamError):
        tools.decode(seg.stream(37), bit_depth=10, raw_bytes=960)


@pytest.mark.parametrize("speed", VtmEngine.speeds)
def test_every_speed_of_the_real_encoder(real_vtm, smooth, speed):
    assert encode(real_vtm, smooth(24, 24), PictureJob(bit_depth=10, qp=32, speed=speed)).streams[0]
