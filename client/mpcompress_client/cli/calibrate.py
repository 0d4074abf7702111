"""`mpcompress calibrate`: makes a codec for the user's own features. Needs the extra `edge`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

import click

from mpcompress_client.cli import torch_file
from mpcompress_client.cli.files import READABLE, write_whole
from mpcompress_client.cli.options import json_option, output_option
from mpcompress_client.cli.sources import PIPE, feature_files, read_input
from mpcompress_client.library import library
from mpcompress_proto.tensors import Array

_CALIBRATE_HELP = """\
Fit a codec of family klt to FEATURES: .npy, .npz, .safetensors and .pt files, folders of them, or quoted patterns.

Every array is (L, C) or (B, L, C), L = prefix tokens + H * W. At least 16 tensors; 256 or more are better. Writes
the codec file, and its model card next to it.

\b
Example:
  mpcompress calibrate features/ -o my-model.safetensors --prefix-tokens 1 --grid 16 16
  mpcompress compress one.npy -o one.mpc --codec my-model.safetensors --local
"""


@click.command(short_help="Make a codec for your own features.", help=_CALIBRATE_HELP)
@click.argument("features", nargs=-1, required=True)
@output_option
@click.option("--prefix-tokens", type=click.IntRange(0, 1024), default=0, help="Tokens in front (CLS, registers).")
@click.option("--grid", nargs=2, type=click.IntRange(1, 65535), metavar="H W", help="Grid; default: sequences.")
@click.option("--id", "codec_id", metavar="ID", help="The codec's id; default: klt- and the name of the output.")
@click.option("--description", metavar="TEXT", help="Which model, which layer, which data.")
@click.option(
    "--filter/--no-filter",
    "with_filter",
    default=False,
    help="Learn a filter behind the decoder, too: fewer bits at low rates, some 20 minutes more.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the filter learns; cuda: some eight times as fast, with CuPy.",
)
@json_option
def calibrate(
    features: tuple[str, ...],
    output: Path,
    prefix_tokens: int,
    grid: tuple[int, int] | None,
    codec_id: str | None,
    description: str | None,
    with_filter: bool,
    device: str,
    as_json: bool,
) -> None:
    """Fit a codec of family klt to FEATURES."""
    with library():
        from mpcompress.calibrate import FILTER_STEPS
        from mpcompress.calibrate import calibrate as fit
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:>12}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = {}

        def progress(done: int, total: int, stage: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        with library():
            result = fit(
                _sources(feature_files(features, READABLE)),
                codec_id=codec_id or _default_id(output),
                description=description or f"calibrated on {', '.join(Path(given).name for given in features[:4])}",
                prefix_tokens=prefix_tokens,
                token_res=grid,
                filter_steps=FILTER_STEPS if with_filter else 0,
                device=device,
                progress=progress,
            )
    write_whole(output, result.file)
    card = output.with_suffix(".md")
    write_whole(card, result.model_card().encode())
    report = result.report
    if as_json:
        facts = {"output": str(output), "model_card": str(card), "fingerprint": result.fingerprint.hex()}
        click.echo(json.dumps({**facts, **dataclasses.asdict(report)}))
        return
    for warning in report.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{output}: codec {report.codec_id} from {report.tensors} tensors, {len(result.file)} bytes")
    click.echo(f"  {'qp':>6} {'bpfp':>8} {'NMSE':>8}   on {report.held_out} held-out tensors")
    for point in report.points:
        click.echo(f"  {point.qp_eighths / 8:6g} {point.bpfp:8.3f} {point.nmse:8.4f}")


def _sources(features: Iterable[Path]) -> list[Path | Array]:
    """What the library reads itself, and the arrays of what it does not: .pt files and the pipe."""
    sources: list[Path | Array] = []
    for path in features:
        if path.suffix not in torch_file.SUFFIXES and str(path) != PIPE:
            sources.append(path)
            continue
        found = read_input(path)
        sources += found.values() if isinstance(found, dict) else [found]
    return sources


def _default_id(output: Path) -> str:
    """An id from a file name: what an id cannot hold becomes a hyphen."""
    stem = re.sub(r"[^a-z0-9._-]+", "-", output.stem.lower()).strip("-._")
    return f"klt-{stem.removeprefix('klt-')}"[:64] if stem else "klt-codec"
