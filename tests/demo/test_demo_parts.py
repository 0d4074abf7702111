"""The demo's own parts: the server it starts, the figures it reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")

from PIL import Image
from rich.console import Console

from demo import server_process
from demo.report import Measurement, Sample, draw, summarise, tables, write_json
from demo.server_process import ServerDiedError, running_server

SERVES = "import sys, time; open(sys.argv[-1], 'w').write('127.0.0.1:4321'); time.sleep(600)"
FAILS = "import sys; print('no such codec: abc'); sys.exit(3)"
LEAVES = "import sys; open(sys.argv[-1], 'w').write('4321'); print('out of memory')"


def play(monkeypatch: pytest.MonkeyPatch, program: str) -> list:
    """Let a short program stand in for the server; return the list its process will be in."""
    started = []

    class Recorded(server_process.subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(server_process, "_command", lambda: [sys.executable, "-c", program])
    monkeypatch.setattr(server_process.subprocess, "Popen", Recorded)
    return started


def test_the_server_is_stopped_however_the_block_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    started = play(monkeypatch, SERVES)
    with running_server() as target:
        assert target == "127.0.0.1:4321"
        assert started[0].poll() is None
    assert started[0].returncode is not None
    with pytest.raises(KeyboardInterrupt), running_server():
        raise KeyboardInterrupt
    assert started[1].returncode is not None


def test_a_server_that_does_not_start_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, FAILS)
    with pytest.raises(ServerDiedError, match=r"status 3:\nno such codec: abc"), running_server():
        pytest.fail("it never served")


def test_a_server_that_dies_later_explains_the_clients_error(monkeypatch: pytest.MonkeyPatch) -> None:
    started = play(monkeypatch, LEAVES)

    def talk() -> None:
        with running_server():
            started[0].wait()
            raise OSError("connection refused")

    with pytest.raises(ServerDiedError, match="out of memory"):
        talk()


def test_an_error_with_a_healthy_server_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, SERVES)
    with pytest.raises(OSError, match="no such picture"), running_server():
        raise OSError("no such picture")


def measurement(mpc_bytes: int) -> Measurement:
    figures = {"bpfp": 0.5, "nmse": 0.01, "cls_cosine": 0.99, "saliency_iou": 0.9}
    times = {"encode_ms": 3.0, "decode_ms": 2.0, "rpc_ms": 4.0}
    return Measurement(raw_bytes=197376, mpc_bytes=mpc_bytes, **figures, **times)


def test_rows_are_medians_and_print_whole(tmp_path: Path) -> None:
    row = summarise("klt-x", 24, [measurement(1000), measurement(9000), measurement(2000)])
    assert row.median.mpc_bytes == 2000
    assert row.ratio == 197376 / 2000
    console = Console(width=80, record=True, file=(tmp_path / "out").open("w"))
    console.print(tables([row, row], pictures=3))
    text = console.export_text()
    assert "…" not in text
    assert all(figure in text for figure in ("klt-x", "24", "197376", "2000", "99x", "0.500", "0.0100", "0.900"))
    write_json([row], tmp_path / "rows.json", pictures=3)
    content = json.loads((tmp_path / "rows.json").read_text())
    assert content["pictures"] == 3
    assert content["rows"][0]["median"]["mpc_bytes"] == 2000


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    plane = np.linspace(0, 1, 224 * 224, dtype=np.float32).reshape(224, 224)
    after = {"block6, qp 24": (2000, plane), "final, qp 24": (1000, plane)}
    sample = Sample(name="lion", picture=Image.new("RGB", (224, 224)), raw_bytes=9, before=plane, after=after)
    draw([sample, sample], tmp_path / "report.png")
    with Image.open(tmp_path / "report.png") as figure:
        assert figure.width > 4 * 200
        assert figure.height > 2 * 200
