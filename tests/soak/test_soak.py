"""A minute of the soak, in every run of the tests; `make soak` takes ten."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.timeout(600)
def test_a_minute_of_soak():
    command = [sys.executable, "-m", "tests.soak.soak", "--seconds", "60", "--warm-up", "15"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580)
    print(result.stdout, result.stderr)
    assert result.returncode == 0, result.stdout + result.stderr
