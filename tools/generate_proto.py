"""Regenerates, lints and guards the wire contract (`make proto`, `make lint`).

    python tools/generate_proto.py            write the generated modules
    python tools/generate_proto.py --check    fail when they differ, buf finds fault or the contract breaks the baseline
    python tools/generate_proto.py --accept   make the present contract the baseline (additions only)

buf cannot fetch google/rpc/status.proto from its own registry on a closed network, so protoc, with the copy that
googleapis-common-protos ships, builds the image that buf reads.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import google.rpc
import grpc_tools

ROOT = Path(__file__).resolve().parent.parent
PROTO_ROOT = ROOT / "proto"
SOURCE = PROTO_ROOT / "mpcompress_proto" / "v1" / "compression.proto"
BASELINE = SOURCE.with_name("baseline.binpb")


def protoc(*outputs: str) -> None:
    """Runs protoc with its well-known types and googleapis on the include path."""
    includes = [
        PROTO_ROOT,
        Path(grpc_tools.__file__).parent / "_proto",
        Path(next(iter(google.rpc.__path__))).parents[1],
    ]
    command = [sys.executable, "-m", "grpc_tools.protoc", *(f"-I{path}" for path in includes), *outputs, str(SOURCE)]
    # The generators of mypy-protobuf lie beside this interpreter, which need not be on PATH.
    subprocess.run(command, check=True, env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"})


def generate(into: Path) -> list[Path]:
    """Writes the generated modules below `into`; returns them."""
    protoc(
        f"--python_out={into}", f"--grpc_python_out={into}", f"--mypy_out=quiet:{into}", f"--mypy_grpc_out=quiet:{into}"
    )
    return sorted(into.rglob("*_pb2*.py*"))


def buf(*arguments: str) -> None:
    """Runs buf with the project's configuration."""
    subprocess.run([Path(sys.executable).with_name("buf"), *arguments, "--config", ROOT / "buf.yaml"], check=True)


def check() -> int:
    """Compares, lints and looks for breaking changes; returns an exit status."""
    with tempfile.TemporaryDirectory() as folder:
        stale = [
            path.name
            for path in generate(Path(folder))
            if not (committed := PROTO_ROOT / path.relative_to(folder)).exists()
            or not filecmp.cmp(path, committed, shallow=False)
        ]
        if stale:
            print(f"stale generated code, run `make proto`: {', '.join(stale)}", file=sys.stderr)
            return 1
        image = Path(folder) / "image.binpb"
        protoc(f"--descriptor_set_out={image}", "--include_imports", "--include_source_info")
        buf("lint", str(image))
        buf("breaking", str(image), "--against", str(BASELINE))
    return 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true")
    mode.add_argument("--accept", action="store_true")
    options = parser.parse_args()
    if options.check:
        return check()
    if options.accept:
        protoc(f"--descriptor_set_out={BASELINE}", "--include_imports")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for path in generate(Path(folder)):
            shutil.copyfile(path, PROTO_ROOT / path.relative_to(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
