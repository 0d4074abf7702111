"""Getting features into the cloud over slow links: as fp16, compressed on the device, or compressed by the server.

    python benchmarks/edge_links.py                   writes benchmarks/edge_links.json and the tables of docs/edge.md
    python benchmarks/edge_links.py --quick           a few transfers each, prints only

Three ways, over a link of 5, 20 and 100 Mbit/s (a token bucket of its own process between the two ends, per direction):

    fp16     the tensor's bytes through a bare TCP connection, until the other end has acknowledged all of them
    edge     EdgeCodec.compress here, the unit's bytes through the same connection, decompressed there by a real server
             through its Decompress call, then acknowledged
    server   CompressionClient.compress through the link: the tensor goes up, the unit comes back

Real features are those of tests/data, 257 x 384, with the shipped codec. The 1370 x 1536 features (a ViT-g/14 at 518
pixels) are synthetic: smooth fields of a power-law spectrum in a random basis, with a codec that this script calibrates
on 24 of them. Their rate says nothing about a real model; their size and the time to code them do. Bytes are those of
the TCP connections without TCP and IP headers. Medians over n transfers.
"""

# ruff: noqa: E402 - threads are counted when numpy is imported

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # a device's time must not depend on how many cores this machine has

import edge_links_page
import numpy as np

from mpcompress.calibrate import calibrate
from mpcompress.metrics import nmse
from mpcompress_client import CompressionClient, EdgeCodec

ROOT = Path(__file__).parents[1]
REAL = "klt-imgfocus-vits14-final"
SYNTHETIC = "klt-synthetic-1370x1536"
GRID, CHANNELS, CALIBRATION_TENSORS = (37, 37), 1536, 24
CHUNK_BYTES = 8 << 10
IDLE_S = 0.0005
_SPAWN = multiprocessing.get_context("spawn")


# ------------------------------------------------------------------------------------------------------- the link


def run_link(target: str, bits_per_s: float, counts: Any, port: Any) -> None:
    """Forwards connections to `target`; each direction gives `bits_per_s` and adds its bytes to `counts`."""
    host, _, target_port = target.rpartition(":")

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int) -> None:
        loop = asyncio.get_running_loop()
        asked_at = free_at = loop.time()
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(CHUNK_BYTES):
                # Bytes that were there when they were asked for had waited: a sleep that took too long is made up for.
                idle = loop.time() - asked_at > IDLE_S
                free_at = (max(loop.time(), free_at) if idle else free_at) + 8 * len(data) / bits_per_s
                await asyncio.sleep(free_at - loop.time())
                counts[direction] += len(data)
                writer.write(data)
                await writer.drain()
                asked_at = loop.time()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(host, int(target_port))
        await asyncio.gather(forward(reader, far_writer, 0), forward(far_reader, writer, 1))

    async def serve() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def run_receiver(server: str, port: Any) -> None:
    """The cloud's end: takes fp16 bytes or units, decompresses units through the server, acknowledges each."""
    with CompressionClient(server) as client, socket.create_server(("127.0.0.1", 0)) as listening:
        port.send(listening.getsockname()[1])
        while True:
            connection, _ = listening.accept()
            with connection, connection.makefile("rb") as stream:
                while head := stream.read(9):
                    compressed, size = struct.unpack("<?Q", head)
                    data = stream.read(size)
                    features = client.decompress(data) if compressed else np.frombuffer(data, np.float16)
                    connection.sendall(b"y" if features.size else b"n")


@contextlib.contextmanager
def process(function: Callable[..., None], *arguments: Any) -> Iterator[int]:
    """Runs `function` in a process of its own; gives the port that it listens on."""
    here, there = _SPAWN.Pipe()
    running = _SPAWN.Process(target=function, args=(*arguments, there), daemon=True)
    running.start()
    there.close()
    try:
        yield here.recv()
    finally:
        running.terminate()
        running.join()


@contextlib.contextmanager
def server(folder: Path, codec_file: Path) -> Iterator[str]:
    """A real server with both codecs."""
    config, port_file = folder / "server.toml", folder / "port"
    config.write_text(
        f'[[codecs]]\nid = "{REAL}"\n[[codecs]]\nid = "{SYNTHETIC}"\nfamily = "klt"\nweights = "{codec_file}"\n'
    )
    command = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(config), "--log-level", "error"]
    running = subprocess.Popen([*command, "--listen", "127.0.0.1:0", "--port-file", str(port_file)])
    try:
        while not port_file.exists():
            if running.poll() is not None:
                raise SystemExit("the server ended")
            time.sleep(0.05)
        yield port_file.read_text().strip()
    finally:
        running.terminate()
        running.wait()


# --------------------------------------------------------------------------------------------------- the features


def synthetic_features(count: int) -> Iterator[np.ndarray]:
    """Tensors (1 + 37 * 37, 1536), float16: one prefix token, then smooth fields, strong in few directions."""
    rng = np.random.default_rng(20)
    basis, _ = np.linalg.qr(rng.standard_normal((CHANNELS, CHANNELS)).astype(np.float32))
    strength = (1 + np.arange(CHANNELS, dtype=np.float32)) ** -0.7
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) * side for side in GRID), indexing="ij"))
    smooth = (1 + frequency) ** -1.2
    for _ in range(count):
        noise = rng.standard_normal((CHANNELS, *GRID))
        fields = np.fft.ifft2(np.fft.fft2(noise) * smooth).real
        fields /= fields.std()
        tokens = np.concatenate([rng.standard_normal((CHANNELS, 1)), fields.reshape(CHANNELS, -1)], axis=1).T
        yield ((tokens.astype(np.float32) * strength) @ basis.T).astype(np.float16)


