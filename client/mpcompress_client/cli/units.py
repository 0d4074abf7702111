"""Units in files: reading one, and what the commands say about it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mpcompress_client.cli.sources import PIPE
from mpcompress_client.errors import CorruptUnitError
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.tensors import check_specs


def load_unit(path: Path) -> CodedUnit:
    """The unit in a .mpc file, or in the pipe; an error names the file."""
    return load_sized_unit(path)[0]


def load_sized_unit(path: Path) -> tuple[CodedUnit, int]:
    """As `load_unit`, and the file's size: one in another layout than that of today's files has not the unit's."""
    piped = str(path) == PIPE
    try:
        data = sys.stdin.buffer.read() if piped else path.read_bytes()
        return CodedUnit.from_bytes(data), len(data)
    except CorruptUnitError as error:
        name = "standard input" if piped else path
        raise CorruptUnitError(f"{name}: {error.message}", field=error.field) from error


def raw_bytes(unit: CodedUnit) -> int:
    """Bytes of the tensors before compression."""
    return sum(check_specs(unit.header.tensors, "unit.tensors"))


def facts_of(unit: CodedUnit, output: Path, size: int) -> dict[str, Any]:
    """What `compress` says about a unit that it wrote."""
    raw = raw_bytes(unit)
    return {
        "output": str(output),
        "codec": unit.codec_id,
        "bytes": size,
        "raw_bytes": raw,
        "elements": unit.elements,
        "ratio": raw / size,
        "bpfp": unit.bpfp,
        "pstate": unit.pstate,
        "warnings": list(unit.report.warnings) if unit.report else [],
    }
