"""The command `mpcompress`. Only this package of the client prints or exits."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import click

from mpcompress_client.cli.bench import bench
from mpcompress_client.cli.calibrate import calibrate
from mpcompress_client.cli.coding import compress, decompress
from mpcompress_client.cli.doctor import doctor
from mpcompress_client.cli.evaluate import evaluate
from mpcompress_client.cli.info import codecs
from mpcompress_client.cli.inspect import inspect
from mpcompress_client.cli.neural import import_checkpoint
from mpcompress_client.cli.train import train
from mpcompress_client.errors import MPCompressError

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


def _version() -> str:
    try:
        return version("mpcompress")
    except PackageNotFoundError:
        return "unknown"


_CLI_HELP = """\
Compress feature tensors, through a server or on this device.

\b
Examples:
  mpcompress codecs
  mpcompress compress features.npy -o features.mpc --codec klt-imgfocus-vits14-final --qp 24
  mpcompress inspect features.mpc
  mpcompress decompress features.mpc -o again.npy
  mpcompress compress features.npy -o features.mpc --codec klt-imgfocus-vits14-final --local
  mpcompress evaluate features/ --codec klt-imgfocus-vits14-final --qps 18,24,30
  mpcompress doctor

\b
The server is --target, else $MPCOMPRESS_TARGET, else 127.0.0.1:50051.

\b
Exit codes:
  0    done
  1    it went wrong: refused by the codec or server, unreachable, damaged or unreadable file; of several inputs, some
  2    bad usage: unknown command or option, a value that cannot be right, no such input file
  130  interrupted
Errors are one line on standard error.
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=_CLI_HELP)
@click.version_option(_version(), prog_name="mpcompress")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def cli(debug: bool) -> None:
    """Compress feature tensors, through a server or on this device."""


for _command in (compress, decompress, codecs, inspect, evaluate, bench, doctor, calibrate, import_checkpoint, train):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with the codes that its help documents."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: Sequence[str]) -> int:
    """Runs the command line; returns the exit code."""
    debug = "--debug" in arguments
    try:
        # click returns the code of --help and --version, and None or a command's result otherwise.
        result = cli.main(args=list(arguments), prog_name="mpcompress", standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        return _say(_usage(error), BAD_USAGE)
    except (click.Abort, KeyboardInterrupt):
        return _say("mpcompress: interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone: nothing to say to anyone, nor when Python flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if debug:
            raise
        return _say(f"mpcompress: {_one_line(error)}", FAILED)
    return result if isinstance(result, int) else OK


def _usage(error: click.UsageError) -> str:
    command = error.ctx.command_path if error.ctx else "mpcompress"
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return f"{command}: what shall it do? `{command} --help` says what it can"
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{command}: {text} (`{command} --help` shows what goes)"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and not isinstance(error, MPCompressError):
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, MPCompressError | OSError | ValueError | click.ClickException):
        return text
    return f"{type(error).__name__}: {text} (a bug; --debug shows where)"


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
