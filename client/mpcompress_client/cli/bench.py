"""`mpcompress bench`: how many items a server or this device codes, and how long each takes."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from mpcompress_client.arrays import named_arrays
from mpcompress_client.cli.coders import Coder, open_coders
from mpcompress_client.cli.files import READABLE, write_whole
from mpcompress_client.cli.load import Load, Samples, process_cpu_s, run_load
from mpcompress_client.cli.options import coding_options, json_option, output_file
from mpcompress_client.cli.progress import bar
from mpcompress_client.cli.results import to_json
from mpcompress_client.cli.server import Server, server_options
from mpcompress_client.cli.sources import feature_files, read_input
from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.infos import CodecInfo
from mpcompress_proto.tensors import Array

_BENCH_HELP = """\
Load a server, or with --local this device, and show throughput, latencies and CPU time per item.

Without FEATURES the items are noise of the codec's own shape: their size is right, their rate is not, and entropy
coding takes longer than on features. Closed loop: for each --concurrency that many workers, each sending its next item
when the last has come back. Open loop: for each --rate items come at that rate whether or not others are done, and
latency counts from when an item was due. The first items, one per worker at most, are coded before the clock starts.

\b
Examples:
  mpcompress bench --codec klt-imgfocus-vits14-final
  mpcompress bench features/ --codec klt-imgfocus-vits14-final --concurrency 1,4,16 --do both --csv bench.csv
  mpcompress bench features/ --codec klt-imgfocus-vits14-final --rate 50,100,200 --seconds 30
