"""`mpcompress compress` and `mpcompress decompress`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from mpcompress_client.cli.batch import FATAL, Batch, Outcome
from mpcompress_client.cli.files import READABLE, SUFFIXES, check_output, file_bytes, read_arrays
from mpcompress_client.cli.options import (
    INPUT_FILE,
    coding_options,
    json_option,
    place_option,
    resume_option,
)
from mpcompress_client.cli.progress import Watch
from mpcompress_client.cli.results import emit_batch, say
from mpcompress_client.cli.resume import Record
from mpcompress_client.cli.server import Server, server_options
from mpcompress_client.cli.sources import PIPE, Job, Plan, plan, read_input
from mpcompress_client.cli.units import facts_of, load_unit
from mpcompress_client.client import CompressionClient
from mpcompress_client.errors import CodecUnavailableError, MPCompressError, UnknownCodecError
from mpcompress_client.infos import CodecInfo
from mpcompress_client.items import Decoded
from mpcompress_client.local import EdgeCodec
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.tensors import DTYPE_NAMES

_UNIT = ".mpc"

_COMPRESS_HELP = """\
Compress FEATURES (.npy, .npz, .safetensors, or .pt with tensors only) into .mpc files.

A file with one array holds the features; one with several holds the codec's inputs by name. One file becomes the file
OUT; several, folders (with all below) and quoted patterns become files in the folder OUT. `-` is a pipe, as input and
as OUT. Of several files those that fail are named, the others done, and the exit code is 1.

\b
Examples:
  mpcompress compress features.npy -o features.mpc --codec klt-imgfocus-vits14-final --qp 24
  mpcompress compress features/ -o units/ --codec klt-imgfocus-vits14-final --resume
  mpcompress compress 'runs/**/h*.npy' -o units/ --codec my-codec.safetensors --local
  mpcompress compress h.npy -o h.mpc --codec mine --target host:443 --tls-ca ca.pem --token-file token
  make-features | mpcompress compress - -o - --codec klt-imgfocus-vits14-final | ssh cloud 'cat > f.mpc'
"""


@click.command(short_help="Compress feature files into .mpc files.", help=_COMPRESS_HELP)
@click.argument("features", nargs=-1, required=True)
@place_option
@click.option("--codec", required=True, metavar="ID", help="Which codec; with --local also the path of a codec file.")
@coding_options
@resume_option
@server_options
@json_option
def compress(
    features: tuple[str, ...],
    output: str,
    codec: str,
    arguments: dict[str, Any],
    resume: bool,
    server: Server,
    local: bool,
    as_json: bool,
) -> int:
    """Compress FEATURES into .mpc files."""
    todo = plan(features, output, inputs=READABLE, suffix=_UNIT)
    if local:
        with server.if_named() as source:
            edge = EdgeCodec.load(codec, target=source)
        made = _made(edge.info.id, edge.info, arguments)
        return _compress(todo, resume, as_json, made, _each(edge.compress, arguments))
    watch = Watch()
    with server.connect() as client:
        info = {info.id: info for info in client.codecs()}.get(codec) if todo.batch or resume else None

        def code(items: Iterable[Any]) -> Iterator[CodedUnit | MPCompressError]:
            return client.compress_many(items, codec=codec, errors="return", progress=watch.if_seen(), **arguments)

        return _compress(todo, resume, as_json, _made(codec, info, arguments), code, watch)


def _made(codec: str, info: CodecInfo | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """All that decides about a unit besides its input; the codec's default qp counts as if it had been given."""
    given = {name: value for name, value in arguments.items() if value is not None}
    if info is None:
        return {"codec": codec, **given}
    if info.qp is not None and not given.keys() & {"qp", "target_bpfp", "target_nmse"}:
        given["qp"] = info.qp.default
    return {"codec": codec, "fingerprint": info.fingerprint.hex(), **given}


def _compress(
    todo: Plan, resume: bool, as_json: bool, made: dict[str, Any], code: Any, watch: Watch | None = None
) -> int:
    def encode(job: Job, unit: CodedUnit) -> tuple[bytes, dict[str, Any]]:
        data = unit.to_bytes()
        return data, facts_of(unit, job.output, len(data))

    work: Batch[Any, CodedUnit] = Batch(
        title="compress",
        read=lambda job: read_input(job.source),
        code=code,
        encode=encode,
        record=_record(todo, resume, made),
        fatal=(*FATAL, UnknownCodecError, CodecUnavailableError),
        watch=watch,
    )
    outcome = _run(work, todo, resume)
    if todo.batch:
        return emit_batch(outcome, as_json, into=todo.folder)
    for facts in outcome.done:
        ratio, bpfp = facts["ratio"], facts["bpfp"]
        text = (
            f"{facts['output']}: {facts['raw_bytes']} -> {facts['bytes']} bytes, {ratio:.1f}x smaller, {bpfp:.3f} bpfp"
        )
        say(facts, text, as_json, piped=str(todo.jobs[0].output) == PIPE)
        for warning in facts["warnings"]:
            if not as_json:
                click.echo(f"warning: {warning}", err=True)
    return _skipped(outcome, as_json)


