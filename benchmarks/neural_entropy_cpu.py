"""CPU time of entropy coding in `VitUnionLatentCodec`: this package's stream coder against CompressAI's own.

    python benchmarks/neural_entropy_cpu.py [--repeats N] [--grid H W]

Records what the entropy models of one unit are given (257 tokens of 384 channels: a hyper latent and 16 groups of two
colours, 33 strings), then codes just that with both, alternating, in one process on one thread. Strings and values are
checked to be equal. CPU seconds of this thread, medians; tables are built before the clock starts, as in a server.

"compress" is what a unit costs its encoder: CompressAI's latent codecs decode the strings they have just written to
get y_hat. "encode" leaves that out. Weights are random, their latents scaled so that a unit has a trained one's rate.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from mpcompress.latent_codecs import VitUnionLatentCodec
from mpcompress.latent_codecs._gaussian import GaussianLatentCodec
from mpcompress.latent_codecs._hyper import HyperCodec
from mpcompress.layers._compressai import EntropyBottleneck, GaussianConditional


def build(seed: int = 0) -> VitUnionLatentCodec:
    """A codec at the default sizes whose latents and scales are spread like those of trained ones."""
    torch.manual_seed(seed)
    codec = VitUnionLatentCodec().eval()
    with torch.no_grad():
        codec.f_a[2].weight *= 10
        codec.hyper_lc.h_a[4].weight *= 40
        for k, size in enumerate(codec.groups):
            codec.y_lc[f"y{k}"].entropy_parameters[4].bias[:size] = torch.logspace(-0.9, 0.5, size)
    codec.update()
    return codec


class Recorder:
    """What the entropy models are given while a codec compresses."""

    def __init__(self, codec: VitUnionLatentCodec) -> None:
        self.gaussians: list[tuple[GaussianLatentCodec, torch.Tensor, torch.Tensor]] = []
        self.hypers: list[tuple[HyperCodec, torch.Tensor]] = []
        for module in codec.modules():
            if isinstance(module, GaussianLatentCodec):
                self._wrap_gaussian(module)
        codec.hyper_lc.h_a.register_forward_hook(
            lambda module, args, z: self.hypers.append((codec.hyper_lc, z.detach().clone()))
        )

    def _wrap_gaussian(self, module: GaussianLatentCodec) -> None:
        original = module.encode

        def encode(y: torch.Tensor, params: torch.Tensor) -> tuple[list[bytes], torch.Tensor]:
            self.gaussians.append((module, y.clone(), params.clone()))
            return original(y, params)

        module.__dict__["encode"] = encode


def work(recorder: Recorder) -> tuple[dict[str, Callable[[], Any]], ...]:
    """Per operation: ours and CompressAI's, on the recorded values."""
    z_model = recorder.hypers[0][0].entropy_bottleneck
    z = recorder.hypers[0][1]
    z_theirs = EntropyBottleneck(z_model.channels)
    z_theirs.__dict__.update({k: v for k, v in z_model.__dict__.items() if k != "_table_cache"})
    y_jobs = []
    for codec, y, params in recorder.gaussians:
        model = codec.gaussian_conditional
        theirs = GaussianConditional(None)
        theirs.__dict__.update({k: v for k, v in model.__dict__.items() if k != "_table_cache"})
        scales, means = codec._chunk(params)
        y_jobs.append((model, theirs, y, scales, means))
    strings = [ours.encode_scaled(y, scales, means)[0] for ours, _, y, scales, means in y_jobs]
    z_strings = z_model.compress(z)
    size = z.shape[2:]

    def our_encode() -> Any:
        return [z_model.encode(z)] + [o.encode_scaled(y, s, m) for o, _, y, s, m in y_jobs]

    def our_decode() -> Any:
        return [z_model.decompress(z_strings, size)] + [
            o.decode_scaled(string, s, m) for string, (o, _, _, s, m) in zip(strings, y_jobs, strict=True)
        ]

    def their_encode() -> Any:
        return [z_theirs.compress(z)] + [t.compress(y, t.build_indexes(s), m) for _, t, y, s, m in y_jobs]

    def their_compress() -> Any:
        z_hat = z_theirs.decompress(z_theirs.compress(z), size)
        y_hats = []
        for _, t, y, s, m in y_jobs:
            indexes = t.build_indexes(s)
            y_hats.append(t.decompress(t.compress(y, indexes, m), indexes, means=m))
        return [z_hat, *y_hats]

    def their_decode() -> Any:
        return [z_theirs.decompress(z_strings, size)] + [
            t.decompress(string, t.build_indexes(s), means=m)
            for string, (_, t, _, s, m) in zip(strings, y_jobs, strict=True)
        ]

    for (mine, values), theirs_strings, theirs_values in zip(
        our_encode(), their_encode(), their_compress(), strict=True
    ):
        assert mine == theirs_strings
        assert torch.equal(values, theirs_values)
    for mine, theirs_values in zip(our_decode(), their_decode(), strict=True):
        assert torch.equal(mine, theirs_values)
    ours = {"compress": our_encode, "encode": our_encode, "decode": our_decode}
    theirs = {"compress": their_compress, "encode": their_encode, "decode": their_decode}
    return ours, theirs


def cpu_ms(function: Callable[[], Any]) -> float:
    """CPU milliseconds of this thread for one call."""
    start = time.thread_time()
    function()
    return 1000 * (time.thread_time() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--grid", type=int, nargs=2, default=(16, 16), metavar=("H", "W"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid = tuple(arguments.grid)
    codec = build()
    h = torch.randn(1, 1 + grid[0] * grid[1], 384)
    out = codec.compress(h, grid)  # compiles, builds tables
    whole = [cpu_ms(lambda: codec.compress(h, grid)) for _ in range(5)]
    back = [cpu_ms(lambda: codec.decompress(out["strings"], out["pstate"])) for _ in range(5)]
    recorder = Recorder(codec)
    codec.compress(h, grid)
    with torch.no_grad():
        ours, theirs = work(recorder)
        times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ours}
        for _ in range(arguments.repeats):
            for name, (mine, other) in times.items():
                mine.append(cpu_ms(ours[name]))
                other.append(cpu_ms(theirs[name]))
    size = sum(len(string) for rows in out["strings"].values() for row in rows for string in row)
    symbols = sum(y.numel() for _, y, _ in recorder.gaussians) + recorder.hypers[0][1].numel()
    print(f"VitUnionLatentCodec(h_dim=384), {grid[0]}x{grid[1]} tokens: {symbols} symbols, {size} bytes")
    print(f"CPU ms of one thread per unit, medians of n = {arguments.repeats}\n")
    print(f"{'entropy coding':<16}{'ours':>8}{'CompressAI':>12}{'ratio':>8}")
    for name, (mine, other) in times.items():
        a, b = statistics.median(mine), statistics.median(other)
        print(f"{name:<16}{a:8.2f}{b:12.1f}{b / a:7.1f}x")
    print(f"\nwhole call, ours: compress {statistics.median(whole):.0f}, decompress {statistics.median(back):.0f}")


if __name__ == "__main__":
    main()
