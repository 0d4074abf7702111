"""A device fetches a codec from its server, keeps it, and makes the units that the server makes."""

from __future__ import annotations

import importlib.util
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import FINAL
from own_server import own_server

from mpcompress.calibrate import calibrate
from mpcompress_client import (
    CodecMismatchError,
    CodecUnavailableError,
    CompressionClient,
    EdgeCodec,
    InvalidRequestError,
    ServerUnavailableError,
    UnknownCodecError,
)

CODEC = "klt-tiny"
NOWHERE = "127.0.0.1:1"


def _file(features, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    tensors = [
        h[:65, :32].astype(np.float32) + 0.01 * rng.standard_normal((65, 32)) for h in [*features, *features] * 2
    ]
    made = calibrate(
        [tensor.astype(np.float32) for tensor in tensors],
        codec_id=CODEC,
        description="four pictures",
        prefix_tokens=1,
        token_res=(8, 8),
    )
    return made.file


@pytest.fixture(scope="module")
def calibrated(final, tmp_path_factory) -> tuple[str, Path]:
    """Address of a server with a codec calibrated here and one without a file, and the codec's file."""
    folder = tmp_path_factory.mktemp("edge")
    path = folder / "tiny.safetensors"
    path.write_bytes(_file(final, 1))
    config = f'[[codecs]]\nid = "{CODEC}"\nfamily = "klt"\nweights = "tiny.safetensors"\n'
    config += '[[codecs]]\nid = "x265-dinov2-cls"\n'
    with own_server(folder, config) as target:
        yield target, path


@pytest.fixture
def small(final) -> np.ndarray:
    """Real features, float16 (65, 32)."""
    return np.ascontiguousarray(final[1][:65, :32])


def test_fetched_codec_gives_the_servers_units(calibrated, small, tmp_path):
    target, path = calibrated
    edge = EdgeCodec.load(CODEC, target=target, cache_dir=tmp_path)
    (kept,) = (tmp_path / "codecs").iterdir()
    assert kept.read_bytes() == path.read_bytes()
    assert kept.name.startswith(edge.info.fingerprint.hex())
    with CompressionClient(target) as client:
        for qp in (18, 30.5):
            unit = edge.compress(small, qp=qp)
            assert unit.to_bytes() == client.compress(small, codec=CODEC, qp=qp).to_bytes()
            there, here = client.decompress(unit), edge.decompress(unit)
            assert there.dtype == np.float16
            assert there.tobytes() == here.tobytes()


def test_the_file_travels_once(calibrated, tmp_path, monkeypatch):
    target, _ = calibrated
    EdgeCodec.load(CODEC, target=target, cache_dir=tmp_path)
    monkeypatch.setattr(CompressionClient, "codec_file", lambda *_, **__: pytest.fail("fetched again"))
    with CompressionClient(target) as client:
        EdgeCodec.load(CODEC, target=client, cache_dir=tmp_path)
        assert client.codecs()  # a client that was given stays open


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]]
)
def test_a_damaged_cache_is_fetched_again(calibrated, tmp_path, damage):
    target, path = calibrated
    EdgeCodec.load(CODEC, target=target, cache_dir=tmp_path)
    (kept,) = (tmp_path / "codecs").iterdir()
    good = path.read_bytes()
    assert damage(good) != good
    kept.write_bytes(damage(good))
    EdgeCodec.load(CODEC, target=target, cache_dir=tmp_path)
    (again,) = (tmp_path / "codecs").iterdir()
    assert again.read_bytes() == good


def test_the_environment_names_the_cache(calibrated, tmp_path, monkeypatch):
    monkeypatch.setenv("MPCOMPRESS_CACHE_DIR", str(tmp_path / "new"))
    EdgeCodec.load(CODEC, target=calibrated[0])
    assert len(list((tmp_path / "new" / "codecs").iterdir())) == 1


def test_a_file_that_is_not_what_the_server_lists_is_refused_and_not_kept(calibrated, final, tmp_path, monkeypatch):
    other = _file(final, 2)
    monkeypatch.setattr(CompressionClient, "codec_file", lambda *_, **__: other)
    with pytest.raises(CodecMismatchError, match="release"):
        EdgeCodec.load(CODEC, target=calibrated[0], cache_dir=tmp_path)
    assert list((tmp_path / "codecs").iterdir()) == []


def test_files_and_shipped_codecs_need_no_server(calibrated, tmp_path):
    assert EdgeCodec.load(FINAL, target=NOWHERE, cache_dir=tmp_path).info.id == FINAL
    assert EdgeCodec.load(calibrated[1], target=NOWHERE, cache_dir=tmp_path).info.id == CODEC
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_had(calibrated, tmp_path, monkeypatch):
    target, _ = calibrated
    with pytest.raises(UnknownCodecError, match="target"):
        EdgeCodec.load(CODEC)
    with pytest.raises(UnknownCodecError, match=CODEC):
        EdgeCodec.load("nobody", target=target, cache_dir=tmp_path)
    with pytest.raises(ServerUnavailableError):
        EdgeCodec.load(CODEC, target=NOWHERE, cache_dir=tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidRequestError, match="MPCOMPRESS_CACHE_DIR"):
        EdgeCodec.load(CODEC, target=target, cache_dir=tmp_path / "file")


def test_a_codec_without_a_file_says_so(calibrated, tmp_path, monkeypatch):
    from mpcompress import registry

    monkeypatch.setattr(registry, "preset_ids", list)  # as if this release did not ship it
    with pytest.raises(CodecUnavailableError, match="no file"):
        EdgeCodec.load("x265-dinov2-cls", target=calibrated[0], cache_dir=tmp_path)


def test_processes_may_share_a_cache(calibrated, tmp_path):
    code = (
        "import sys; from mpcompress_client import EdgeCodec; _, codec, target, cache = sys.argv; "
        "EdgeCodec.load(codec, target=target, cache_dir=cache)"
    )
    command = [sys.executable, "-c", code, CODEC, calibrated[0], str(tmp_path)]
    running = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert len(list((tmp_path / "codecs").iterdir())) == 1


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("torch", "compressai")), reason="needs the extra codecs"
)
def test_a_neural_codec_travels_too(tmp_path, final):
    from safetensors.torch import load
    from torch import save

    from mpcompress_client.cli import run

    golden = Path(__file__).parents[1] / "golden" / "vit_union_a" / "weights.safetensors.xz"
    save(load(lzma.decompress(golden.read_bytes())), tmp_path / "weights.pth")
    assert run(["import-checkpoint", str(tmp_path / "weights.pth"), "-o", str(tmp_path / "net.safetensors")]) == 0
    config = '[[codecs]]\nid = "net"\nfamily = "vit_union"\nweights = "net.safetensors"\n'
    with own_server(tmp_path, config) as target, CompressionClient(target) as client:
        edge = EdgeCodec.load("net", target=client, cache_dir=tmp_path / "cache")
        (info,) = client.codecs()
        prefix, channels = info.prefix_tokens, info.inputs[0].channels
        h = np.ascontiguousarray(final[:1, : prefix + 64, :channels])
        unit = edge.compress(h, token_res=(8, 8))
        assert unit.fingerprint == info.fingerprint
        # The same machine and library on both sides: float32 arithmetic agrees here.
        np.testing.assert_allclose(client.decompress(unit), edge.decompress(unit), atol=1e-2)
