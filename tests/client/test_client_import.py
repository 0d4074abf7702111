"""What importing the client costs: an edge device has neither torch nor the codec library."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
