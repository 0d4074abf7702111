"""Pictures, golden streams, and VTM: a stand-in always, the real one where VTM_HOME points to it."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mpcompress.picture.engine import PictureEngine, engine

# Without the extra [vvc] there is no engine and no decoder; what needs neither is tried all the same.
_NEED_NOTHING = {"test_packing.py", "test_quantize.py", "test_process.py"}
if any(importlib.util.find_spec(name) is None for name in ("av", "imageio_ffmpeg")):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in _NEED_NOTHING]

TESTS = Path(__file__).resolve().parents[2]
GOLDEN = TESTS / "golden/vtm"
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))
GOLDEN_QPS = (22, 37)
REAL_VTM = os.environ.get("VTM_HOME", "")


def _stand_in() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vtm_stand_in", TESTS / "fakes/vtm_stand_in.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class GoldenCase:
    name: str
    about: dict[str, Any]
    features: np.ndarray
    picture: np.ndarray
    h_hat: np.ndarray

    @property
    def cfg(self) -> dict[str, Any]:
        keys = ("model_type", "bit_depth", "trun_low", "trun_high")
        return {key: self.about[key] for key in keys} | {"trun_flag": True}

    @property
    def span(self) -> float:
        return float(np.max(self.about["trun_high"]) - np.min(self.about["trun_low"]))

    def stream(self, qp: int) -> bytes:
        return (GOLDEN / f"{self.name}.qp{qp}.vvc").read_bytes()

    def reconstruction(self, qp: int) -> np.ndarray:
        return np.load(GOLDEN / f"{self.name}.qp{qp}.rec.npz")["picture"].astype(np.uint16)


def golden_case(name: str) -> GoldenCase:
    arrays = np.load(GOLDEN / f"{name}.npz")
    about = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    return GoldenCase(name, about, arrays["feat"], arrays["picture"].astype(np.uint16), arrays["h_hat"])


@pytest.fixture(params=GOLDEN_NAMES)
def golden(request: pytest.FixtureRequest) -> GoldenCase:
    return golden_case(request.param)


@pytest.fixture
def seg() -> GoldenCase:
    """The golden case of 52 x 48 samples, 10 bits."""
    return golden_case("vtm_dinov2_seg")


@pytest.fixture
def without_vtm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VTM_HOME", raising=False)


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., Path]:
    """Makes a stand-in for VTM that misbehaves as told: stand_in(encoder="slow")."""
    install: Callable[..., Path] = _stand_in().install

    def make(**behaviour: str) -> Path:
        return install(tmp_path / "vtm", **behaviour)

    return make


@pytest.fixture(params=["stand-in", pytest.param("real", marks=pytest.mark.skipif(not REAL_VTM, reason="no VTM_HOME"))])
def vtm_home(request: pytest.FixtureRequest, stand_in: Callable[..., Path]) -> Path:
    """Folder of a well-behaved VTM: the stand-in, and the real one where there is one."""
    return Path(REAL_VTM) if request.param == "real" else stand_in()


@pytest.fixture(
    params=[
        "x265",
        "vvenc",
        "vtm stand-in",
        pytest.param("vtm real", marks=pytest.mark.skipif(not REAL_VTM, reason="no VTM_HOME")),
    ]
)
def any_engine(request: pytest.FixtureRequest, stand_in: Callable[..., Path]) -> PictureEngine:
    """Every engine."""
    name, _, kind = request.param.partition(" ")
    return engine(name, **({"vtm_path": REAL_VTM if kind == "real" else stand_in()} if kind else {}))


@pytest.fixture
def real_vtm() -> Path:
    if not REAL_VTM:
        pytest.skip("no VTM_HOME")
    return Path(REAL_VTM)


def _smooth(height: int, width: int, bit_depth: int = 10, seed: int = 0) -> np.ndarray:
    """A picture that compresses like features: random walks along the rows."""
    walk = np.cumsum(np.random.default_rng(seed).normal(size=(height, width)), axis=1)
    walk = (walk - walk.min()) / max(float(np.ptp(walk)), 1e-9)
    return np.rint(walk * ((1 << bit_depth) - 1)).astype(np.uint16)


def _await_file(path: Path, seconds: float = 60.0) -> str:
    """The content of a file that another process is about to write."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.01)
    return path.read_text(encoding="ascii")


def _gone(pid: int, seconds: float = 60.0) -> bool:
    """Whether a process ends within `seconds`; one that only waits to be reaped has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


@pytest.fixture(name="smooth")
def smooth_fixture() -> Callable[..., np.ndarray]:
    return _smooth


@pytest.fixture(name="await_file")
def await_file_fixture() -> Callable[..., str]:
    return _await_file


@pytest.fixture(name="gone")
def gone_fixture() -> Callable[..., bool]:
    return _gone
