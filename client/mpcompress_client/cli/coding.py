"""`mpcompress compress` and `mpcompress decompress`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np

from mpcompress_client.cli.files import check_output, read_arrays, write_arrays, write_whole
from mpcompress_client.cli.options import INPUT_FILE, grid, json_option, output_option, parameter, qp, server_options
from mpcompress_client.client import CompressionClient
from mpcompress_client.errors import CorruptUnitError, UnknownCodecError
from mpcompress_client.local import EdgeCodec, shipped_codecs
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.tensors import DTYPE_NAMES, check_specs

_COMPRESS_HELP = """\
Compress FEATURES (.npy, .npz or .safetensors) into a .mpc file.

A file with one array holds the features; one with several holds the codec's inputs by name.

\b
Examples:
  mpcompress compress features.npy -o features.mpc --codec klt-imgfocus-vits14-final --qp 24
  mpcompress compress features.npy -o features.mpc --codec my-codec.safetensors --local
"""


@click.command(short_help="Compress a feature file into a .mpc file.", help=_COMPRESS_HELP)
@click.argument("features", type=INPUT_FILE)
@output_option
@click.option("--codec", required=True, metavar="ID", help="Which codec; with --local also the path of a codec file.")
@click.option(
    "--qp", "qp_value", type=qp, metavar="QP", help="Quantisation parameter in steps of 0.125; smaller is finer."
)
@click.option(
    "--token-res", type=grid, metavar="HxW", help="Rows x columns of the patch tokens; default: the codec's own."
)
@click.option("--prefix-tokens", type=click.IntRange(0, 1024), help="Tokens in front of the patch tokens.")
@click.option(
    "--param",
    "params",
    type=parameter,
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter that `codecs --json` lists.",
)
@server_options
@json_option
def compress(
    features: Path,
    output: Path,
    codec: str,
    qp_value: float | None,
    token_res: tuple[int, int] | None,
    prefix_tokens: int | None,
    params: tuple[tuple[str, Any], ...],
    target: str,
    timeout_s: float,
    local: bool,
    as_json: bool,
) -> None:
    """Compress FEATURES (.npy, .npz or .safetensors) into a .mpc file."""
    _refuse_same(features, output)
    tensors = read_arrays(features)
    arguments = {"qp": qp_value, "token_res": token_res, "prefix_tokens": prefix_tokens, **dict(params)}
    if local:
        unit = EdgeCodec.load(codec).compress(tensors, **arguments)
    else:
        with CompressionClient(target, timeout_s=timeout_s) as client:
            unit = client.compress(tensors, codec=codec, **arguments)
    data = unit.to_bytes()
    write_whole(output, data)
    raw = raw_bytes(unit)
    warnings = list(unit.report.warnings) if unit.report else []
    if as_json:
        result = {"output": str(output), "codec": unit.codec_id, "bytes": len(data), "raw_bytes": raw}
        result |= {"ratio": raw / len(data), "bpfp": unit.bpfp, "pstate": unit.pstate, "warnings": warnings}
        click.echo(json.dumps(result, default=_plain))
        return
    click.echo(f"{output}: {raw} -> {len(data)} bytes, {raw / len(data):.1f}x smaller, {unit.bpfp:.3f} bpfp")
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


_DECOMPRESS_HELP = """\
Decompress UNIT, a .mpc file, into a .npy, .npz or .safetensors file.

bfloat16 stays bfloat16 in .safetensors and becomes float32 in the others.

\b
Example:
  mpcompress decompress features.mpc -o again.npy
"""


@click.command(short_help="Decompress a .mpc file into a feature file.", help=_DECOMPRESS_HELP)
@click.argument("unit_file", metavar="UNIT", type=INPUT_FILE)
@output_option
@click.option("--codec", metavar="FILE", help="With --local: the codec file, unless the codec is a shipped one.")
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), help="dtype of the result; default: what was compressed.")
@click.option("--ctx", type=INPUT_FILE, help="Feature file with the context, for context codecs.")
@server_options
@json_option
def decompress(
    unit_file: Path,
    output: Path,
    codec: str | None,
    dtype: str | None,
    ctx: Path | None,
    target: str,
    timeout_s: float,
    local: bool,
    as_json: bool,
) -> None:
    """Decompress UNIT, a .mpc file, into a .npy, .npz or .safetensors file."""
    check_output(output)
    if codec is not None and not local:
        raise click.UsageError("--codec needs --local: a server finds the codec by itself")
    _refuse_same(unit_file, output)
    unit = load_unit(unit_file)
    context = None if ctx is None else read_arrays(ctx)
    if local:
        found = _codec_of(unit, codec).decompress(unit, dtype=dtype, ctx=context)
    else:
        with CompressionClient(target, timeout_s=timeout_s) as client:
            found = client.decompress(unit, dtype=dtype, ctx=context)
    write_arrays(output, found)
    named = found if isinstance(found, dict) else {"h_hat": found}
    if as_json:
        tensors = [{"name": name, "dtype": x.dtype.name, "shape": list(x.shape)} for name, x in named.items()]
        click.echo(json.dumps({"output": str(output), "codec": unit.codec_id, "tensors": tensors}))
        return
    what = ", ".join(f"{name} {x.dtype.name} {tuple(x.shape)}" for name, x in named.items())
    click.echo(f"{output}: {what}")


def load_unit(path: Path) -> CodedUnit:
    """The unit in a .mpc file; an error names the file."""
    try:
        return CodedUnit.load(path)
    except CorruptUnitError as error:
        raise CorruptUnitError(f"{path}: {error.message}", field=error.field) from error


def raw_bytes(unit: CodedUnit) -> int:
    """Bytes of the tensors before compression."""
    return sum(check_specs(unit.header.tensors, "unit.tensors"))


def _refuse_same(source: Path, output: Path) -> None:
    if output.exists() and output.samefile(source):
        raise click.UsageError(f"the output {str(output)!r} is the input")


def _codec_of(unit: CodedUnit, codec: str | None) -> EdgeCodec:
    if codec is not None:
        return EdgeCodec.load(codec)
    if unit.codec_id not in shipped_codecs():
        raise UnknownCodecError(f"{unit.codec_id} is no shipped codec; name its file with --codec")
    return EdgeCodec.load(unit.codec_id)


def _plain(value: Any) -> Any:
    """What json cannot write: bytes of a plug-in's state."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float | np.floating) and not math.isfinite(value):
        return None
    raise TypeError(f"{type(value).__name__} is not JSON")
