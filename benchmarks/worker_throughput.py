"""Throughput of a worker for pictures against as many bare EncoderApps, on the same pictures, in the same run.

    VTM_HOME=/path/to/vtm python benchmarks/worker_throughput.py --json benchmarks/worker_throughput.json

Rounds of N x `--each` tensors, N the worker's slots: real ViT-S/14 features of both taps (tests/data). In each round,
in changing order:

    bare      EncoderApp processes on raw files, N at a time, nothing else: what the machine gives
    worker    the same items through `mpcompress-server serve --role vtm-worker`, all sent at once
    behind    the same through a server that passes them on to that worker

The worker quantises, packs, decodes each bitstream again to verify it, and measures NMSE; a bare encoder does none of
that. Reported are encodes per minute (wall clock) and CPU seconds per encode of all processes taking part; ratios are
medians over rounds of each round's ratio to its own bare run, with the extremes; the load of the machine goes along.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from mpcompress.picture.packing import packing
from mpcompress.picture.quantize import Bounds, UniformQuantizer
from mpcompress.picture.strips import cores
from mpcompress.picture.vtm import SPEED_OPTIONS
from mpcompress.picture.vtm_tools import VtmTools
from mpcompress_client import CompressionClient

CODEC = "vtm-dinov2-cls"
DATA = Path(__file__).resolve().parent.parent / "tests/data"
_SPAN = {"final": 20.0, "block6": 2.0}
_DEPTH = 10


def main() -> None:
    """Prints the table; writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=cores(), help="encoders at a time")
    parser.add_argument("--each", type=int, default=4, help="items of a round for each slot")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--speeds", nargs="+", default=["faster", "fast"], choices=list(SPEED_OPTIONS))
    parser.add_argument("--qp", type=int, default=27)
    parser.add_argument("--json", type=Path, help="file for all figures")
    args = parser.parse_args()
    tools = VtmTools.find()
    items = list(_items(args.slots * args.each))
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, _servers(Path(name), args.slots) as (worker, server, pids):
        pictures = [_raw(Path(name), index, h, bound) for index, (h, bound) in enumerate(items)]
        _served(worker, items, "faster", args.qp)  # instances of the codec are made, and memory is touched
        for speed in args.speeds:
            ways: dict[str, Callable[[], None]] = {
                "bare": partial(_bare, tools, pictures, speed, args.qp, args.slots),
                "worker": partial(_served, worker, items, speed, args.qp),
                "behind": partial(_served, server, items, speed, args.qp),
            }
            for number in range(args.rounds):
                order = list(ways) if number % 2 == 0 else list(ways)[::-1]
                found = {way: _measured(ways[way], pids) for way in order}
                rounds.append({"speed": speed, "load": round(os.getloadavg()[0], 1), **found})
                print(json.dumps(rounds[-1]), file=sys.stderr)
    _report(rounds, len(items), args, tools)