_DECOMPRESS_HELP = """\
Decompress UNITS, .mpc files, into .npy, .npz or .safetensors files.

One unit becomes the file OUT, in the format that its name ends with. Several, folders (with all below) and quoted
patterns become files in the folder OUT. `-` is a pipe, as input and as OUT. bfloat16 stays bfloat16 in .safetensors
and becomes float32 in the others.

\b
Examples:
  mpcompress decompress features.mpc -o again.npy
  mpcompress decompress units/ -o again/ --format safetensors --resume
  mpcompress decompress - -o - < features.mpc | use-features
"""


@click.command(short_help="Decompress .mpc files into feature files.", help=_DECOMPRESS_HELP)
@click.argument("units", nargs=-1, required=True)
@place_option
@click.option("--codec", metavar="FILE", help="With --local: the codec file, unless the codec is a shipped one.")
@click.option(
    "--format",
    "suffix",
    type=click.Choice([suffix[1:] for suffix in SUFFIXES]),
    help="Format in a folder or pipe. [default: npy]",
)
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), help="dtype of the result; default: what was compressed.")
@click.option("--ctx", type=INPUT_FILE, help="Feature file with the context, for context codecs.")
@resume_option
@server_options
@json_option
def decompress(
    units: tuple[str, ...],
    output: str,
    codec: str | None,
    suffix: str | None,
    dtype: str | None,
    ctx: Path | None,
    resume: bool,
    server: Server,
    local: bool,
    as_json: bool,
) -> int:
    """Decompress UNITS, .mpc files, into feature files."""
    if codec is not None and not local:
        raise click.UsageError("--codec needs --local: a server finds the codec by itself")
    ending = f".{suffix or 'npy'}"
    todo = plan(units, output, inputs=(_UNIT,), suffix=ending)
    if not todo.batch and output != PIPE:
        if suffix is not None and todo.jobs[0].output.suffix != ending:
            raise click.UsageError(f"--format {suffix} and the output {output!r} disagree")
        check_output(todo.jobs[0].output)
    context = None if ctx is None else read_arrays(ctx)
    # The unit itself says which codec and which context gave it: no others can decode it.
    made = {"dtype": dtype}
    if local:
        with server.if_named() as source:
            code = _each(_Codecs(codec, source).decompress, {"dtype": dtype, "ctx": context})
            return _decompress(todo, resume, as_json, made, ending, code)
    with server.connect() as client:

        def code_there(items: Iterable[CodedUnit]) -> Iterator[Decoded | MPCompressError]:
            return client.decompress_many(((unit, context) for unit in items), dtype=dtype, errors="return")

        return _decompress(todo, resume, as_json, made, ending, code_there)


def _decompress(todo: Plan, resume: bool, as_json: bool, made: dict[str, Any], ending: str, code: Any) -> int:
    def encode(job: Job, found: Decoded) -> tuple[bytes, dict[str, Any]]:
        piped = str(job.output) == PIPE
        data = file_bytes(found, ending if piped else job.output.suffix, str(job.output))
        named = found if isinstance(found, dict) else {"h_hat": found}
        tensors = [{"name": name, "dtype": x.dtype.name, "shape": list(x.shape)} for name, x in named.items()]
        return data, {"output": str(job.output), "tensors": tensors}

    work: Batch[CodedUnit, Decoded] = Batch(
        title="decompress",
        read=lambda job: load_unit(job.source),
        code=code,
        encode=encode,
        record=_record(todo, resume, made),
    )
    outcome = _run(work, todo, resume)
    if todo.batch:
        return emit_batch(outcome, as_json, into=todo.folder)
    for facts in outcome.done:
        what = ", ".join(f"{x['name']} {x['dtype']} {tuple(x['shape'])}" for x in facts["tensors"])
        say(facts, f"{facts['output']}: {what}", as_json, piped=str(todo.jobs[0].output) == PIPE)
    return _skipped(outcome, as_json)


class _Codecs:
    """Codecs of this device by id, each loaded when the first of its units comes."""

    def __init__(self, chosen: str | None, target: CompressionClient | None) -> None:
        self._target = target
        self._chosen = None if chosen is None else EdgeCodec.load(chosen)
        self._loaded: dict[str, EdgeCodec] = {}

    def decompress(self, unit: CodedUnit, **arguments: Any) -> Decoded:
        return self._codec(unit.codec_id).decompress(unit, **arguments)

    def _codec(self, codec_id: str) -> EdgeCodec:
        if self._chosen is not None:
            return self._chosen
        if codec_id not in self._loaded:
            try:
                self._loaded[codec_id] = EdgeCodec.load(codec_id, target=self._target)
            except UnknownCodecError as error:
                raise UnknownCodecError(f"{error.message}; or name its file with --codec") from error
        return self._loaded[codec_id]


def _each(function: Any, arguments: dict[str, Any]) -> Any:
    """One item after the other on this device, errors in their items' places."""

    def code(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            try:
                result = function(item, **arguments)
            except MPCompressError as error:
                result = error
            yield result

    return code


def _record(todo: Plan, resume: bool, made: dict[str, Any]) -> Record | None:
    """Of one file a note is only taken when it is asked for: its folder is the user's."""
    return Record(todo.folder, made) if todo.batch or resume else None


def _run(work: Batch[Any, Any], todo: Plan, resume: bool) -> Outcome:
    return work.run(todo.jobs, resume=resume) if todo.batch else work.run_one(todo.jobs[0], resume=resume)


def _skipped(outcome: Outcome, as_json: bool) -> int:
    for output in outcome.skipped:
        say({"output": output, "skipped": True}, f"{output}: done before", as_json, piped=False)
    return outcome.exit_code
