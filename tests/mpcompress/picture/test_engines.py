"""The same checks for every engine: x265, libvvenc, and VTM (a stand-in; the real one where there is one)."""

import numpy as np
import pytest

from mpcompress.errors import InvalidInputError
from mpcompress.picture import pyav
from mpcompress.picture.coding import PictureJob, decode_picture, encode_picture, picture_crc32
from mpcompress.picture.decode import PictureDecoder
from mpcompress.picture.engine import PictureEngine, engine, register_engine

SHAPES = [(1, 1), (3, 5), (17, 33), (4, 200), (40, 7), (64, 64)]


def job(any_engine, qp=20, **kwargs):
    return PictureJob(bit_depth=10, qp=qp, speed=any_engine.speeds[-1], **kwargs)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_there_and_back_at_any_size(any_engine, shape, smooth):
    picture = smooth(*shape)
    coded = encode_picture(any_engine, picture, job(any_engine), decoder=PictureDecoder())
    assert coded.decoded.shape == shape
    assert coded.decoded.dtype == np.uint16
    assert np.abs(coded.decoded.astype(int) - picture).mean() < 20
    again = decode_picture(
        coded.streams,
        form=any_engine.format,
        heights=coded.heights,
        width=shape[1],
        bit_depth=10,
        crc32=picture_crc32(coded.decoded),
        decoder=PictureDecoder(),
    )
    np.testing.assert_array_equal(again, coded.decoded)


def test_the_same_bytes_every_time(any_engine, smooth):
    streams = [any_engine.encode(smooth(24, 40), bit_depth=10, qp=30, speed=any_engine.speeds[-1]) for _ in range(2)]
    assert streams[0] == streams[1]


def test_a_larger_qp_takes_fewer_bytes(any_engine, smooth):
    sizes = [len(any_engine.encode(smooth(64, 64), bit_depth=10, qp=qp)) for qp in (15, 30, 45)]
    assert sizes == sorted(sizes, reverse=True)


def test_strips_decode_to_the_whole(any_engine, smooth):
    picture, told = smooth(70, 40), []
    coded = encode_picture(
        any_engine,
        picture,
        job(any_engine, strips=3, parallel=2),
        decoder=PictureDecoder(),
        progress=lambda done, total: told.append((done, total)),
    )
    assert coded.heights == (16, 24, 30)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert np.abs(coded.decoded.astype(int) - picture).mean() < 20


@pytest.mark.parametrize(
    ("picture", "change", "message"),
    [
        (np.zeros((8, 8), np.uint8), {}, "uint16"),
        (np.zeros((8, 8, 1), np.uint16), {}, "uint16 array"),
        (np.zeros((0, 8), np.uint16), {}, "0 x 8"),
        (np.full((8, 8), 1024, np.uint16), {}, "1024 does not fit 10 bits"),
        (np.zeros((8, 8), np.uint16), {"bit_depth": 7}, "not 7"),
        (np.zeros((8, 8), np.uint16), {"qp": 64}, "not 64"),
        (np.zeros((8, 8), np.uint16), {"qp": -13}, "not -13"),
        (np.zeros((8, 8), np.uint16), {"speed": "warp"}, "warp"),
    ],
)
def test_what_no_engine_takes(any_engine, picture, change, message):
    with pytest.raises(InvalidInputError, match=message):
        any_engine.encode(picture, **({"bit_depth": 10, "qp": 30} | change))


def test_the_banner_is_short(any_engine):
    assert any_engine.banner()
    assert len(any_engine.banner()) <= 32 + 32


@pytest.mark.parametrize("bit_depth", [8, 10, 12])
def test_depths_of_x265(bit_depth, smooth):
    picture = smooth(24, 40, bit_depth)
    coded = encode_picture(engine("x265"), picture, PictureJob(bit_depth=bit_depth, qp=0), decoder=PictureDecoder())
    assert np.abs(coded.decoded.astype(int) - picture).max() <= 1 << (bit_depth - 8)


def test_unknown_and_own_engines(monkeypatch):
    monkeypatch.setattr("mpcompress.picture.engine._ENGINES", {})
    with pytest.raises(InvalidInputError, match="unknown picture engine 'mine'"):
        engine("mine")

    class Mine(PictureEngine):
        name, format, depths, speeds, default_speed = "mine", "vvc", (8,), ("only",), "only"

        def require(self):
            pass

        def banner(self):
            return "mine 1"

        def qp_range(self, bit_depth):
            return 0, 1

        def _encode(self, picture, bit_depth, qp, speed, cancel):
            return bytes([qp])

    register_engine("mine", Mine)
    assert engine("mine").encode(np.zeros((1, 1), np.uint16), bit_depth=8, qp=1) == b"\1"
    with pytest.raises(ValueError, match="already"):
        register_engine("mine", Mine)


def test_missing_packages_say_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    assert "pip install 'mpcompress[vvc]'" in engine("x265").available()
    assert "pip install 'mpcompress[vvc]'" in engine("vvenc").available()
    assert pyav.REMEDY in engine("x265").available()
