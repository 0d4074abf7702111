"""What the service costs beside its codecs: CPU per item, latencies, bytes per second.

    python benchmarks/service_overhead.py            # a minute or two; --quick for a few seconds

Starts a server of its own, and a bare gRPC byte stream beside it, and compares within the run: items over RPC with the
same loop in this process, large items with the bare stream, in turns, medians. CPU time is that of both processes.
Numerical libraries get one thread each.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import grpc
import numpy as np
from bare_grpc import echo

from mpcompress import registry
from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec
from mpcompress_client import CompressionClient
from mpcompress_client.cli.load import Load, process_cpu_s, run_load
from mpcompress_proto.tensors import MAX_CHUNK_BYTES

HERE = Path(__file__).parent
KLT = "klt-imgfocus-vits14-final"
CONFIG = f"""
listen = "127.0.0.1:0"
plugins = ["store_codec"]
[executors]
numeric_threads = 1
[[codecs]]
id = "{KLT}"
[[codecs]]
id = "store"
family = "store"
"""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Wall and CPU seconds, of this process and of the server's."""

    wall_s: float
    here_s: float
    there_s: float

    @property
    def cpu_s(self) -> float:
        """Of both."""
        return self.here_s + self.there_s


def measure(run: Callable[[], object], server: subprocess.Popen[str] | None) -> Cost:
    """Runs something once."""
    there = process_cpu_s(server.pid) if server else 0.0
    here, wall = time.process_time(), time.perf_counter()
    run()
    wall, here = time.perf_counter() - wall, time.process_time() - here
    after = process_cpu_s(server.pid) if server else 0.0
    if there is None or after is None:
        raise SystemExit("CPU time of another process cannot be read here: this needs Linux")
    return Cost(wall_s=wall, here_s=here, there_s=after - there)


