"""The demo as a newcomer runs it: a process of its own, a real server, the real model, no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
pytest.importorskip("structlog")
pytest.importorskip("numba")

from PIL import Image

from demo import split_model

ROOT = Path(split_model.__file__).resolve().parents[1]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment, in which torch and compressai cannot be imported, by the demo or by its server."""
    try:
        split_model.model_path()
    except split_model.ModelMissingError as error:
        pytest.skip(str(error))
    for name in ("torch", "compressai"):
        (tmp_path / "without").mkdir(exist_ok=True)
        (tmp_path / "without" / f"{name}.py").write_text(f"raise ImportError('the demo must not need {name}')\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path / "without"), "COLUMNS": "80"}


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "demo.run_demo", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def test_features_come_back_small_and_good(tmp_path: Path, environment: dict[str, str]) -> None:
    pictures = [str(ROOT / "demo" / "pictures" / name) for name in ("lion.png", "school.png")]
    outputs = ["--json", str(tmp_path / "rows.json"), "--report", str(tmp_path / "report.png")]
    done = run([*pictures, "--qp", "16", "24", *outputs, "--cache", str(tmp_path / "cache")], environment)
    assert done.returncode == 0, done.stderr
    assert "klt-imgfocus-vits14-final" in done.stdout
    content = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["codec"].rpartition("-")[2], row["qp"]) for row in content["rows"]] == [
        *(("block6", 16.0), ("block6", 24.0)),
        *(("final", 16.0), ("final", 24.0)),
    ]
    for row in content["rows"]:
        median = row["median"]
        assert median["raw_bytes"] == 2 * 257 * 384
        assert row["ratio"] > (6 if row["qp"] == 16 else 20)
        assert median["bpfp"] == pytest.approx(8 * median["mpc_bytes"] / (257 * 384))
        assert 0 < median["nmse"] < (0.04 if row["qp"] == 16 else 0.16)
        assert median["cls_cosine"] > 0.95
        assert median["saliency_iou"] > 0.85
    with Image.open(tmp_path / "report.png") as figure:
        assert figure.width > 1000


def test_what_goes_wrong_is_said_in_one_line(environment: dict[str, str]) -> None:
    done = run(["no-such-picture.png"], environment)
    assert done.returncode == 1
    assert done.stderr.startswith("demo: ")
    assert "no-such-picture.png" in done.stderr
    assert "Traceback" not in done.stderr