"""

_OPERATIONS = ("compress", "decompress", "both")
# The table's own columns, narrow enough for a terminal; JSON and CSV have all.
_COLUMNS = (
    ("load", "load", ""),
    ("items", "items", "d"),
    ("errors", "errors", "d"),
    ("items_per_s", "items/s", ".1f"),
    ("p50_ms", "p50", ".1f"),
    ("p90_ms", "p90", ".1f"),
    ("p99_ms", "p99", ".1f"),
    ("max_ms", "max", ".1f"),
    ("client_cpu_ms", "CPU here", ".1f"),
    ("server_cpu_ms", "there", ".1f"),
)


def _counts(text: str) -> list[int]:
    values = [int(part) for part in text.split(",") if part.strip().isdecimal()]
    if len(values) != len(text.split(",")) or not all(1 <= value <= 1024 for value in values):
        raise click.BadParameter(f"{text!r} is no list of numbers from 1 to 1024, such as 1,4,16")
    return values


def _rates(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no list of numbers such as 50,100") from error
    if not all(0.01 <= value <= 1e5 for value in values):
        raise click.BadParameter(f"{text!r}: a rate is 0.01 to 100000 items per second")
    return values


@click.command(short_help="Measure throughput and latency under load.", help=_BENCH_HELP)
@click.argument("features", nargs=-1)
@click.option("--codec", required=True, metavar="ID", help="Which codec; with --local also the path of a codec file.")
@click.option("--do", "operation", type=click.Choice(_OPERATIONS), default="compress", show_default=True)
@click.option("--concurrency", type=_counts, metavar="N,N,...", help="Workers of closed loops. [default: 1,2,4,8]")
@click.option("--rate", "rates", type=_rates, metavar="R,R,...", help="Items per second of open loops.")
@click.option(
    "--seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="How long each load lasts."
)
@click.option("--server-pid", type=click.IntRange(min=1), help="A server on this machine: measure its CPU time.")
@click.option("--csv", "csv_file", type=output_file, metavar="FILE", help="Write the table here as CSV.")
@coding_options
@server_options
@json_option
def bench(
    features: tuple[str, ...],
    codec: str,
    operation: str,
    concurrency: list[int] | None,
    rates: list[float] | None,
    seconds: float,
    server_pid: int | None,
    csv_file: Path | None,
    arguments: dict[str, Any],
    server: Server,
    local: bool,
    as_json: bool,
) -> int:
    """Load a server or this device."""
    if server_pid is not None and process_cpu_s(server_pid) is None:
        raise click.UsageError(f"--server-pid {server_pid}: no such process, or its CPU time cannot be read here")
    counts = concurrency or ([] if rates else [1, 2, 4, 8])
    loads = [Load(concurrency=count, seconds=seconds) for count in counts]
    loads += [Load(rate=rate, seconds=seconds) for rate in rates or ()]
    with open_coders([codec], local=local, server=server) as (coder,):
        items = _items(coder.info, features, arguments)
        item, nbytes = _operation(coder, operation, items, arguments)
        rows = []
        with bar("bench", round(10 * seconds * len(loads))) as shown:
            for load in loads:
                samples = run_load(load, item, lambda passed: shown.advance(10 * passed), server_pid)
                rows.append(_row(load, samples, nbytes))
    facts = {"codec": coder.info.id, "operation": operation, "seconds": seconds, "local": local}
    facts |= {"features": "files" if features else "noise", "item_bytes": nbytes, "rows": rows}
    if csv_file is not None:
        write_whole(csv_file, _csv(rows).encode())
    if as_json:
        click.echo(to_json(facts))
    else:
        _table(facts, rows)
    return 1 if any(row["errors"] for row in rows) else 0


def _items(info: CodecInfo, features: tuple[str, ...], arguments: dict[str, Any]) -> list[dict[str, Array]]:
    if features:
        return [named_arrays(read_input(file)) for file in feature_files(features, READABLE)]
    port = info.inputs[0]
    grid = arguments["token_res"] or info.token_res or (16, 16)
    prefix = info.prefix_tokens if arguments["prefix_tokens"] is None else arguments["prefix_tokens"]
    if len(info.inputs) > 1 or 2 not in port.ranks:
        raise InvalidRequestError(f"codec {info.id} takes more than noise of one shape: name feature files")
    rng = np.random.default_rng(0)
    shape = (prefix + grid[0] * grid[1], port.channels or 384)
    return [{port.name: rng.standard_normal(shape).astype(np.float16)} for _ in range(4)]


def _operation(
    coder: Coder, operation: str, items: list[dict[str, Array]], arguments: dict[str, Any]
) -> tuple[Callable[[], None], int]:
    """What a worker does again and again, and the bytes of the tensors of one item on average."""
    units = [coder.compress(tensors, **arguments) for tensors in items]
    contexts = [{name: array for name, array in tensors.items() if name == "ctx"} or None for tensors in items]
    turns = itertools.cycle(range(len(items)))
    if operation != "compress":
        coder.decompress(units[0], ctx=contexts[0])

    def item() -> None:
        index = next(turns)  # one step of the interpreter: threads may share it
        unit = units[index] if operation == "decompress" else coder.compress(items[index], **arguments)
        if operation != "compress":
            coder.decompress(unit, ctx=contexts[index])

    sizes = [sum(array.nbytes for array in tensors.values()) for tensors in items]
    return item, round(sum(sizes) / len(sizes))


def _row(load: Load, samples: Samples, nbytes: int) -> dict[str, Any]:
    latencies = 1e3 * np.array(samples.latencies_s)
    count = len(latencies)
    row: dict[str, Any] = {"load": f"{load.concurrency} at once" if load.concurrency else f"{load.rate:g}/s"}
    row |= {"concurrency": load.concurrency, "rate": load.rate, "items": count, "errors": sum(samples.errors.values())}
    row |= {"errors_by_name": samples.errors, "wall_s": samples.wall_s, "items_per_s": count / samples.wall_s}
    row["mb_per_s"] = count * nbytes / samples.wall_s / 1e6
    for name, share in (("p50_ms", 50), ("p90_ms", 90), ("p99_ms", 99), ("max_ms", 100)):
        row[name] = float(np.percentile(latencies, share)) if count else None
    row["client_cpu_ms"] = 1e3 * samples.cpu_s / count if count else None
    known = samples.server_cpu_s is not None and count
    row["server_cpu_ms"] = 1e3 * (samples.server_cpu_s or 0.0) / count if known else None
    return row


def _cell(value: Any, form: str) -> str:
    if value is None:
        return ""
    return format(value, ".0f" if form == ".1f" and value >= 1000 else form)


def _table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{facts['operation']} with {facts['codec']}, {facts['item_bytes']} bytes of {facts['features']} per item"
    table = Table(box=None, pad_edge=False, padding=(0, 1), title=f"{title}; times in ms", title_justify="left")
    columns = [column for column in _COLUMNS if any(row[column[0]] is not None for row in rows)]
    for _, heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row[key], form) for key, _, form in columns))
    Console().print(table)
    for row in rows:
        for name, count in row["errors_by_name"].items():
            click.echo(f"{row['load']}: {count} times {name}", err=True)


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    names = [name for name in rows[0] if name not in ("load", "errors_by_name")]
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
