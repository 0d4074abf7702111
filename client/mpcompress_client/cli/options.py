"""Types and options that several commands share. A value that cannot be right is bad usage: exit code 2."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.params import QP_STEPS, qp_eighths

Function = TypeVar("Function", bound=Callable[..., Any])


def qp(text: str) -> float:
    """A multiple of 1/8."""
    try:
        return qp_eighths(text) / QP_STEPS  # type: ignore[arg-type] # it takes what float() takes
    except InvalidRequestError as error:
        raise click.BadParameter(error.message) from error


def grid(text: str) -> tuple[int, int]:
    """HxW."""
    height, cross, width = text.lower().partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) > 0 and int(width) > 0):
        raise click.BadParameter(f"{text!r} is no grid such as 16x16")
    return int(height), int(width)


def parameter(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a JSON literal or a word."""
    name, equals, value = text.partition("=")
    if not (equals and name.isidentifier()):
        raise click.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def output_file(text: str) -> Path:
    """A file that can be written, as far as can be told before the work is done."""
    path = Path(text)
    if path.is_dir():
        raise click.BadParameter(f"{text!r} is a directory")
    if not path.parent.is_dir():
        raise click.BadParameter(f"there is no directory {str(path.parent)!r}")
    return path


_qp = click.option(
    "--qp", "qp_value", type=qp, metavar="QP", help="Quantisation parameter in steps of 0.125; smaller is finer."
)
_token_res = click.option(
    "--token-res", type=grid, metavar="HxW", help="Rows x columns of the patch tokens; default: the codec's own."
)
_prefix_tokens = click.option(
    "--prefix-tokens", type=click.IntRange(0, 1024), help="Tokens in front of the patch tokens."
)
_param = click.option(
    "--param",
    "params",
    type=parameter,
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter that `codecs --json` lists, or target_bpfp, target_nmse.",
)

INPUT_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)

_output = click.option("-o", "--output", required=True, type=output_file, metavar="FILE", help="Where the result goes.")
_place = click.option(
    "-o", "--output", required=True, metavar="OUT", help="Where the result goes: a file, a folder for several, or -."
)
_resume = click.option("--resume", is_flag=True, help="Leave out what an earlier call has done.")
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def output_option(function: Function) -> Function:
    """-o."""
    return _output(function)


def place_option(function: Function) -> Function:
    """-o, for a file, a folder or a pipe."""
    return _place(function)


def resume_option(function: Function) -> Function:
    """--resume."""
    return _resume(function)


def json_option(function: Function) -> Function:
    """--json."""
    return _json(function)


def coding_options(function: Function) -> Function:
    """--qp, --token-res, --prefix-tokens and --param, as `arguments` for `compress` of a client or codec."""

    @functools.wraps(function)
    def command(
        *args: Any,
        qp_value: float | None,
        token_res: tuple[int, int] | None,
        prefix_tokens: int | None,
        params: tuple[tuple[str, Any], ...],
        **rest: Any,
    ) -> Any:
        named = {"token_res": token_res, "prefix_tokens": prefix_tokens, **dict(params)}
        return function(*args, arguments={"qp": qp_value, **named}, **rest)

    for option in (_param, _prefix_tokens, _token_res, _qp):
        command = option(command)
    return command  # type: ignore[return-value] # other arguments in, the same command out
