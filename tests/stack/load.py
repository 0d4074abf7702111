"""A load on the stack whose every item is accounted for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import numpy as np

from mpcompress_client import CompressionClient, MPCompressError

_CODEC = "klt-imgfocus-vits14-final"


class Load:
    """Clients with a stream each, which compress the same features until the block ends.

    Args:
        target: HOST:PORT.
        features: `(N, M, C)`, sent in turn.
        clients: how many.
    """

    def __init__(self, target: str, features: np.ndarray[Any, Any], clients: int = 4) -> None:
        self.sent = 0
        self.answers: list[bytes] = []
        self.errors: list[MPCompressError] = []
        self._target = target
        self._features = features
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(clients)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(180)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def _items(self) -> Iterator[np.ndarray[Any, Any]]:
        index = 0
        while not self._over.is_set():
            with self._lock:
                self.sent += 1
            yield self._features[index % len(self._features)]
            index += 1

    def _run(self) -> None:
        with CompressionClient(self._target, timeout_s=120) as client:
            results = client.compress_many(self._items(), codec=_CODEC, qp=24, errors="return", look_ahead=8)
            for result in results:
                with self._lock:
                    if isinstance(result, MPCompressError):
                        self.errors.append(result)
                    else:
                        self.answers.append(result.to_bytes())
