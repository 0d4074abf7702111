"""`mpcompress doctor`: what is installed, what works, and what to do about the rest."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import click

from mpcompress_client.cli.checks import Finding, local_findings, server_findings
from mpcompress_client.cli.options import json_option
from mpcompress_client.cli.results import to_json
from mpcompress_client.cli.server import Server, target_options

_DOCTOR_HELP = """\
Look at this installation, its devices and engines, and at the server; say what to install or start.

The exit code is 1 when something that should work does not: a package of the base installation is missing, an
installed one does not load, or a server that was named (--target, $MPCOMPRESS_TARGET) cannot be reached. What is only
not installed is no failure.

\b
Examples:
  mpcompress doctor
  mpcompress doctor --target gpu-box:50051
  mpcompress doctor --json > report.json
"""

_MARKS = {"ok": ("ok", "green"), "absent": ("--", "yellow"), "failed": ("FAILED", "red")}


@click.command(short_help="Look for what is missing or does not work.", help=_DOCTOR_HELP)
@target_options
@json_option
def doctor(server: Server, as_json: bool) -> int:
    """Look at this installation and at the server."""
    looked = itertools.chain(local_findings(), server_findings(server))
    # For people each as soon as it is there: codecs are compiled when they are looked at for the first time.
    findings = list(looked if as_json else _shown(looked))
    failed = any(finding.state == "failed" for finding in findings)
    if as_json:
        click.echo(to_json({"ok": not failed, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        _say_what_to_do(findings)
    return 1 if failed else 0


def _shown(findings: Iterable[Finding]) -> Iterator[Finding]:
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            click.secho(area, bold=True)
        mark, colour = _MARKS[finding.state]
        click.echo(f"  {click.style(f'{mark:<7}', fg=colour)}{finding.name:<24} {finding.detail}")
        if finding.advice:
            click.echo(f"{'':9}{'':<24} -> {finding.advice}")
        yield finding


def _say_what_to_do(findings: Iterable[Finding]) -> None:
    advice = list(dict.fromkeys(finding.advice for finding in findings if finding.state == "failed" and finding.advice))
    if advice:
        click.secho("to do", bold=True)
        for line in advice:
            click.echo(f"  {line}")
