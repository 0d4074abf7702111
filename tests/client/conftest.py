"""A real server in a process of its own for all tests of this folder, and a scripted one for what it never does."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from own_server import own_server
from scripted_server import Script, ScriptedServicer

from mpcompress_client import CompressionClient
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

BLOCK6, FINAL = "klt-imgfocus-vits14-block6", "klt-imgfocus-vits14-final"
DATA = Path(__file__).parent.parent / "data"

CONFIG = f"""
[limits]
max_item_bytes = 33554432
max_inflight_bytes = 134217728

[[codecs]]
id = "{BLOCK6}"

[[codecs]]
id = "{FINAL}"
"""


def heed_interrupts() -> None:
    """For `preexec_fn`: a shell that runs the tests in the background has its children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real server with the two shipped klt codecs."""
    with own_server(tmp_path_factory.mktemp("server"), CONFIG) as target:
        yield target


@pytest.fixture
def client(server: str) -> Iterator[CompressionClient]:
    """A client of the real server."""
    with CompressionClient(server) as connected:
        yield connected


@pytest.fixture(scope="session")
def block6() -> np.ndarray:
    """Real features, float16 (4, 257, 384)."""
    return np.load(DATA / "features_block6.npy")


@pytest.fixture(scope="session")
def final() -> np.ndarray:
    """Real features, float16 (4, 257, 384)."""
    return np.load(DATA / "features_final.npy")


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """Starts servers that follow a script; gives their addresses."""
    servers: list[grpc.Server] = []

    def start(**scripts: Script) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(8))
        pb_grpc.add_CompressionServiceServicer_to_server(ScriptedServicer(**scripts), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(0).wait()


@pytest.fixture
def silent(scripted: Callable[..., str]) -> Iterator[str]:
    """Address of a server that takes all items and answers none."""
    ended = threading.Event()

    def never(requests: Iterator[object], context: grpc.ServicerContext) -> Iterator[object]:
        for _ in requests:
            pass
        ended.wait(60)
        yield from ()

    yield scripted(compress=never)
    ended.set()


@pytest.fixture
def no_thread_leak() -> Iterator[None]:
    """Fails when the client's or grpc's sending threads outlive the test."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("ThreadPoolExecutor"):
            thread.join(30)
            assert not thread.is_alive(), f"{thread.name} outlived the test"
