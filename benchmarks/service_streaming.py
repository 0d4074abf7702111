"""Large items against a bare gRPC byte stream: bytes per second, and CPU time per byte."""

from __future__ import annotations

import statistics
import subprocess

import grpc
import numpy as np
from bare_grpc import echo
from service_costs import HERE, measure, started

from mpcompress_client import CompressionClient
from mpcompress_proto.tensors import MAX_CHUNK_BYTES

_SHAPE = (16384, 1024)


def streaming(client: CompressionClient, server: subprocess.Popen[str], rounds: int) -> None:
    """64 MiB there and 64 MiB back, in turns with the bare stream.

    `hollow`: a tensor is compressed and its unit decompressed, by a codec that does nothing, so that the tensor's bytes
    travel once in each direction. `store`: one call whose unit is as large as its tensor: its payload is copied by its
    codec, and has a checksum made here and there.
    """
    h = np.random.default_rng(0).standard_normal(_SHAPE).astype(np.float32)
    data = memoryview(h.view(np.uint8).reshape(-1))
    with started([str(HERE / "bare_grpc.py")]) as bare:
        assert bare.stdout is not None
        options = [("grpc.max_receive_message_length", 4 << 20)]
        with grpc.insecure_channel(f"127.0.0.1:{int(bare.stdout.readline())}", options=options) as channel:

            def plain() -> None:
                if echo(channel, data, MAX_CHUNK_BYTES) != h.nbytes:
                    raise SystemExit("bytes were lost")

            def hollow() -> None:
                client.decompress(client.compress(h, codec="hollow"))

            def store() -> None:
                client.compress(h, codec="store")

            plain(), hollow(), store()
            costs = [(measure(plain, bare), measure(hollow, server), measure(store, server)) for _ in range(2 * rounds)]
    print("\n| 64 MiB there and 64 MiB back | GB/s | CPU s per GB | speed | CPU |\n|---|---|---|---|---|")
    gigabytes = 2 * h.nbytes / 1e9
    for way, name in enumerate(("bare gRPC", "service, hollow", "service, store")):
        wall = statistics.median(cost[way].wall_s for cost in costs)
        cpu = statistics.median(cost[way].cpu_s for cost in costs)
        faster = statistics.median(cost[0].wall_s / cost[way].wall_s for cost in costs)
        cheaper = statistics.median(cost[0].cpu_s / cost[way].cpu_s for cost in costs)
        columns = f"{gigabytes / wall:.2f} | {cpu / gigabytes:.2f} | {100 * faster:.0f} % | {100 * cheaper:.0f} %"
        print(f"| {name} | {columns} |", flush=True)
