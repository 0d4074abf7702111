"""What a person sees of an item that takes long."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from own_server import own_server

from mpcompress_client import Progress
from mpcompress_client.cli.progress import words_of


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"stage": "accepted"}, ""),
        ({"stage": "queued", "queue_position": 2}, "item 4: queued, 2 before it"),
        ({"stage": "queued", "queue_position": 0, "elapsed_s": 12.3}, "item 4: queued, 0 before it, 12 s"),
        ({"stage": "started"}, "item 4: being coded"),
        ({"stage": "progress", "elapsed_s": 3.0}, "item 4: being coded, 3 s"),
        ({"stage": "progress", "parts_done": 1, "parts_total": 4, "elapsed_s": 65.0}, "item 4: 1 of 4 parts, 65 s"),
        ({"stage": "resubmitted"}, "item 4: sent again"),
        ({"stage": "done"}, ""),
    ],
)
def test_words_for_events(event, words):
    assert words_of(Progress(index=3, **event)) == words


def seen_on_a_terminal(*words: str, code: int = 0) -> str:
    """What the command writes to standard error when that is a terminal."""
    ours, theirs = pty.openpty()
    heard: list[bytes] = []

    def listen() -> None:
        try:
            while data := os.read(ours, 4096):
                heard.append(data)
        except OSError:  # the other end is closed
            return

    listening = threading.Thread(target=listen)
    listening.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", "from mpcompress_client.cli import main; main()", *words],
            stderr=theirs,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "160"},
            timeout=120,
        )
    finally:
        os.close(theirs)
        listening.join(30)
        os.close(ours)
    assert done.returncode == code
    return b"".join(heard).decode(errors="replace")


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs the extra [vvc]")
def test_a_terminal_shows_the_strips(tmp_path: Path):
    np.save(tmp_path / "h.npy", np.random.default_rng(0).standard_normal((512, 256)).astype(np.float32))
    with own_server(tmp_path, 'role = "vtm-worker"\n[[codecs]]\nid = "x265-dinov2-cls"\n') as address:
        words = ["compress", str(tmp_path / "h.npy"), "-o", str(tmp_path / "h.mpc"), "--codec", "x265-dinov2-cls"]
        words += ["--target", address, "--param", "strips=3", "--param", "speed=veryslow"]
        assert "item 1: 3 of 3 parts" in seen_on_a_terminal(*words)


def test_what_fails_has_a_line_of_its_own_and_what_was_done_counts_no_more(tmp_path: Path):
    folder = tmp_path / "features"
    folder.mkdir()
    good = np.load(Path(__file__).parents[1] / "data" / "features_final.npy")
    for number, h in enumerate(good):
        np.save(folder / f"{number}.npy", h)
    np.save(folder / "nan.npy", np.full_like(good[0], np.nan))
    words = ["compress", str(folder), "-o", str(tmp_path / "units"), "--local", "--codec", "klt-imgfocus-vits14-final"]
    first = seen_on_a_terminal(*words, code=1)
    assert "5/5" in first
    # From the line's beginning, after what the bar had there was erased.
    assert re.search(r"\r\x1b\[2Kmpcompress: [^\n]*nan.npy: [^\n]*\n", first)
    again = seen_on_a_terminal(*words, "--resume", code=1)
    assert "1/1" in again
    assert "5/5" not in again
