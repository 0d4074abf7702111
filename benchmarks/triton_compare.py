"""The service against Triton: the same codecs, one client."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from service_costs import HERE, Cost, measure, started

from mpcompress_client import CompressionClient
from mpcompress_client.cli.load import process_cpu_s


def against_triton(
    client: CompressionClient,
    server: subprocess.Popen[str],
    klt: tuple[str, np.ndarray],
    python: str,
    rounds: int,
) -> None:
    """The same codecs as Python models in Triton, called one by one from one client, in turns with the service."""
    port, script = 18301, str(HERE / "triton_model.py")
    large = np.random.default_rng(0).standard_normal((16384, 1024)).astype(np.float32)
    print("\n| item, one client | Triton ms | service ms | Triton CPU ms | service CPU ms | speed | CPU |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with started([script, "serve", str(port)], python) as triton, tempfile.TemporaryDirectory() as folder:
        if triton.stdout is None or not any("ready" in line for line in triton.stdout):
            raise SystemExit("Triton did not start")
        for model, codec, h, count, stream in (
            ("store", "store", large, 2, False),
            ("klt", klt[0], klt[1], 50, False),
            ("klt", klt[0], klt[1], 50, True),
        ):
            np.save(file := Path(folder) / "item.npy", h)

            def service(h: np.ndarray = h, codec: str = codec, count: int = count, stream: bool = stream) -> None:
                if stream:
                    for _unit in client.compress_many([h] * count, codec=codec):
                        pass
                else:
                    for _ in range(count):
                        client.compress(h, codec=codec)

            with started([script, "call", str(port), model, str(file)], python) as caller:
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
