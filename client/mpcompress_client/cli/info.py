"""`mpcompress codecs`."""

from __future__ import annotations

import dataclasses

import click

from mpcompress_client.cli.options import json_option
from mpcompress_client.cli.results import to_json
from mpcompress_client.cli.server import Server, server_options
from mpcompress_client.infos import CodecInfo
from mpcompress_client.local import shipped_infos
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
        found = shipped_infos()
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


def _qp(info: CodecInfo) -> str:
    return "" if info.qp is None else f"{info.qp.minimum:g}..{info.qp.maximum:g}"


def _tokens(info: CodecInfo) -> str:
    if info.token_res is None:
        return "any"
    return f"{info.prefix_tokens} + {info.token_res[0]}x{info.token_res[1]}"


def _channels(info: CodecInfo) -> str:
    sizes = sorted({port.channels for port in info.inputs})
    return ", ".join(str(size) if size else "any" for size in sizes)