def _items(count: int) -> Iterator[tuple[np.ndarray, float]]:
    """Features (257, 384), and the bound that clips them."""
    taps = [(np.load(DATA / f"features_{tap}.npy"), bound) for tap, bound in _SPAN.items()]
    for index in range(count):
        features, bound = taps[index % len(taps)]
        yield features[index // len(taps) % len(features)], bound


def _raw(folder: Path, index: int, h: np.ndarray, bound: float) -> tuple[Path, int, int]:
    """The picture that the worker makes of a tensor, as a raw file: path, height, width."""
    layout = packing("dinov2")
    x = h.reshape(layout.canonical(h.shape)).astype(np.float32)
    picture = layout.pack(UniformQuantizer().quantize(x, Bounds.of(-bound, bound), _DEPTH))
    path = folder / f"{index}.yuv"
    path.write_bytes(picture.astype("<u2").tobytes())
    return path, *picture.shape


def _bare(tools: VtmTools, pictures: list[tuple[Path, int, int]], speed: str, qp: int, slots: int) -> None:
    def encode(picture: tuple[Path, int, int]) -> None:
        path, height, width = picture
        argv = [str(tools.encoder), "-c", str(tools.config), "-i", str(path), "-o", "", "-b", str(path) + ".bit"]
        argv += ["-q", str(qp), "-wdt", str(width), "-hgt", str(height), "-f", "1", "-fr", "1"]
        argv += ["--ConformanceWindowMode=1", "--InputChromaFormat=400", *SPEED_OPTIONS[speed]]
        argv += [f"--{which}BitDepth={_DEPTH}" for which in ("Internal", "Input", "Output")]
        # A session of its own, as the worker's have: Linux shares a busy machine out by sessions.
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    with ThreadPoolExecutor(slots) as pool:
        list(pool.map(encode, pictures))


def _served(address: str, items: list[tuple[np.ndarray, float]], speed: str, qp: int) -> None:
    def compress(item: tuple[np.ndarray, float]) -> None:
        h, bound = item
        client.compress(h, codec=CODEC, qp=qp, speed=speed, trun_low=[-bound], trun_high=[bound])

    with CompressionClient(address, timeout_s=3600) as client, ThreadPoolExecutor(len(items)) as pool:
        list(pool.map(compress, items))


def _measured(run: Callable[[], None], pids: list[int]) -> dict[str, float]:
    """Wall and CPU seconds of a way, the latter of the servers, of this process and of all their children."""
    before, start = _cpu_s(pids), time.perf_counter()
    run()
    wall_s = time.perf_counter() - start
    return {"wall_s": round(wall_s, 2), "cpu_s": round(_cpu_s(pids) - before, 2)}


def _cpu_s(pids: list[int]) -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(one.ru_utime + one.ru_stime for one in usage)
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system + times.children_user + times.children_system
    return total


@contextmanager
def _servers(folder: Path, slots: int) -> Iterator[tuple[str, str, list[int]]]:
    """Addresses of a worker and of a server in front of it, and their pids."""
    worker_config = f'role = "vtm-worker"\n[worker]\nslots = {slots}\n[[codecs]]\nid = "{CODEC}"\n'
    processes: list[subprocess.Popen[bytes]] = []
    try:
        worker = _start(folder, "worker", worker_config, processes)
        remote = f'[[codecs]]\nid = "{CODEC}"\nfamily = "remote"\noptions = {{target = "{worker}"}}\n'
        server = _start(folder, "server", remote, processes)
        yield worker, server, [process.pid for process in processes]
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(60)


def _start(folder: Path, name: str, config: str, processes: list[subprocess.Popen[bytes]]) -> str:
    path, port_file = folder / f"{name}.toml", folder / f"{name}.port"
    path.write_text(config, encoding="utf-8")
    argv = [sys.executable, "-m", "mpcompress_server", "serve", "--config", str(path), "--listen", "127.0.0.1:0"]
    with (folder / f"{name}.log").open("wb") as log:
        processes.append(subprocess.Popen([*argv, "--port-file", str(port_file)], stdout=log, stderr=log))
    waiting = threading.Event()
    for _ in range(600):
        if port_file.exists():
            return port_file.read_text(encoding="ascii").strip()
        if processes[-1].poll() is not None:
            break
        waiting.wait(0.2)
    raise RuntimeError((folder / f"{name}.log").read_text(encoding="utf-8"))


def _report(rounds: list[dict[str, Any]], count: int, args: argparse.Namespace, tools: VtmTools) -> None:
    print("| speed | way | encodes per minute | of bare | CPU s per encode | of bare |")
    print("|---|---|---|---|---|---|")
    rows = []
    for speed in args.speeds:
        mine = [one for one in rounds if one["speed"] == speed]
        for way in ("bare", "worker", "behind"):
            per_minute = statistics.median(60 * count / one[way]["wall_s"] for one in mine)
            shares = [one["bare"]["wall_s"] / one[way]["wall_s"] for one in mine]
            share = statistics.median(shares)
            cpu_s = statistics.median(one[way]["cpu_s"] / count for one in mine)
            more = statistics.median(one[way]["cpu_s"] / one["bare"]["cpu_s"] for one in mine)
            spread = [round(min(shares), 3), round(max(shares), 3)]
            row = {"per_minute": per_minute, "of_bare": share, "cpu_s": cpu_s, "cpu_of_bare": more}
            rows.append({"speed": speed, "way": way, **{key: round(x, 3) for key, x in row.items()}, "shares": spread})
            print(
                f"| {speed} | {way} | {per_minute:.1f} | {100 * share:.1f} % ({100 * spread[0]:.0f} to "
                f"{100 * spread[1]:.0f}) | {cpu_s:.2f} | {100 * more:.1f} % |"
            )
    loads = ", ".join(f"{one['load']:.1f}" for one in rounds)
    print(f"\n{args.rounds} rounds of {count} encodes, {args.slots} at a time, QP {args.qp}; load {loads}")
    if args.json:
        about = {"vtm": tools.banner(), "machine": platform.machine(), "cores": cores(), "items": count}
        settings = {key: value for key, value in vars(args).items() if key != "json"}
        found = {"about": about, "settings": settings, "median": rows, "rounds": rounds}
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
