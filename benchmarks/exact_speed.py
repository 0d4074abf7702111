"""CPU time of the ViT codec, stage by stage: CompressAI's path, this package's in float32, and the exact one.

    python benchmarks/exact_speed.py [--h-dim 384 1536] [--grid 16 37] [--batch 1 4 8] [--repeats N] [--seconds S]

One process, one thread; CPU milliseconds of the thread per sample, medians of n rounds, the three paths in turns; n is
--repeats, or fewer where these take more than --seconds of CPU time. Stages:

    analysis    blocks, f_a, h_a            synthesis   f_s, blocks
    coding      entropy models or coder     parameters  everything else: hyper synthesis, contexts, parameter networks

CompressAI's path is its own classes (hyper codec, channel groups, checkerboard, Gaussian) around the same weights. It
takes the whole batch at once, and even boards only: for a latent with odd sides it gets the next even board, and its
times are scaled by the number of positions. Weights are random, their latents scaled so that a unit has a trained
one's rate.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpcompress.exact.convert import exact_from
from mpcompress.exact.stream import LatentReader, LatentWriter
from mpcompress.exact.vit_union import ExactVitUnion
from mpcompress.latent_codecs import VitUnionLatentCodec
from mpcompress.latent_codecs._vit_base import VitGeometry
from mpcompress.layers import _compressai as theirs
from mpcompress.layers import crop, pad_to_even

Grid = tuple[int, int]
STAGES = ("analysis", "parameters", "coding", "synthesis")


def build(h_dim: int, seed: int = 0) -> VitUnionLatentCodec:
    """A codec whose latents and scales are spread like those of trained ones."""
    torch.manual_seed(seed)
    codec = VitUnionLatentCodec(h_dim=h_dim).eval()
    with torch.no_grad():
        codec.f_a[2].weight *= 10
        codec.hyper_lc.h_a[4].weight *= 40
        for k, size in enumerate(codec.groups):
            codec.y_lc[f"y{k}"].entropy_parameters[4].bias[:size] = torch.logspace(-0.9, 0.5, size)
    codec.update()
    return codec


class CompressaiPath:
    """The same networks in CompressAI's own latent codecs, with CompressAI's coder."""

    def __init__(self, codec: VitUnionLatentCodec) -> None:
        self.codec = codec
        bottleneck = theirs.EntropyBottleneck(codec.z_dim)
        bottleneck.__dict__.update(_without_cache(codec.hyper_lc.entropy_bottleneck))
        self.bottleneck = bottleneck
        self.hyper = theirs.HyperLatentCodec(bottleneck, codec.hyper_lc.h_a, codec.hyper_lc.h_s, quantizer="ste")
        channel: Any = codec.y_lc.channel_context
        codecs = {}
        for k in range(len(codec.groups)):
            ours: Any = codec.y_lc[f"y{k}"]
            gaussian = theirs.GaussianConditional(None)
            gaussian.__dict__.update(_without_cache(ours.latent_codec["y"].gaussian_conditional))
            context = theirs.CheckerboardMaskedConv2d(
                codec.groups[k], 2 * codec.groups[k], kernel_size=5, stride=1, padding=2
            )
            context.load_state_dict(ours.context_prediction.state_dict())
            codecs[f"y{k}"] = theirs.CheckerboardLatentCodec(
                latent_codec={
                    "y": theirs.GaussianConditionalLatentCodec(gaussian_conditional=gaussian, quantizer="ste")
                },
                context_prediction=context,
                entropy_parameters=ours.entropy_parameters,
            )
        self.y = theirs.ChannelGroupsLatentCodec(
            latent_codec=codecs,
            channel_context={f"y{k}": channel[f"y{k}"] for k in range(1, len(codec.groups))},
            groups=list(codec.groups),
        ).eval()

    def compress(self, h: Tensor, grid: tuple[int, int]) -> Any:
        """Strings of a batch."""
        geometry = VitGeometry(token_res=grid)
        y = self.codec._analyse(h, geometry)
        hyper = self.hyper.compress(pad_to_even(y))
        out = self.y.compress(y, crop(hyper["params"], geometry.y))
        return out["strings"], hyper["strings"], out["shape"], hyper["shape"]

    def decompress(self, unit: Any, grid: tuple[int, int]) -> Tensor:
        """h_hat of a batch."""
        strings, z_strings, shape, z_shape = unit
        geometry = VitGeometry(token_res=grid)
        hyper = self.hyper.decompress(z_strings, z_shape)
        y_hat = self.y.decompress(strings, shape, crop(hyper["params"], geometry.y))["y_hat"]
        h_hat: Tensor = self.codec._synthesis(y_hat, geometry)["h_hat"]
        return h_hat


def _without_cache(model: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in model.__dict__.items() if name != "_table_cache"}


class Clock:
    """CPU time per stage; time inside a nested stage counts for that one only."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)
        self._stages: list[str] = []
        self._since = 0.0

    def start(self) -> None:
        """Begin with the stage that gets what no other does."""
        self._stages = ["parameters"]
        self._since = time.thread_time()

    def enter(self, stage: str) -> None:
        """Charge what has passed, then go to another stage."""
        self._charge()
        self._stages.append(stage)

    def leave(self) -> None:
        """Charge what has passed, then go back."""
        self._charge()
        self._stages.pop()

    def _charge(self) -> None:
        now = time.thread_time()
        self.spent[self._stages[-1]] += now - self._since
        self._since = now


