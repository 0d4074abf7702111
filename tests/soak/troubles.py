"""What makes life hard for a server: reloads, dying workers, clients that vanish, connections that are reset."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

from tests.soak.cases import DATA, KLT
from tests.soak.own_process import SoakedServer

# Closing with this option sends RST instead of FIN.
_RESET = struct.pack("ii", 1, 0)
_VICTIM = f"""
import sys
import numpy as np
from mpcompress_client import CompressionClient
features = np.load(sys.argv[2])
with CompressionClient(sys.argv[1]) as client:
    while True:
        for unit in client.compress_many(iter(features), codec="{KLT}"):
            print(".", flush=True)
"""


class Trouble(threading.Thread):
    """Does something to a server again and again.

    Args:
        name: of what it does.
        act: does it once; returns what to write into the ledger.
        every_s: pause between two times, halved or doubled at random.
        done: ends it.
    """

    def __init__(self, act: Callable[[], str], every_s: float, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self.ledger: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._act, self._every_s, self._done = act, every_s, done

    def run(self) -> None:
        try:
            while not self._done.wait(self._every_s * random.uniform(0.5, 2.0)):
                self.ledger[self._act()] += 1
        except BaseException as error:  # handed to the main thread, which reports it
            self.error = error


def reloads(server: SoakedServer) -> Callable[[], str]:
    """Configurations in turn, each followed by SIGHUP."""
    turn = itertools.cycle(server.configs.items())

    def act() -> str:
        name, text = next(turn)
        fresh = server.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(server.config)
        server.process.send_signal(signal.SIGHUP)
        return f"reloads, configuration {name}"

    return act


def process_kills(server: SoakedServer) -> Callable[[], str]:
    """SIGKILL for a worker process or an encoder that runs."""

    def act() -> str:
        children = server.children()
        if not children:
            return "process kills that found none"
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(children), signal.SIGKILL)
        return "worker and encoder processes killed"

    return act


def killed_clients(address: str) -> Callable[[], str]:
    """A client process that dies in the middle of a stream."""

    def act() -> str:
        victim = subprocess.Popen([sys.executable, "-c", _VICTIM, address, str(DATA)], stdout=subprocess.PIPE)
        assert victim.stdout is not None
        victim.stdout.read(random.randrange(2, 30))
        victim.kill()
        victim.wait()
        victim.stdout.close()
        return "clients killed"

    return act


class ResettingProxy:
    """Carries bytes to a server; `reset` cuts all its connections hard.

    Args:
        target: HOST:PORT.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> str:
        """Cuts what is open now; returns what to write into the ledger."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for side in itertools.chain.from_iterable(pairs):
            with contextlib.suppress(OSError):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                # shutdown wakes the thread that waits in recv; close then sends the RST.
                side.shutdown(socket.SHUT_RD)
            side.close()
        return "connections reset" if pairs else "resets that found no connection"

    def close(self) -> None:
        """Takes no more connections and cuts those there are."""
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._pairs.add((client, server))
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def wait_until(check: Callable[[], bool], timeout_s: float) -> bool:
    """Whether something comes true in time."""
    end = time.monotonic() + timeout_s
    while not (true := check()) and time.monotonic() < end:
        time.sleep(0.2)
    return true
