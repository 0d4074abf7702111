"""What importing the client costs: an edge device has neither torch nor the codec library."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FORBIDDEN = ("torch", "mpcompress", "numba", "compressai", "safetensors", "mpcompress_server", "click", "rich", "scipy")


def _loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_client_loads_only_the_base_install():
    loaded = _loaded_by("import mpcompress_client")
    assert "grpc" in loaded
    assert not loaded & set(FORBIDDEN)


@pytest.mark.parametrize("module", ["mpcompress_client.local", "mpcompress_client.cli"])
def test_the_library_is_loaded_by_need_only(module):
    assert not _loaded_by(f"import {module}") & {"torch", "mpcompress", "numba", "compressai", "rich"}


def test_the_library_knows_nothing_of_the_wire():
    loaded = _loaded_by("import mpcompress, mpcompress.registry, mpcompress.codec")
    assert not loaded & {"torch", "grpc", "mpcompress_proto", "mpcompress_client"}


@pytest.mark.slow
def test_the_base_install_alone(tmp_path):
    """In an environment of its own: what `pip install .` brings is enough, brings no torch, and is loaded quickly."""
    venv.create(tmp_path / "base", with_pip=True)
    python = tmp_path / "base" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "-c", ROOT / "constraints.txt", ROOT], check=True, timeout=280)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    spent = """
import resource, sys
def cpu(): return sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
before = cpu()
import mpcompress_client
print(cpu() - before)
assert not {"torch", "numba", "compressai", "safetensors"} & set(sys.modules)
"""
    # CPU time, the least of some runs: other work on the machine makes each of them longer.
    runs = [subprocess.check_output([python, "-c", spent], cwd=tmp_path, env=alone, timeout=60) for _ in range(5)]
    assert min(map(float, runs)) <= 0.5
    doctor = subprocess.run(
        [python.with_name("mpcompress"), "doctor", "--json"], cwd=tmp_path, env=alone, capture_output=True, timeout=60
    )
    assert doctor.returncode == 0, doctor.stdout
