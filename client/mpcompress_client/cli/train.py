"""`mpcompress train`: trains a neural codec on the user's own features. Needs the extra `codecs`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mpcompress_client.cli.files import write_whole
from mpcompress_client.cli.neural import id_from
from mpcompress_client.cli.options import json_option, output_option, parameter
from mpcompress_client.library import library

if TYPE_CHECKING:
    from mpcompress.training import RatePoint, TrainingConfig, TrainingResult

_TRAIN_HELP = """\
Train a neural codec for one rate: the loss is bpfp + LMBDA * NMSE, so a larger LMBDA is finer and costs more bits.

--features is a folder of .npy, .npz and .safetensors files, or one file; every array is (L, C) or (B, L, C), all of one
shape. Every tenth tensor is held out and coded for real as training goes on, unless --validation has others. Stopped
with Ctrl-C or by a crash, the same command with --resume goes on from the last checkpoint. Writes the codec file, and
its model card next to it. For minutes of training without a GPU, `mpcompress calibrate` gives far better codecs.

\b
Example:
  mpcompress train --family vit_union --features features/ --lmbda 10 -o vit.safetensors --prefix-tokens 1
  mpcompress train --family feature_hyperprior --features f/ --lmbda 10 --condition dinov2-cls -o h.safetensors
"""

_INPUT = click.Path(exists=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(short_help="Train a neural codec on your own features.", help=_TRAIN_HELP)
@click.option("--family", required=True, type=click.Choice(["vit_union", "vit_union_ctx", "feature_hyperprior"]))
@click.option("--features", required=True, type=_INPUT, help="Folder or file to train on.")
@click.option("--lmbda", required=True, type=click.FloatRange(min=0, min_open=True), help="1 to 100 is useful.")
@output_option
@click.option("--validation", type=_INPUT, help="Folder or file to code instead of every tenth tensor.")
@click.option("--context", type=_FOLDER, help="vit_union_ctx: folder with a (C, H, W) NAME.npy for each NAME.npy.")
@click.option("--validation-context", type=_FOLDER, help="The same for --validation.")
@click.option("--steps", type=click.IntRange(1), default=10_000, show_default=True)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--learning-rate", type=float, default=1e-4, show_default=True)
@click.option("--grid", nargs=2, type=click.IntRange(1, 65535), metavar="H W", help="Token grid; default: square.")
@click.option("--prefix-tokens", type=click.IntRange(0, 1024), default=0, help="Tokens in front (CLS, registers).")
@click.option(
    "--condition", metavar="NAME", help="Feature hyperprior: dinov2-cls, dinov2-seg, llama3-csr, sd3-tti, ..."
)
@click.option(
    "--patch", nargs=2, type=click.IntRange(64), metavar="H W", default=(256, 256), help="Crops of maps. [256 256]"
)
@click.option(
    "--size", "sizes", multiple=True, type=parameter, metavar="NAME=VALUE", help="y_dim=128, groups=[16,48], N=64"
)
@click.option("--cold-start", is_flag=True, help="Start from random weights instead of a fitted transform.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:N or auto.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--validate-every", type=click.IntRange(1), default=1000, show_default=True, metavar="STEPS")
@click.option("--validation-tensors", type=click.IntRange(1), default=16, show_default=True)
@click.option("--checkpoint", type=click.Path(dir_okay=False, path_type=Path), help="Default: the output with .ckpt.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=500, show_default=True, metavar="STEPS")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint if it is there.")
@click.option("--id", "codec_id", metavar="ID", help="The codec's id; default: the name of the output.")
@click.option("--description", default="", metavar="TEXT", help="Which model, which layer, which data.")
@json_option
def train(
    features: Path,
    output: Path,
    validation: Path | None,
    context: Path | None,
    validation_context: Path | None,
    sizes: tuple[tuple[str, Any], ...],
    grid: tuple[int, int] | None,
    cold_start: bool,
    checkpoint: Path | None,
    resume: bool,
    codec_id: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a neural codec for one rate."""
    with library():
        from mpcompress.training import TrainingConfig, train
        from mpcompress.training.data import FeatureSet

        config = TrainingConfig(
            codec_id=codec_id or id_from(output),
            sizes=dict(sizes),
            token_res=grid,
            warm_start=not cold_start,
            **options,
        )
        trained_on = FeatureSet.open(features, context)
        held_out = None if validation is None else FeatureSet.open(validation, validation_context)
    state = checkpoint or output.with_suffix(".ckpt")
    with library(), _Bar(config) as bar:
        result = train(
            config,
            trained_on,
            validation=held_out,
            checkpoint=state,
            resume=resume,
            progress=bar.step,
            on_point=bar.point,
        )
    card = output.with_suffix(".md")
    write_whole(output, result.file.to_bytes())
    write_whole(card, result.model_card().encode())
    _say(result, output, card, as_json)


class _Bar:
    """A progress bar on standard error where that is a terminal; measurements as lines."""

    def __init__(self, config: TrainingConfig) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bars.add_task("training", total=config.steps)

    def __enter__(self) -> _Bar:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def step(self, done: int, total: int, rate: float, error: float) -> None:
        """After each step."""
        text = f"bpfp {rate:.3f}  NMSE {error:.4f}"
        self._bars.update(self._task, completed=done, total=total, description=text)

    def point(self, point: RatePoint) -> None:
        """After each measurement."""
        self._bars.console.print(f"step {point.step}: bpfp {point.bpfp:.4f}, NMSE {point.nmse:.4f} on held-out tensors")


def _say(result: TrainingResult, output: Path, card: Path, as_json: bool) -> None:
    report = result.report
    if as_json:
        facts = {"output": str(output), "model_card": str(card), "fingerprint": result.fingerprint.hex()}
        click.echo(json.dumps({**facts, "id": result.file.id, **report.to_dict()}))
        return
    point = report.points[-1]
    click.echo(
        f"{output}: codec {result.file.id}, {report.parameters} parameters, {report.steps} steps on {report.tensors} "
        f"tensors; bpfp {point.bpfp:.4f}, NMSE {point.nmse:.4f} on {report.validation_tensors} held-out ones"
    )