Target = tuple[str, Any, str]
"""Stage, object or class, name of its method."""


@contextmanager
def watching(clock: Clock, targets: Sequence[Target]) -> Iterator[None]:
    """Has the methods of `targets` charged to their stages."""
    replaced = []
    for stage, owner, name in targets:
        original = getattr(owner, name)

        def timed(*args: Any, _stage: str = stage, _original: Any = original, **kwargs: Any) -> Any:
            clock.enter(_stage)
            try:
                return _original(*args, **kwargs)
            finally:
                clock.leave()

        replaced.append((owner, name, owner.__dict__.get(name)))
        if isinstance(owner, type):
            setattr(owner, name, timed)
        else:
            owner.__dict__[name] = timed
    try:
        yield
    finally:
        for owner, name, old in replaced:
            if isinstance(owner, type):
                setattr(owner, name, old)
            else:
                del owner.__dict__[name]


@dataclass(frozen=True, kw_only=True)
class Path:
    """One column."""

    name: str
    compress: Callable[[Tensor, Grid], Any]
    decompress: Callable[[Any, Grid], Any]
    targets: Sequence[Target]

    def measure(self, h: Tensor, grid: Grid) -> dict[str, dict[str, float]]:
        """Milliseconds per sample of one compress and one decompress."""
        times = {}
        unit = None
        for operation in ("compress", "decompress"):
            clock = Clock()
            with watching(clock, self.targets), torch.no_grad():
                clock.start()
                if operation == "compress":
                    unit = self.compress(h, grid)
                else:
                    self.decompress(unit, grid)
                clock.leave()
            scaled = {stage: 1000 * spent / len(h) for stage, spent in clock.spent.items()}
            times[operation] = {**scaled, "whole": sum(scaled.values())}
        return times