@contextmanager
def started(command: list[str], python: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block."""
    # Another Python gets this project, and has packages of its own.
    own = [str(HERE), str(HERE.parent), *(str(HERE.parent / name) for name in ("proto", "client", "server"))]
    path = os.pathsep.join(own if python != sys.executable else [*own, *filter(None, sys.path)])
    process = subprocess.Popen(
        [python, *command],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(path: Path, process: subprocess.Popen[str]) -> str:
    """What a server writes into its port file."""
    while not path.exists() or not path.read_text().strip():
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.1)
    return path.read_text().strip()


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
    speed = statistics.median(cost[0].wall_s / cost[1].wall_s for cost in costs)
    print(
        f"| {codec.id}, {items[0].nbytes / 1e3:.0f} kB | {in_loop:.2f} | {many:.2f} | {many - in_loop:+.2f} "
        f"| {single - in_loop:+.2f} | {100 * speed:.0f} % |",
        flush=True,
    )


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


def streaming(client: CompressionClient, server: subprocess.Popen[str], rounds: int) -> None:
    """64 MiB there and back: compress, then decompress, with a codec that stores; the bare stream in turns with it."""
    h = np.random.default_rng(0).standard_normal((16384, 1024)).astype(np.float32)
    with started([str(HERE / "bare_grpc.py")]) as bare:
        assert bare.stdout is not None
        options = [("grpc.max_receive_message_length", 4 << 20)]
        with grpc.insecure_channel(f"127.0.0.1:{int(bare.stdout.readline())}", options=options) as channel:
            data = memoryview(h.view(np.uint8).reshape(-1))

            def plain() -> None:
                if echo(channel, data, MAX_CHUNK_BYTES) != h.nbytes:
                    raise SystemExit("bytes were lost")

            def service() -> None:
                client.compress(h, codec="store")

            plain(), service()
            costs = [(measure(plain, bare), measure(service, server)) for _ in range(rounds)]
    gigabytes = 2 * h.nbytes / 1e9
    print("\n| 64 MiB there and 64 MiB back | GB/s | CPU s per GB |\n|---|---|---|")
    for way, name in enumerate(("bare gRPC", "service")):
        wall = statistics.median(cost[way].wall_s for cost in costs)
        cpu = statistics.median(cost[way].cpu_s for cost in costs)
        print(f"| {name} | {gigabytes / wall:.2f} | {cpu / gigabytes:.2f} |")
    wall = statistics.median(bare.wall_s / own.wall_s for bare, own in costs)
    cpu = statistics.median(bare.cpu_s / own.cpu_s for bare, own in costs)
    print(f"| service / bare | {100 * wall:.0f} % | {100 * cpu:.0f} % of its bytes per CPU second |", flush=True)


def against_triton(client: CompressionClient, server: subprocess.Popen[str], python: str, rounds: int) -> None:
    """The same codecs as Python models in Triton, called one by one from one client, in turns with the service."""
    port, script = 18301, str(HERE / "triton_model.py")
    print("\n| item, one client | Triton ms | service ms | Triton CPU ms | service CPU ms | speed | CPU |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with started([script, "serve", str(port)], python) as triton:
        if triton.stdout is None or not any("ready" in line for line in triton.stdout):
            raise SystemExit("Triton did not start")
        for model, codec, shape, dtype, count, stream in (
            ("store", "store", (16384, 1024), "float32", 2, False),
            ("klt", KLT, (257, 384), "float16", 50, False),
            ("klt", KLT, (257, 384), "float16", 50, True),
        ):
            h = np.random.default_rng(0).standard_normal(shape).astype(dtype)

            def service(h: np.ndarray = h, codec: str = codec, count: int = count, stream: bool = stream) -> None:
                if stream:
                    for _unit in client.compress_many([h] * count, codec=codec):
                        pass
                else:
                    for _ in range(count):
                        client.compress(h, codec=codec)

            with started([script, "call", str(port), model, *map(str, shape), dtype], python) as caller:
                assert caller.stdin is not None
                assert caller.stdout is not None
                costs = []
                for _ in range(rounds + 1):
                    before = process_cpu_s(triton.pid) or 0.0
                    caller.stdin.write(f"{count}\n")
                    caller.stdin.flush()
                    wall, cpu = map(float, caller.stdout.readline().split())
                    there = (process_cpu_s(triton.pid) or 0.0) - before
                    costs.append((Cost(wall_s=wall, here_s=cpu, there_s=there), measure(service, server)))
            costs = costs[1:]  # the first warms up
            ms = [statistics.median(cost[way].wall_s for cost in costs) / count * 1e3 for way in range(2)]
            cpu_ms = [statistics.median(cost[way].cpu_s for cost in costs) / count * 1e3 for way in range(2)]
            name = f"{codec}, {h.nbytes / 1e6:.1f} MB, {'one stream' if stream else 'a call each'}"
            speed = statistics.median(theirs.wall_s / own.wall_s for theirs, own in costs)
            print(
                f"| {name} | {ms[0]:.1f} | {ms[1]:.1f} | {cpu_ms[0]:.1f} | {cpu_ms[1]:.1f} "
                f"| {speed:.2f}x | {cpu_ms[0] / cpu_ms[1]:.2f}x |",
                flush=True,
            )


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer items")
    parser.add_argument("--neural", type=Path, metavar="FILE", help="a file of family vit_union, to be measured too")
    parser.add_argument("--triton", metavar="PYTHON", help="a Python with nvidia-pytriton, to be compared with")
    parser.add_argument("--only", choices=("items", "latency", "streaming", "triton"), help="one table")
    args = parser.parse_args()
    count, rounds, seconds = (50, 3, 2.0) if args.quick else (200, 7, 10.0)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; medians of {rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        config, port = Path(folder) / "server.toml", Path(folder) / "port"
        extra = f'[[codecs]]\nid = "neural"\nfamily = "vit_union"\nweights = "{args.neural}"\n' if args.neural else ""
        config.write_text(CONFIG + extra)
        command = ["-m", "mpcompress_server", "serve", "--config", str(config), "--port-file", str(port)]
        command += ["--allow-untrained"] if args.neural else []
        with started(command) as server, CompressionClient(wait_for(port, server)) as client:
            codec = registry.load(registry.preset(KLT))
            codec.warm_up()
            items = features(count)
            if args.only in (None, "items"):
                print(
                    "| CPU ms per item | loop | RPC, one stream | overhead | a call per item | items/s of the loop's |"
                )
                print("|---|---|---|---|---|---|")
                per_item(client, server, codec, items, rounds)
                if args.neural:
                    spec = registry.CodecSpec(id="neural", family="vit_union", weights=str(args.neural))
                    few = [h.astype(np.float32) for h in items[: count // 10]]
                    per_item(client, server, registry.load(spec), few, min(rounds, 3))
            if args.only in (None, "latency"):
                latencies(client, items, KLT, seconds)
            if args.only in (None, "streaming"):
                streaming(client, server, rounds)
            if args.triton and args.only in (None, "triton"):
                against_triton(client, server, args.triton, rounds)


if __name__ == "__main__":
    main()
