"""`mpcompress codecs` and `mpcompress inspect`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from mpcompress_client.cli.options import UNIT_FILE, json_option
from mpcompress_client.cli.results import to_json
from mpcompress_client.cli.server import Server, server_options
from mpcompress_client.cli.sources import PIPE
from mpcompress_client.cli.units import load_unit, raw_bytes
from mpcompress_client.infos import CodecInfo
from mpcompress_client.local import EdgeCodec, shipped_codecs
from mpcompress_proto.pstate import get_pstate
from mpcompress_proto.tensors import dtype_of
from mpcompress_proto.v1 import compression_pb2 as pb

_ARITHMETIC = {pb.ARITHMETIC_EXACT: "exact", pb.ARITHMETIC_FLOAT32: "float32"}


_CODECS_HELP = """\
List the codecs of the server, or with --local those that come with this installation.

\b
Examples:
  mpcompress codecs
  mpcompress codecs --target gpu-box:50051 --json
  mpcompress codecs --target codecs.example.org:443 --tls-ca system --token-file ~/.mpcompress-token
  mpcompress codecs --local
"""


@click.command(short_help="List the codecs of a server, or of this device.", help=_CODECS_HELP)
@server_options
@json_option
def codecs(server: Server, local: bool, as_json: bool) -> None:
    """List the codecs of the server, or with --local those that come with this installation."""
    if local:
        found = [EdgeCodec.load(codec_id).info for codec_id in shipped_codecs()]
    else:
        with server.connect() as client:
            found = client.codecs()
    if as_json:
        click.echo(to_json([dataclasses.asdict(info) for info in found]))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("codec", no_wrap=True)
    for title in ("qp", "tokens", "channels", "what it was made for"):
        table.add_column(title)
    for info in found:
        made_for = info.description if info.available else f"not available: {info.unavailable_reason}"
        table.add_row(info.id, _qp(info), _tokens(info), _channels(info), made_for)
    Console().print(table)


_INSPECT_HELP = """\
Show what UNIT, a .mpc file or `-` for the pipe, holds. Checks it, and needs neither server nor codec.

\b
Examples:
  mpcompress inspect features.mpc
  mpcompress inspect --json - < features.mpc
"""


@click.command(short_help="Show what a .mpc file holds; needs no server.", help=_INSPECT_HELP)
@click.argument("unit_file", metavar="UNIT", type=UNIT_FILE)
@json_option
def inspect(unit_file: Path, as_json: bool) -> None:
    """Show what UNIT, a .mpc file, holds. Checks it, and needs neither server nor codec."""
    unit = load_unit(unit_file)
    file_bytes = len(unit.to_bytes()) if str(unit_file) == PIPE else unit_file.stat().st_size
    header = unit.header
    kind, pstate = get_pstate(header)
    raw = raw_bytes(unit)
    facts: dict[str, Any] = {
        "file": str(unit_file),
        "format_version": header.format_version,
        "codec": unit.codec_id,
        "bitstream_version": header.bitstream_version,
        "fingerprint": unit.fingerprint.hex(),
        "arithmetic": _ARITHMETIC.get(header.arithmetic, "unknown"),
        "ctx_hash": header.ctx_hash.hex(),
        "tensors": [
            {"name": spec.name, "dtype": dtype_of(spec.dtype).name, "shape": list(spec.shape)}
            for spec in header.tensors
        ],
        "kind": kind,
        "pstate": pstate,
        "streams_bytes": [len(string) for string in unit.strings],
        "payload_bytes": len(unit.payload),
        "file_bytes": file_bytes,
        "raw_bytes": raw,
        "ratio": raw / file_bytes,
        "bpfp": 8 * file_bytes / unit.elements,
    }
    if as_json:
        click.echo(to_json(facts))
        return
    tensors = ", ".join(f"{t['name']} {t['dtype']} {tuple(t['shape'])}" for t in facts["tensors"])
    state = ", ".join(f"{name} {value}" for name, value in pstate.items())
    for name, text in (
        ("codec", f"{unit.codec_id}, bitstream version {header.bitstream_version}, {facts['arithmetic']} arithmetic"),
        ("fingerprint", facts["fingerprint"]),
        ("context", facts["ctx_hash"] or "none"),
        ("tensors", tensors),
        (f"state ({kind})", state or "none"),
        ("payload", f"{len(unit.payload)} bytes in {len(unit.strings)} stream{'s' * (len(unit.strings) != 1)}"),
        ("file", f"{file_bytes} of {raw} bytes, {facts['ratio']:.1f}x smaller, {facts['bpfp']:.3f} bpfp"),
    ):
        click.echo(f"{name:<14}{text}")


def _qp(info: CodecInfo) -> str:
    return "" if info.qp is None else f"{info.qp.minimum:g}..{info.qp.maximum:g}"


def _tokens(info: CodecInfo) -> str:
    if info.token_res is None:
        return "any"
    return f"{info.prefix_tokens} + {info.token_res[0]}x{info.token_res[1]}"


def _channels(info: CodecInfo) -> str:
    sizes = sorted({port.channels for port in info.inputs})
    return ", ".join(str(size) if size else "any" for size in sizes)
