"""A network that can go silent: connections stay open and carry nothing, as when a machine loses power."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Network:
    """Carries bytes to a server; `silence` makes the connections of that moment carry nothing more, without a word.

    Args:
        target: HOST:PORT.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._silent: list[threading.Event] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """The connections there are carry nothing from now on."""
        for silent in self._silent:
            silent.set()

    @property
    def connections(self) -> int:
        """How many there were so far."""
        return len(self._silent)

    def close(self) -> None:
        """Ends it."""
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                silent = threading.Event()
                self._silent.append(silent)
                self._open += (near, far)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(source, sink, silent), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, silent: threading.Event) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not silent.is_set():
                    sink.sendall(data)
