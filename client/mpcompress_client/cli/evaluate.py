"""`mpcompress evaluate`: rate and quality of codecs on the user's own features."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from mpcompress_client.arrays import named_arrays
from mpcompress_client.cli.coders import Coder, open_coders
from mpcompress_client.cli.files import READABLE
from mpcompress_client.cli.options import coding_options, json_option, output_file, qp
from mpcompress_client.cli.progress import bar
from mpcompress_client.cli.results import to_json
from mpcompress_client.cli.server import Server, server_options
from mpcompress_client.cli.sources import feature_files, reader
from mpcompress_client.errors import CodecUnavailableError, InvalidRequestError, MPCompressError
from mpcompress_client.library import library
from mpcompress_proto.tensors import Array

_EVALUATE_HELP = """\
Code FEATURES there and back with each codec at each qp, and show what that costs and keeps.

FEATURES are .npy, .npz, .safetensors and .pt files, folders of them, quoted patterns, or `-` for a pipe. Means over the
files of: bpfp, bits of the complete .mpc file per feature element; NMSE, squared error over variance (0 perfect, 1 no
better than the mean); cosine between the tensors, and of the tokens in front (CLS) alone, which are few and often
matter most; seconds of wall time to compress and to decompress. Then how files differ: standard deviations, the worst
file, and how far they are from what the codec was calibrated on (1 is typical; `warned`: files that it warns of).

\b
Examples:
  mpcompress evaluate features/ --codec klt-imgfocus-vits14-final --qps 18,24,30
  mpcompress evaluate features/ --codec mine.safetensors --codec other.safetensors --local --plot rate.png
  mpcompress evaluate 'features/*.npy' --codec vtm-dinov2-cls --qps 27,32 --limit 4 --timeout 600 --json
