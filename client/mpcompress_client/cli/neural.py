"""`mpcompress import-checkpoint` and `mpcompress train`: codec files of neural codecs. Needs the extra `codecs`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from mpcompress_client.cli.files import write_whole
from mpcompress_client.cli.options import INPUT_FILE, json_option, output_option
from mpcompress_client.library import library

_IMPORT_HELP = """\
Make a codec file of CHECKPOINT, the weights of one of the documented neural codecs.

Class and sizes follow from names and shapes; wrappers such as {"state_dict": ...} and "module." prefixes are taken off,
and missing tables are computed. Only tensors are read: a file with other Python objects in it is refused.

\b
Example:
  mpcompress import-checkpoint vit.pth -o vit.safetensors --grid 16 16
  mpcompress import-checkpoint vit.pth -o vit-exact.safetensors --exact
  mpcompress import-checkpoint hyper.pth -o hyper.safetensors --condition dinov2-cls
"""


@click.command("import-checkpoint", short_help="Make a codec file of a neural codec's weights.", help=_IMPORT_HELP)
@click.argument("checkpoint", type=INPUT_FILE)
@output_option
@click.option("--id", "codec_id", metavar="ID", help="The codec's id; default: the name of the output.")
@click.option("--description", default="", metavar="TEXT", help="Which model, which layer, which data.")
@click.option("--grid", nargs=2, type=click.IntRange(1, 65535), metavar="H W", help="Token grid it was trained for.")
@click.option("--prefix-tokens", type=click.IntRange(0, 1024), help="Refuse weights for another number of them.")
@click.option(
    "--condition", metavar="NAME", help="Bounds and packing of a feature hyperprior: dinov2-cls, llama3-csr, ..."
)
@click.option("--exact", is_flag=True, help="Convert a ViT codec to fixed point: its units decode on every machine.")
@click.option("--inside", default="", metavar="PREFIX", help="The codec's name inside a larger model: codec.")
@json_option
def import_checkpoint(
    checkpoint: Path,
    output: Path,
    codec_id: str | None,
    description: str,
    grid: tuple[int, int] | None,
    prefix_tokens: int | None,
    condition: str | None,
    exact: bool,
    inside: str,
    as_json: bool,
) -> None:
    """Make a codec file of the weights of a documented neural codec."""
    with library():
        from mpcompress.checkpoints import import_checkpoint as convert

        imported = convert(
            checkpoint,
            codec_id=codec_id or id_from(output),
            description=description,
            token_res=grid,
            prefix_tokens=prefix_tokens,
            condition=condition,
            prefix=inside,
            exact=exact,
        )
    write_whole(output, imported.file.to_bytes())
    file = imported.file
    if as_json:
        facts: dict[str, Any] = {
            "output": str(output),
            "id": file.id,
            "family": file.family,
            "class": imported.class_name,
            "sizes": dict(file.sizes),
            "parameters": imported.parameters,
            "computed_tables": imported.computed_tables,
        }
        click.echo(json.dumps(facts))
        return
    sizes = ", ".join(f"{name}={value}" for name, value in file.sizes.items())
    tables = "; tables computed" if imported.computed_tables else ""
    click.echo(f"{output}: {imported.class_name}({sizes}), {imported.parameters} parameters{tables}")
    click.echo(f"\nServe it:\n\n{imported.config_entry(output)}")


def id_from(output: Path) -> str:
    """An id from a file name: what an id cannot hold becomes a hyphen."""
    return re.sub(r"[^a-z0-9._-]+", "-", output.stem.lower()).strip("-._")[:64] or "codec"
