"""`mpcompress inspect`: what .mpc files hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mpcompress_client.cli.options import json_option
from mpcompress_client.cli.results import to_json
from mpcompress_client.cli.sources import feature_files
from mpcompress_client.cli.units import load_sized_unit, raw_bytes
from mpcompress_client.errors import MPCompressError
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.pstate import get_pstate
from mpcompress_proto.tensors import dtype_name
from mpcompress_proto.v1 import compression_pb2 as pb

_ARITHMETIC = {pb.ARITHMETIC_EXACT: "exact", pb.ARITHMETIC_FLOAT32: "float32"}

_INSPECT_HELP = """\
Show what UNITS hold: .mpc files, folders of them, quoted patterns, or `-` for the pipe.

Checks them, and needs neither server nor codec. Of several those that are damaged are named, the others shown in a line
each, and the exit code is 1.

\b
Examples:
  mpcompress inspect features.mpc
  mpcompress inspect units/
  mpcompress inspect --json - < features.mpc
"""


@click.command(short_help="Show what .mpc files hold; needs no server.", help=_INSPECT_HELP)
@click.argument("units", nargs=-1, required=True)
@json_option
def inspect(units: tuple[str, ...], as_json: bool) -> int:
    """Show what UNITS, .mpc files, hold."""
    files = feature_files(units, (".mpc",))
    if len(units) == 1 and files == [Path(units[0])]:
        facts = _facts(files[0])
        click.echo(to_json(facts)) if as_json else _show(facts)
        return 0
    items: list[dict[str, Any]] = []
    errors: dict[str, str] = {}
    for file in files:
        try:
            items.append(_facts(file))
        except (MPCompressError, OSError) as error:
            errors[str(file)] = " ".join(str(error).split())
    if as_json:
        click.echo(to_json({"items": items, "errors": errors}))
    else:
        for facts in items:
            click.echo(f"{facts['file']}: {facts['codec']}, {_tensors(facts)}, {_sizes(facts)}")
        for line in errors.values():
            click.echo(f"mpcompress: {line}", err=True)
    return 1 if errors else 0


def _facts(file: Path) -> dict[str, Any]:
    unit, file_bytes = load_sized_unit(file)
    header = unit.header
    kind, pstate = get_pstate(header)
    raw = raw_bytes(unit)
    return {
        "file": str(file),
        "format_version": header.format_version,
        "codec": unit.codec_id,
        "bitstream_version": header.bitstream_version,
        "fingerprint": unit.fingerprint.hex(),
        "arithmetic": _ARITHMETIC.get(header.arithmetic, "unknown"),
        "ctx_hash": header.ctx_hash.hex(),
        "tensors": _named_tensors(unit),
        "kind": kind,
        "pstate": pstate,
        "streams_bytes": [len(string) for string in unit.strings],
        "payload_bytes": len(unit.payload),
        "file_bytes": file_bytes,
        "raw_bytes": raw,
        "ratio": raw / file_bytes,
        "bpfp": 8 * file_bytes / unit.elements,
    }


def _named_tensors(unit: CodedUnit) -> list[dict[str, Any]]:
    specs = unit.header.tensors
    return [{"name": spec.name, "dtype": dtype_name(spec.dtype), "shape": list(spec.shape)} for spec in specs]


def _show(facts: dict[str, Any]) -> None:
    state = ", ".join(f"{name} {value}" for name, value in facts["pstate"].items())
    streams = len(facts["streams_bytes"])
    version = f"bitstream version {facts['bitstream_version']}"
    for name, text in (
        ("codec", f"{facts['codec']}, {version}, {facts['arithmetic']} arithmetic"),
        ("fingerprint", facts["fingerprint"]),
        ("context", facts["ctx_hash"] or "none"),
        ("tensors", _tensors(facts)),
        (f"state ({facts['kind']})", state or "none"),
        ("payload", f"{facts['payload_bytes']} bytes in {streams} stream{'s' * (streams != 1)}"),
        ("file", _sizes(facts)),
    ):
        click.echo(f"{name:<14}{text}")


def _tensors(facts: dict[str, Any]) -> str:
    return ", ".join(f"{t['name']} {t['dtype']} {tuple(t['shape'])}" for t in facts["tensors"])


def _sizes(facts: dict[str, Any]) -> str:
    sizes = f"{facts['file_bytes']} of {facts['raw_bytes']} bytes"
    return f"{sizes}, {facts['ratio']:.1f}x smaller, {facts['bpfp']:.3f} bpfp"