# --------------------------------------------------------------------------------------------------- measurements


def send(connection: socket.socket, data: bytes, *, compressed: bool) -> None:
    """Sends one item and waits until the other end has it."""
    connection.sendall(struct.pack("<?Q", compressed, len(data)) + data)
    if connection.recv(1) != b"y":
        raise SystemExit("the receiver gave up")


def measure(name: str, tensors: list[np.ndarray], edge: EdgeCodec, qp: float, mbits: float, address: str, n: int):
    """Rows of one kind of features over one link, one per way."""
    counts = _SPAWN.Array("q", 2)
    codec = edge.info.id

    def one(way: str, h: np.ndarray, connection: socket.socket, client: CompressionClient) -> None:
        if way == "fp16":
            send(connection, h.tobytes(), compressed=False)
        elif way == "edge":
            send(connection, edge.compress(h, qp=qp).to_bytes(), compressed=True)
        else:
            client.compress(h, codec=codec, qp=qp, timeout_s=600)

    rows = []
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(process(run_receiver, address))
        link_in = stack.enter_context(process(run_link, f"127.0.0.1:{receiver}", mbits * 1e6, counts))
        link_server = stack.enter_context(process(run_link, address, mbits * 1e6, counts))
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", link_in)))
        client = stack.enter_context(CompressionClient(f"127.0.0.1:{link_server}", timeout_s=600))
        for way in ("fp16", "edge", "server"):
            one(way, tensors[0], connection, client)  # compiled, connected and warm
            figures = []
            for index in range(n):
                h = tensors[index % len(tensors)]
                before, wall, cpu = list(counts), time.perf_counter(), time.process_time()
                one(way, h, connection, client)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                figures.append((counts[0] - before[0], counts[1] - before[1], wall, cpu))
            up, down, wall, cpu = (float(x) for x in np.median(figures, axis=0))
            rows.append(
                {"features": name, "shape": list(tensors[0].shape), "mbit_per_s": mbits, "way": way, "n": n}
                | {"up_bytes": up, "down_bytes": down, "seconds": wall, "device_cpu_seconds": cpu}
            )
            show(rows[-1])
    return rows


def cpu_seconds(job: Callable[[], Any]) -> float:
    """CPU seconds of a job on one thread, median of five."""
    found = []
    for _ in range(5):
        before = time.process_time()
        job()
        found.append(time.process_time() - before)
    return float(np.median(found))


def show(row: dict[str, Any]) -> None:
    """One line of the table."""
    shape = "x".join(map(str, row["shape"]))
    print(
        f"| {row['features']} {shape} | {row['mbit_per_s']:g} | {row['way']} | {row['n']} | {row['up_bytes']:.0f} "
        f"| {row['down_bytes']:.0f} | {1e3 * row['seconds']:.0f} | {1e3 * row['device_cpu_seconds']:.0f} |",
        flush=True,
    )


def main() -> None:
    """Prints the table; writes JSON, page and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbits", nargs="+", type=float, default=[5, 20, 100], help="links, Mbit/s")
    parser.add_argument("--qp", type=float, default=24)
    parser.add_argument("--n", type=int, default=12, help="transfers of real features per row")
    parser.add_argument("--n-synthetic", type=int, default=3, help="transfers of synthetic features per row; 0: none")
    parser.add_argument("--quick", action="store_true", help="three transfers of real features per row; writes nothing")
    args = parser.parse_args()
    if args.quick:
        args.n, args.n_synthetic = 3, 0
    kinds: list[tuple[str, list[np.ndarray], EdgeCodec, int]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        codec_file = folder / "synthetic.safetensors"
        sample = list(synthetic_features(CALIBRATION_TENSORS + 2)) if args.n_synthetic else []
        small = np.load(ROOT / "tests/data/features_final.npy")
        made = calibrate(
            sample[2:] or [*small, *small, *small, *small],
            codec_id=SYNTHETIC,
            description="synthetic features of benchmarks/edge_links.py",
            prefix_tokens=1,
            token_res=GRID if sample else (16, 16),
        )
        codec_file.write_bytes(made.file)
        kinds.append(("real", list(small), EdgeCodec.load(REAL), args.n))
        with server(folder, codec_file) as address:
            if sample:
                edge = EdgeCodec.load(SYNTHETIC, target=address, cache_dir=folder)
                kinds.append(("synthetic", sample[:2], edge, args.n_synthetic))
            quality = {}
            for kind, tensors, edge, _ in kinds:
                h = tensors[0]
                unit = edge.compress(h, qp=args.qp)
                quality[kind] = {"codec": edge.info.id, "codec_file_bytes": edge.info.codec_file_bytes, "qp": args.qp}
                quality[kind] |= {"bpfp": unit.bpfp, "nmse": nmse(h, edge.decompress(unit))}
                quality[kind]["compress_cpu_s"] = cpu_seconds(functools.partial(edge.compress, h, qp=args.qp))
                quality[kind]["decompress_cpu_s"] = cpu_seconds(functools.partial(edge.decompress, unit))
            print(json.dumps(quality))
            print("| features | Mbit/s | way | n | bytes up | bytes down | ms | device CPU ms |\n" + "|---" * 8 + "|")
            rows = [
                row
                for kind, tensors, edge, n in kinds
                for mbits in args.mbits
                for row in measure(kind, tensors, edge, args.qp, mbits, address, n)
            ]
    if args.quick:
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    result = {"machine": machine, "load": os.getloadavg()[0], "codecs": quality, "rows": rows}
    edge_links_page.RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    edge_links_page.main()


if __name__ == "__main__":
    main()
