"""What the service costs beside its codecs: CPU per item, latencies, bytes per second.

    python benchmarks/service_overhead.py                     # some minutes; --quick for fewer items
    python benchmarks/service_overhead.py --triton PYTHON     # a system Python 3.11 with nvidia-pytriton and [edge]

Starts a server of its own, and compares within the run, in turns, medians: items over RPC with the same loop in this
process, large items with a bare gRPC byte stream, both with Triton. CPU time is that of client and server. Numerical
libraries get one thread each.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import grpc
import numpy as np
from bare_grpc import answers
from service_costs import HERE, measure, started, wait_for
from service_streaming import streaming
from store_codec import HollowCodec
from triton_compare import against_triton

from mpcompress import registry
from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec
from mpcompress_client import CompressionClient
from mpcompress_client.cli.load import Load, run_load

KLT = "klt-imgfocus-vits14-final"


def neural(device: str) -> list[registry.CodecSpec]:
    """Codecs with random weights, which are as much work as trained ones."""
    sizes = {"num_prefix_tokens": 1, "token_res": [16, 16], "seed": 0, "device": device}
    return [
        registry.CodecSpec(id=f"{family}-{h_dim}", family=family, options={"h_dim": h_dim, **sizes})
        for family in ("vit_union", "vit_union_exact")
        for h_dim in (96, 384)
    ]


def config(codecs: list[registry.CodecSpec]) -> str:
    """Settings of the server; `codecs` are those that need torch."""
    lines = ['listen = "127.0.0.1:0"', 'plugins = ["store_codec"]', "allow_untrained = true"]
    lines += ["[executors]", "numeric_threads = 1", "[[codecs]]", f'id = "{KLT}"']
    for family in ("store", "hollow"):
        lines += ["[[codecs]]", f'id = "{family}"', f'family = "{family}"']
    for spec in codecs:
        options = ", ".join(f"{name} = {json.dumps(value)}" for name, value in spec.options.items())
        lines += ["[[codecs]]", f'id = "{spec.id}"', f'family = "{spec.family}"', f"options = {{ {options} }}"]
    return "\n".join(lines)


def features(count: int) -> list[np.ndarray]:
    """Tensors (257, 384), float16, 197 kB, of the layer that the codec was calibrated for: a few, again and again."""
    shipped = np.load(HERE.parent / "tests/data/features_final.npy")
    return [shipped[index % len(shipped)].copy() for index in range(count)]


def per_item(
    client: CompressionClient, server: subprocess.Popen[str], codec: FeatureCodec, items: list[np.ndarray], rounds: int
) -> None:
    """CPU and throughput of many items over one stream, against the loop in this process, in turns."""
    spec = TensorSpec(name="h", dtype=items[0].dtype.name, shape=items[0].shape)
    params = codec.resolve([spec], CodingParams())

    def loop() -> None:
        for h in items:
            codec.compress([{"h": h}], params)

    def remote() -> None:
        for _unit in client.compress_many(items, codec=codec.id):
            pass

    def one_by_one() -> None:
        for h in items:
            client.compress(h, codec=codec.id)

    loop(), remote()
    costs = [(measure(loop, None), measure(remote, server), measure(one_by_one, server)) for _ in range(rounds)]
    n = len(items)
    in_loop, many, single = (statistics.median(cost[way].cpu_s for cost in costs) / n * 1e3 for way in range(3))
    beside = [1e3 / n * statistics.median(cost[way].cpu_s - cost[0].cpu_s for cost in costs) for way in (1, 2)]
    speed = statistics.median(cost[0].wall_s / cost[1].wall_s for cost in costs)
    print(
        f"| {codec.id}, {items[0].nbytes / 1e3:.0f} kB | {in_loop:.2f} | {many:.2f} | {beside[0]:+.2f} "
        f"| {single:.2f} | {beside[1]:+.2f} | {100 * speed:.0f} % |",
        flush=True,
    )


def bare_items(items: list[np.ndarray], rounds: int) -> None:
    """CPU of a bare gRPC stream that carries what items are, and has a short answer for each."""
    views = [memoryview(h.view(np.uint8).reshape(-1)) for h in items]
    with started([str(HERE / "bare_grpc.py")]) as bare:
        assert bare.stdout is not None
        with grpc.insecure_channel(f"127.0.0.1:{int(bare.stdout.readline())}") as channel:

            def stream() -> None:
                if answers(channel, views) != len(views):
                    raise SystemExit("answers were lost")

            stream()
            cost = statistics.median(measure(stream, bare).cpu_s for _ in range(rounds))
    print(f"| bare gRPC, {items[0].nbytes / 1e3:.0f} kB | | {cost / len(items) * 1e3:.2f} | | | | |", flush=True)


def latencies(client: CompressionClient, items: list[np.ndarray], codec_id: str, seconds: float) -> None:
    """Closed loops."""
    print("\n| streams | items/s | p50 ms | p99 ms |\n|---|---|---|---|")
    for concurrency in (1, 8, 64):
        samples = run_load(
            Load(concurrency=concurrency, seconds=seconds),
            lambda: client.compress(items[0], codec=codec_id) and None,
            lambda _seconds: None,
            None,
        )
        p50, p99 = np.percentile(samples.latencies_s, [50, 99]) * 1e3
        print(
            f"| {concurrency} | {len(samples.latencies_s) / samples.wall_s:.0f} | {p50:.1f} | {p99:.1f} |", flush=True
        )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer items")
    parser.add_argument("--no-neural", dest="neural", action="store_false", help="calibrated codecs only: no torch")
    parser.add_argument("--device", default="cpu", help="of the neural codecs: cpu, cuda, cuda:N")
    parser.add_argument("--triton", metavar="PYTHON", help="a Python with nvidia-pytriton, to be compared with")
    parser.add_argument("--only", choices=("items", "latency", "streaming", "triton"), help="one table")
    args = parser.parse_args()
    count, rounds, seconds = (50, 5, 3.0) if args.quick else (400, 9, 10.0)

    def wanted(table: str) -> bool:
        return args.only in (None, table)

    codecs = neural(args.device) if args.neural and wanted("items") else []
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        settings, port = Path(folder) / "server.toml", Path(folder) / "port"
        settings.write_text(config(codecs))
        command = ["-m", "mpcompress_server", "serve", "--config", str(settings), "--port-file", str(port)]
        with started(command) as server, CompressionClient(wait_for(port, server)) as client:
            items = features(count)
            if wanted("items"):
                print("| CPU ms per item | loop | one stream | beside | a call each | beside | items/s of the loop's |")
                print("|---|---|---|---|---|---|---|")
                codec = registry.load(registry.preset(KLT))
                codec.warm_up()
                bare_items(items, rounds)
                per_item(client, server, HollowCodec("hollow"), items, rounds)
                per_item(client, server, codec, items, rounds)
                for spec in codecs:
                    few = [h[:, : spec.options["h_dim"]].astype(np.float32) for h in items[: count // 10]]
                    per_item(client, server, registry.load(spec), few, rounds)
            if wanted("latency"):
                latencies(client, items, KLT, seconds)
            if wanted("streaming"):
                streaming(client, server, rounds)
            if args.triton and wanted("triton"):
                against_triton(client, server, (KLT, items[0]), args.triton, rounds)


if __name__ == "__main__":
    main()
