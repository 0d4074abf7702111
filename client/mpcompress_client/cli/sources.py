"""Which files a command works on, and where each result goes: files, folders, patterns, and `-` for pipes."""

from __future__ import annotations

import functools
import glob
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from mpcompress_client.cli.files import read_arrays
from mpcompress_client.errors import InvalidRequestError
from mpcompress_proto.tensors import Array

PIPE = "-"
_PATTERN = frozenset("*?[")
_MAGIC = {b"\x93NUM": ".npy", b"PK\x03\x04": ".npz"}


@dataclass(frozen=True)
class Job:
    """One input and where its result goes; `-` is a pipe."""

    source: Path
    output: Path


@dataclass(frozen=True)
class Plan:
    """The jobs of one call.

    Attributes:
        jobs: what is to be done.
        batch: results go into a folder, one failure does not end the rest.
        folder: that folder, or where the one result goes.
    """

    jobs: list[Job]
    batch: bool
    folder: Path


def plan(given: Sequence[str], output: str, *, inputs: Sequence[str], suffix: str) -> Plan:
    """The jobs for what the user named.

    Args:
        given: files, folders (all files of `inputs` below them), patterns with * ? [] **, or one `-`.
        output: a file, `-`, or the folder for the results of several inputs.
        inputs: suffixes that files in folders have.
        suffix: the suffix of results.

    Raises:
        click.UsageError: no such input, an output that cannot be, or two inputs with one output.
    """
    found, several = _expand(given, inputs)
    into = output.endswith(("/", "\\")) or Path(output).is_dir()
    if not several and not into:
        job = Job(found[0][0], _file(output, found[0][0]))
        return Plan([job], batch=False, folder=job.output.parent)
    if output == PIPE:
        raise click.UsageError("`-o -` takes one input")
    return Plan(_into(found, Path(output), suffix), batch=True, folder=Path(output))


def files_below(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """All files of these suffixes in a folder and below, sorted; hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in suffixes and path.is_file() and not path.name.startswith(".")
    )


def feature_files(given: Sequence[str], inputs: Sequence[str]) -> list[Path]:
    """The files of what the user named, for commands that write none. Raises click.UsageError."""
    return list(dict.fromkeys(path for path, _ in _expand(given, inputs)[0]))


def reader() -> Callable[[Path], Array | dict[str, Array]]:
    """`read_input` for commands that read an input several times: what the pipe brought is kept."""
    piped = functools.cache(lambda: read_input(Path(PIPE)))
    return lambda path: piped() if str(path) == PIPE else read_arrays(path)


def read_input(path: Path) -> Array | dict[str, Array]:
    """The arrays of a feature file, or of the pipe. Raises InvalidRequestError and OSError."""
    if str(path) != PIPE:
        return read_arrays(path)
    data = sys.stdin.buffer.read()
    if not data:
        raise InvalidRequestError("the pipe is empty: it should bring a feature file")
    suffix = _MAGIC.get(data[:4], ".safetensors")
    if suffix == ".npz" and b"/data.pkl" in data[:4096]:
        suffix = ".pt"
    with tempfile.TemporaryDirectory(prefix="mpcompress-") as folder:
        file = Path(folder) / f"standard input{suffix}"
        file.write_bytes(data)
        try:
            arrays = read_arrays(file)
            # Readers map files, and this one goes.
            return {n: np.array(a) for n, a in arrays.items()} if isinstance(arrays, dict) else np.array(arrays)
        except InvalidRequestError as error:
            raise InvalidRequestError(error.message.replace(str(file), "standard input")) from error


def _expand(given: Sequence[str], inputs: Sequence[str]) -> tuple[list[tuple[Path, Path]], bool]:
    """Files with their names below what was given, and whether more than one was meant."""
    if PIPE in given and len(given) > 1:
        raise click.UsageError("`-` reads one input from the pipe, and goes with no other")
    found: list[tuple[Path, Path]] = []
    several = len(given) > 1
    for text in given:
        path = Path(text)
        if text == PIPE or path.is_file():
            found.append((path, Path(path.name)))
        elif path.is_dir():
            several = True
            found += [(file, file.relative_to(path)) for file in files_below(path, inputs)]
        elif _PATTERN & set(text):
            several = True
            # A literal glob, so that patterns work where no shell expands them.
            matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207 - ** and absolute
            found += [(match, Path(match.name)) for match in matches if match.is_file()]
        else:
            raise click.UsageError(f"there is no file or folder {text!r}")
    if not found:
        raise click.UsageError(f"{', '.join(given)}: no {' or '.join(inputs)} files there")
    return found, several


def _file(output: str, source: Path) -> Path:
    path = Path(output)
    if output != PIPE:
        if not path.parent.is_dir():
            raise click.UsageError(f"there is no directory {str(path.parent)!r}")
        if path.exists() and str(source) != PIPE and path.samefile(source):
            raise click.UsageError(f"the output {output!r} is the input")
    return path


def _into(found: Sequence[tuple[Path, Path]], folder: Path, suffix: str) -> list[Job]:
    if folder.exists() and not folder.is_dir():
        raise click.UsageError(f"the results of several inputs go into a folder, and {str(folder)!r} is a file")
    if not folder.parent.is_dir():
        raise click.UsageError(f"there is no directory {str(folder.parent)!r}")
    sources: dict[Path, Path] = {}
    for source, relative in found:
        name = "standard-input" if str(source) == PIPE else relative.stem
        output = folder / relative.with_name(name + suffix)
        other = sources.get(output)
        if other == source:
            continue
        if other is not None:
            raise click.UsageError(f"{other} and {source} would both become {output}")
        if output.exists() and str(source) != PIPE and output.samefile(source):
            raise click.UsageError(f"the output {str(output)!r} is an input")
        sources[output] = source
    return [Job(source, output) for output, source in sources.items()]