"""


_Point = dict[str, Any]


def _qps(text: str) -> list[float]:
    """Numbers between commas, each a multiple of 1/8."""
    return [qp(part) for part in text.split(",")]


@click.command(short_help="Measure rate and quality of codecs on your features.", help=_EVALUATE_HELP)
@click.argument("features", nargs=-1, required=True)
@click.option("--codec", "codecs", multiple=True, required=True, metavar="ID", help="Which codec; may be repeated.")
@click.option("--qps", type=_qps, metavar="QP,QP,...", help="Several qps; default: the codec's own, or --qp.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N files, evenly spread.")
@click.option("--plot", type=output_file, metavar="FILE", help="Draw NMSE over bpfp (matplotlib: extra `demo`).")
@coding_options
@server_options
@json_option
def evaluate(
    features: tuple[str, ...],
    codecs: tuple[str, ...],
    qps: list[float] | None,
    limit: int | None,
    plot: Path | None,
    arguments: dict[str, Any],
    server: Server,
    local: bool,
    as_json: bool,
) -> None:
    """Code FEATURES there and back with each codec at each qp."""
    if qps and arguments["qp"] is not None:
        raise click.UsageError("give --qp or --qps, not both")
    pyplot = _pyplot() if plot else None
    files, read = feature_files(features, READABLE), reader()
    if limit is not None and len(files) > limit:
        files = [files[index * len(files) // limit] for index in range(limit)]
    asked: Sequence[float | None] = qps or [arguments["qp"]]
    rows = []
    with (
        open_coders(codecs, local=local, server=server) as coders,
        bar("evaluate", len(codecs) * len(asked) * len(files)) as shown,
    ):
        for coder in coders:
            for value in asked:
                points: list[_Point] = []
                warnings: set[str] = set()
                for file in files:
                    points.append(_point(coder, file, read, {**arguments, "qp": value}, warnings))
                    shown.advance()
                rows.append(_row(coder, value, points, warnings))
    if pyplot is not None and plot is not None:
        _draw(pyplot, rows, plot)
    if as_json:
        click.echo(to_json({"files": len(files), "rows": rows}))
        return
    _table(rows, len(files))
    if len(files) > 1:
        _spread_table(rows)
    # One qp's warnings differ from the next one's in their figures: the first says what is wrong.
    for codec in dict.fromkeys(row["codec"] for row in rows):
        found = [warning for row in rows if row["codec"] == codec for warning in row["warnings"]]
        if found:
            click.echo(f"warning: {codec}: {found[0]}", err=True)


def _point(
    coder: Coder,
    file: Path,
    read: Callable[[Path], Array | dict[str, Array]],
    arguments: dict[str, Any],
    warnings: set[str],
) -> _Point:
    """The figures of one file; what the codec warns of goes to `warnings`."""
    from mpcompress.metrics import cosine, nmse

    try:
        tensors = named_arrays(read(file))
        started = time.perf_counter()
        unit = coder.compress(tensors, **arguments)
        coded = time.perf_counter()
        warnings.update(unit.report.warnings if unit.report else ())
        context = {name: array for name, array in tensors.items() if name == "ctx"}
        found = coder.decompress(unit, ctx=context or None)
        decoded = time.perf_counter()
        h = tensors[coder.info.inputs[0].name]
        h_hat = found if isinstance(found, np.ndarray) else found[coder.info.outputs[0].name]
        with library():
            point: _Point = {"bpfp": unit.bpfp, "nmse": nmse(h, h_hat), "cosine": cosine(h, h_hat)}
            prefix = unit.pstate.get("prefix_tokens", coder.info.prefix_tokens)
            if prefix:
                point["prefix_cosine"] = cosine(_prefix(h, prefix), _prefix(h_hat, prefix))
            if unit.report and unit.report.domain_distance is not None:
                point["domain_distance"] = unit.report.domain_distance
            point["warned"] = bool(unit.report and unit.report.warnings)
    except MPCompressError as error:
        raise type(error)(f"{file}: {error.message}", field=error.field) from error
    return {**point, "file": str(file), "compress_s": coded - started, "decompress_s": decoded - coded}


def _prefix(h: Array, tokens: int) -> Array:
    return h[..., :tokens, :]


def _row(coder: Coder, value: float | None, points: Sequence[_Point], warnings: Iterable[str]) -> dict[str, Any]:
    default = coder.info.qp.default if coder.info.qp is not None else None
    row: dict[str, Any] = {"codec": coder.info.id, "qp": default if value is None else value, "n": len(points)}
    for name in ("bpfp", "nmse", "cosine", "prefix_cosine", "compress_s", "decompress_s"):
        values = [point[name] for point in points if name in point]
        row[name] = float(np.mean(values)) if values else None
    for name in ("bpfp", "nmse"):
        values = [point[name] for point in points]
        row[f"{name}_deviation"] = float(np.std(values))
        row[f"worst_{name}"] = float(np.max(values))
    row["worst_file"] = max(points, key=lambda point: point["nmse"])["file"]
    distances = [point["domain_distance"] for point in points if "domain_distance" in point]
    row["domain_distance"] = float(np.mean(distances)) if distances else None
    row["worst_domain_distance"] = float(np.max(distances)) if distances else None
    row["warned"] = sum(point["warned"] for point in points)
    return {**row, "warnings": sorted(warnings)}


def _table(rows: Sequence[dict[str, Any]], files: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), title=f"means over {files} files", title_justify="left")
    table.add_column("codec", no_wrap=True)
    for title in ("qp", "bpfp", "NMSE", "cosine", "prefix", "comp. ms", "dec. ms"):
        table.add_column(title, justify="right")
    for row in rows:
        prefix = "" if row["prefix_cosine"] is None else f"{row['prefix_cosine']:.4f}"
        table.add_row(
            row["codec"],
            "" if row["qp"] is None else f"{row['qp']:g}",
            f"{row['bpfp']:.3f}",
            f"{row['nmse']:.4f}",
            f"{row['cosine']:.4f}",
            prefix,
            f"{1e3 * row['compress_s']:.1f}",
            f"{1e3 * row['decompress_s']:.1f}",
        )
    Console().print(table)


def _spread_table(rows: Sequence[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1), title="spread over them", title_justify="left")
    table.add_column("codec", no_wrap=True)
    for title in ("qp", "bpfp ±", "worst", "NMSE ±", "worst", "domain", "worst", "warned"):
        table.add_column(title, justify="right")
    for row in rows:
        domain = [row["domain_distance"], row["worst_domain_distance"]]
        table.add_row(
            row["codec"],
            "" if row["qp"] is None else f"{row['qp']:g}",
            f"{row['bpfp_deviation']:.3f}",
            f"{row['worst_bpfp']:.3f}",
            f"{row['nmse_deviation']:.4f}",
            f"{row['worst_nmse']:.4f}",
            *("" if distance is None else f"{distance:.1f}" for distance in domain),
            str(row["warned"]),
        )
    Console().print(table)
    # Most often one file is the worst of all: it is worth a look.
    worst = max(rows, key=lambda row: row["worst_nmse"])
    Console().print(f"largest NMSE: {worst['worst_file']}", highlight=False)


def _pyplot() -> Any:
    """Matplotlib's pyplot without a display. Raises CodecUnavailableError when it is not installed."""
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
        matplotlib.use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ImportError as error:
        raise CodecUnavailableError("--plot needs matplotlib: pip install 'mpcompress[demo]'") from error


def _draw(pyplot: Any, rows: Sequence[dict[str, Any]], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for codec in dict.fromkeys(row["codec"] for row in rows):
        points = sorted((row["bpfp"], row["nmse"]) for row in rows if row["codec"] == codec)
        axes.plot(*zip(*points, strict=True), marker="o", label=codec)
    axes.set(xlabel="bpfp, bits per feature point", ylabel="NMSE", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=100)
    except ValueError as error:
        raise InvalidRequestError(f"{path}: {error}") from error
    finally:
        pyplot.close(figure)
