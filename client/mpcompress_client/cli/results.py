"""What commands say: words for people, JSON for programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np

from mpcompress_client.cli.batch import Outcome


def say(facts: dict[str, Any], text: str, as_json: bool, *, piped: bool) -> None:
    """One line about a result; on standard error when the result itself went to standard output."""
    click.echo(to_json(facts) if as_json else text, err=piped)


def emit_batch(outcome: Outcome, as_json: bool, *, into: Path) -> int:
    """Says what became of a batch; gives the exit code."""
    done, skipped, failed = len(outcome.done), len(outcome.skipped), len(outcome.failed)
    facts: dict[str, Any] = {"done": done, "skipped": skipped, "failed": failed}
    facts |= {"items": outcome.done, "skipped_outputs": outcome.skipped, "errors": outcome.failed}
    sizes = ""
    raw, size = (sum(item.get(name, 0) for item in outcome.done) for name in ("raw_bytes", "bytes"))
    if size:
        facts |= {"raw_bytes": raw, "bytes": size, "ratio": raw / size}
        facts["bpfp"] = 8 * size / sum(item["elements"] for item in outcome.done)
        sizes = f": {raw} -> {size} bytes, {raw / size:.1f}x smaller, {facts['bpfp']:.3f} bpfp"
    if as_json:
        click.echo(to_json(facts))
        return outcome.exit_code
    counts = [f"{done} files in {into}", *([f"{skipped} done before"] if skipped else [])]
    counts += [f"{failed} failed"] if failed else []
    click.echo(", ".join(counts) + sizes)
    warned: dict[str, int] = {}
    for item in outcome.done:
        for warning in item.get("warnings", ()):
            warned[warning] = warned.get(warning, 0) + 1
    for warning, count in list(warned.items())[:5]:
        click.echo(f"warning: {warning}" + (f" ({count} files)" if count > 1 else ""), err=True)
    return outcome.exit_code


def to_json(value: Any) -> str:
    """JSON of facts; NaN and infinity become null, bytes hex."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
