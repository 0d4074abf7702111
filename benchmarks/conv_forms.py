"""Forms of the widest convolution of the entropy parameters, 192 to 192 channels with 5 x 5 taps, on one thread.

    python benchmarks/conv_forms.py [--grid 8 19] [--repeats N]

CPU milliseconds per sample, medians, weights taken from 12 layers in turn ("cold") or from one ("hot"); and whether the
numbers are those of `conv2d` of the sample alone, to the last bit.

    conv2d alone, cold    sample after sample through all layers, as one call per sample does
    conv2d alone, hot     layer after layer for all samples: what this package does in float32
    conv2d of 8           a batch in one product: the rounding of a sample depends on the batch
    unfold + GEMM         (N, C * 25) by (C * 25, positions), the weights as they are stored; unfolding included
    GEMM only             the same without unfolding, packed once more for the product or not
    float64 GEMM          the product of `GemmEngine`, unfolded already
    bytes                 split, int8 product and combination of `LimbEngine`, unfolded already
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mpcompress.exact.engines import GemmEngine, LimbEngine
from mpcompress.exact.fixed import FixedConv

CHANNELS, LAYERS, BATCH = 192, 12, 8


def cpu_ms(function: Callable[[], Tensor], repeats: int) -> float:
    """Median CPU milliseconds of this thread, after a warm-up."""
    times = []
    for number in range(repeats + 2):
        start = time.thread_time()
        function()
        if number > 1:
            times.append(1000 * (time.thread_time() - start))
    return statistics.median(times)


def measure(side: int, repeats: int) -> None:
    """Print one table."""
    weights = [torch.randn(CHANNELS, CHANNELS, 5, 5) / 70 for _ in range(LAYERS)]
    turns = itertools.cycle(weights)
    hot = weights[0]
    batch = torch.randn(BATCH, CHANNELS, side, side)
    x = batch[:1].clone()
    alone = functional.conv2d(x, hot, padding=2)[0].flatten(1)
    columns = functional.unfold(x, 5, padding=2)[0]
    rows, packed = columns.t().contiguous(), hot.flatten(1).t().contiguous()

    layer = FixedConv(25 * CHANNELS, CHANNELS)
    layer.weight.copy_(torch.round(hot.flatten(1)[:, None] * 2**12).to(torch.int16))
    layer.format.copy_(torch.tensor([12, 12, 12]))
    layer.prove("layer")
    integers = torch.round(rows * 2**12).clamp(-32639, 32639)
    doubles, gemm, limbs = integers.to(torch.float64), GemmEngine(), LimbEngine()
    planes = limbs.split(integers.to(torch.int16))

    forms: dict[str, tuple[Callable[[], Tensor], int]] = {
        "conv2d alone, cold": (lambda: functional.conv2d(x, next(turns), padding=2), 1),
        "conv2d alone, hot": (lambda: functional.conv2d(x, hot, padding=2), 1),
        "conv2d of 8, hot": (lambda: functional.conv2d(batch, hot, padding=2)[:1], BATCH),
        "unfold + GEMM, cold": (lambda: next(turns).flatten(1) @ functional.unfold(x, 5, padding=2)[0], 1),
        "unfold + GEMM, hot": (lambda: hot.flatten(1) @ functional.unfold(x, 5, padding=2)[0], 1),
        "GEMM only, hot": (lambda: hot.flatten(1) @ columns, 1),
        "GEMM only, transposed": (lambda: functional.linear(rows, hot.flatten(1)).t(), 1),
        "GEMM only, packed": (lambda: (rows @ packed).t(), 1),
        "float64 GEMM": (lambda: gemm.rows(doubles, layer), 1),
        "bytes": (lambda: limbs.finish(limbs.product(planes, layer), layer), 1),
    }
    print(f"\n{side}x{side} positions{'':<10}{'CPU ms':>8}{'same bits':>12}")
    for name, (function, samples) in forms.items():
        exact = name.startswith(("float64", "bytes"))
        same = "" if exact or "cold" in name else str(torch.equal(function().reshape(CHANNELS, -1), alone))
        print(f"{name:<24}{cpu_ms(function, repeats) / samples:8.2f}{same:>12}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=int, nargs="+", default=(8, 19), help="sides of y")
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        for side in arguments.grid:
            measure(side, arguments.repeats)


if __name__ == "__main__":
    main()