def paths(codec: VitUnionLatentCodec, exact: ExactVitUnion) -> list[Path]:
    """The three columns, around the same weights."""
    compressai = CompressaiPath(codec)
    networks: list[Target] = [("analysis", codec, "_analyse"), ("synthesis", codec, "_synthesis")]
    groups = [f"y{k}" for k in range(len(codec.groups))]
    y_lc: Any = codec.y_lc
    models = [y_lc[name].gaussian.gaussian_conditional for name in groups]
    their_y: Any = compressai.y
    their_models = [their_y[name].latent_codec["y"].gaussian_conditional for name in groups]
    return [
        Path(
            name="CompressAI",
            compress=compressai.compress,
            decompress=compressai.decompress,
            targets=[
                *networks,
                ("analysis", codec.hyper_lc.h_a, "forward"),
                *_coding([*their_models, compressai.bottleneck], ("compress", "decompress")),
                *_coding(their_models, ("build_indexes",)),
            ],
        ),
        Path(
            name="float32",
            compress=lambda h, grid: codec.compress(h, grid),
            decompress=lambda unit, grid: codec.decompress(unit["strings"], unit["pstate"]),
            targets=[
                *networks,
                ("analysis", codec.hyper_lc, "analyse"),
                *_coding([codec.hyper_lc.entropy_bottleneck], ("encode", "decompress")),
                *_coding(models, ("encode_scaled", "decode_scaled")),
            ],
        ),
        Path(
            name="exact",
            compress=lambda h, grid: exact.compress(h, token_res=grid),
            decompress=lambda unit, grid: exact.decompress(unit["strings"], unit["pstate"]),
            targets=[
                ("analysis", exact, "_analyse"),
                ("synthesis", exact.net, "_synthesis"),
                *_coding([LatentWriter], ("hyper", "step", "streams")),
                *_coding([LatentReader], ("hyper", "step", "close")),
            ],
        ),
    ]


def _coding(owners: Sequence[Any], names: Sequence[str]) -> list[Target]:
    return [("coding", owner, name) for owner in owners for name in names]


def even_board(grid: Grid) -> Grid:
    """The smallest grid, not below this one, whose latent has even sides."""
    return (grid[0] + 3) // 4 * 4, (grid[1] + 3) // 4 * 4


def table(columns: list[Path], h_dim: int, side: int, batch: int, repeats: int, seconds: float) -> None:
    """Measure and print one configuration: `repeats` rounds, but none begins after `seconds` of CPU time."""
    grid = (side, side)
    theirs_grid = grid if VitGeometry(token_res=grid).y[0] % 2 == 0 else even_board(grid)
    times: dict[str, list[dict[str, dict[str, float]]]] = {path.name: [] for path in columns}
    start = 0.0
    for number in range(repeats + 1):
        if number == 1:
            start = time.thread_time()
        elif number and time.thread_time() - start > seconds:
            break
        for path in columns:
            used = theirs_grid if path.name == "CompressAI" else grid
            # The first round compiles, packs and fills caches.
            h = torch.randn(batch if number else 1, 1 + used[0] * used[1], h_dim)
            found = path.measure(h, used)
            share = math.prod(VitGeometry(token_res=grid).y) / math.prod(VitGeometry(token_res=used).y)
            scaled = {op: {stage: ms * share for stage, ms in row.items()} for op, row in found.items()}
            if number:
                times[path.name].append(scaled)
    print(f"\nh_dim {h_dim}, {side}x{side} tokens, batch {batch}: CPU ms per sample, medians of {len(times['exact'])}")
    print(f"{'':<24}{'CompressAI':>12}{'float32':>10}{'exact':>10}   CompressAI/float32  /exact   exact/float32")
    for operation in ("compress", "decompress"):
        for stage in (*STAGES, "whole"):
            a, b, c = (statistics.median(row[operation][stage] for row in times[path.name]) for path in columns)
            if a and b and c:
                ratios = f"{a / b:18.1f}x{a / c:8.1f}x{c / b:14.2f}x"
                print(f"{operation:<12}{stage:<12}{a:12.1f}{b:10.1f}{c:10.1f}{ratios}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h-dim", type=int, nargs="+", default=(384, 1536))
    parser.add_argument("--grid", type=int, nargs="+", default=(16, 37))
    parser.add_argument("--batch", type=int, nargs="+", default=(1, 4, 8))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for h_dim in arguments.h_dim:
        codec = build(h_dim)
        exact = exact_from(codec)
        columns = paths(codec, exact)
        for side in arguments.grid:
            for batch in arguments.batch:
                table(columns, h_dim, side, batch, arguments.repeats, arguments.seconds)


if __name__ == "__main__":
    main()
