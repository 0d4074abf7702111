"""Compiled code is kept where it can be, found again, never stale, and never a reason to fail.

Root may write anywhere, so "unwritable" is a directory that cannot exist: one below a regular file.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core.types.functions import BaseFunction

import mpcompress
from mpcompress._numba import KERNEL_MODULES, njit, types

PACKAGE = Path(mpcompress.__file__).parent

HELPER = "from mpcompress._numba import njit\n@njit()\ndef helper(x):\n    return x + {}\n"
KERNEL = """
from mpcompress._numba import njit, types
from helping import helper
FACTOR = {}
@njit(types.int64(types.int64))
def kernel(x):
    return helper(x) * FACTOR
print(kernel(1), len(kernel._cache_hits))
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a two-module program that prints ``(1 + 1) * 10`` and how many kernels came from the cache."""
    (tmp_path / "helping.py").write_text(HELPER.format(1))
    (tmp_path / "program.py").write_text(KERNEL.format(10))
    (tmp_path / "file").write_text("")
    return tmp_path


def run(tree: Path, *, cache: Path | None = None, home: str = "file/home", code: str = "import program") -> str:
    """Run code in the tree; returns stdout, after checking that nothing was complained about."""
    env = os.environ | {
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(tree / home),
        "XDG_CACHE_HOME": str(tree / home / ".cache"),
        "MPCOMPRESS_CACHE_DIR": str(cache or ""),
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], env=env, cwd=tree, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_found_again_whatever_the_modification_times(tree: Path) -> None:
    cache = tree / "image" / "kernels"
    assert run(tree, cache=cache) == "20 0"
    files = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
    assert len(files) == 1
    for source in ("helping.py", "program.py"):
        os.utime(tree / source, (0, 0))
    assert run(tree, cache=cache) == "20 1"
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == files
    assert not (tree / "__pycache__").exists()


def test_found_again_whatever_the_order_of_a_set(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = '@njit(types.int64(types.int64), fastmath={"reassoc", "nsz", "contract", "arcp"})'
    (tree / "program.py").write_text(KERNEL.format(10).replace("@njit(types.int64(types.int64))", options))
    for seed in range(6):
        monkeypatch.setenv("PYTHONHASHSEED", str(seed))
        assert run(tree, cache=tree / "cache") == f"20 {min(seed, 1)}"


def test_what_is_found_again_needs_no_compiler(tree: Path) -> None:
    code = "import sys, program; print([m for m in ('numba.np.linalg', 'scipy.linalg') if m in sys.modules])"
    assert "numba.np.linalg" in run(tree, cache=tree / "cache", code=code)
    assert run(tree, cache=tree / "cache", code=code) == "20 1\n[]"


def test_next_to_the_source_by_default(tree: Path) -> None:
    assert run(tree) == "20 0"
    assert len(list((tree / "__pycache__").glob("*.nbc"))) == 1
    assert run(tree) == "20 1"


def test_in_the_users_cache_when_the_install_is_read_only(tree: Path) -> None:
    (tree / "__pycache__").write_text("")
    (tree / "home").mkdir()
    assert run(tree, home="home") == "20 0"
    assert len(list((tree / "home").rglob("*.nbc"))) == 1
    assert run(tree, home="home") == "20 1"


def test_never_stale(tree: Path) -> None:
    cache = tree / "kernels"
    assert run(tree, cache=cache) == "20 0"
    (tree / "helping.py").write_text(HELPER.format(2))
    assert run(tree, cache=cache) == "30 0"
    (tree / "program.py").write_text(KERNEL.format(20))
    assert run(tree, cache=cache) == "60 0"
    assert run(tree, cache=cache) == "60 1"


def test_damaged_files_are_compiled_again(tree: Path) -> None:
    cache = tree / "kernels"
    assert run(tree, cache=cache) == "20 0"
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    for content in (b"", whole[: len(whole) // 2]):
        kept.write_bytes(content)
        assert run(tree, cache=cache) == "20 0"
    assert run(tree, cache=cache) == "20 1"


def test_unwritable_directory_is_no_error(tree: Path) -> None:
    assert run(tree, cache=tree / "file" / "kernels") == "20 0"
    assert not list(tree.rglob("*.nbc"))


def test_read_only_install_codes_without_a_cache(tree: Path) -> None:
    """The real package where neither its directories nor the user's can hold a cache."""
    copy = tree / "mpcompress"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "presets", "weights", "layers"))
    for directory in [copy, *(path for path in copy.rglob("*") if path.is_dir())]:
        (directory / "__pycache__").write_text("")
    code = (
        "import mpcompress, numpy as np; from mpcompress.entropy import *; print(mpcompress.__file__)\n"
        "t = CdfTables.from_pmfs([[1, 2, 3]], [-1]); s = np.arange(-5, 9); r = 0 * s\n"
        "print(decode(encode(s, r, t), r, t).tolist() == s.tolist())"
    )
    assert run(tree, code=code) == f"{copy / '__init__.py'}\nTrue"
    assert not list(tree.rglob("*.nbc"))


def test_importing_the_package_loads_no_compiler(tree: Path) -> None:
    code = "import sys, mpcompress; print([m for m in ('numba', 'torch', 'llvmlite') if m in sys.modules])"
    assert run(tree, code=code) == "[]"


def test_warm_up_knows_every_module_with_kernels() -> None:
    compiled = re.compile(r"^@njit\([^)]", re.MULTILINE)
    only_inlined = re.compile(r"^@njit\((forceinline=True)?\)", re.MULTILINE)
    found = set()
    for path in PACKAGE.rglob("*.py"):
        source = only_inlined.sub("", path.read_text(encoding="utf-8"))
        if path.name != "_numba.py" and compiled.search(source):
            found.add(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    assert found == set(KERNEL_MODULES)


def test_only_kernels_that_say_so_make_arrays() -> None:
    """References are not counted in others: what they made would never be freed."""

    def total(n: Any) -> Any:
        return np.ones(n).sum()

    assert njit(types.float64(types.int64), allocates=True)(total)(3) == 3
    with pytest.raises(numba.TypingError, match="returning of array"):
        njit(types.float64(types.int64))(total)


def test_the_compiler_is_left_as_it_was() -> None:
    before = BaseFunction.get_call_type, gc.isenabled()
    with pytest.raises(numba.TypingError):
        njit(types.int64(types.int64))(lambda x: x.nothing)
    kernel = njit(types.int64(types.int64, types.int64))(lambda x, y: x * y + x * y + abs(x))
    assert kernel(-2, 3) == -10
    assert (BaseFunction.get_call_type, gc.isenabled()) == before
