"""The channels of a client: the one that new calls take, and older ones until their last call has ended.

A gRPC channel keeps the certificates that it was opened with, also when it reconnects. So when a certificate file has
changed, the next call opens a new channel; calls that are under way end on the one that they have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mpcompress_client.endpoint import Endpoint
from mpcompress_proto.parcel import ParcelStub

Metadata = tuple[tuple[str, str], ...]


@dataclass(eq=False)
class Line:
    """A channel and the calls on it that have not ended."""

    channel: Any
    stub: Any
    calls: int = 0


class Lines:
    """Opens, renews and closes the channels of one client. May be shared by threads.

    Args:
        endpoint: the server, and the certificates.
        channel: the user's own channel, which is neither renewed nor closed; None opens one when it is first needed.
        open_channel: opens a channel to the endpoint.
        close_channel: closes one; no call is under way on it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        channel: Any,
        open_channel: Callable[[], Any],
        close_channel: Callable[[Any], object],
    ) -> None:
        self._endpoint = endpoint
        self.own = channel is None
        self._open_channel = open_channel
        self._close_channel = close_channel
        self._current = None if channel is None else _line(channel)
        self._retired: list[Line] = []
        self._lock = threading.Lock()

    def call(self, method: str, *request: Any, timeout_s: float | None = None, says: Metadata = ()) -> Any:
        """Begins a streaming call of the service, with metadata beside the endpoint's own; gives gRPC's call."""
        line = self._take()
        try:
            call = getattr(line.stub, method)(*request, timeout=timeout_s, metadata=(*self._endpoint.metadata, *says))
            call.add_done_callback(lambda _: self._ended(line))
        except BaseException:
            self._ended(line)
            raise
        return call

    @contextmanager
    def held(self) -> Iterator[Any]:
        """The stub for one call with one answer."""
        line = self._take()
        try:
            yield line.stub
        finally:
            self._ended(line)

    def drain(self) -> list[Any]:
        """The open channels of our own, for closing the client."""
        with self._lock:
            lines = [*self._retired, *([self._current] if self._current is not None and self.own else [])]
            self._retired = []
            return [line.channel for line in lines]

    def _take(self) -> Line:
        with self._lock:
            if self._current is not None and self.own and self._endpoint.renew():
                self._retired.append(self._current)
                self._current = None
            if self._current is None:
                self._current = _line(self._open_channel())
            self._current.calls += 1
            # Not when its last call ends: that is told in gRPC's own thread, in which closing would wait for itself.
            idle = [line for line in self._retired if not line.calls]
            self._retired = [line for line in self._retired if line.calls]
            current = self._current
        for line in idle:
            self._close_channel(line.channel)
        return current

    def _ended(self, line: Line) -> None:
        with self._lock:
            line.calls -= 1


def _line(channel: Any) -> Line:
    return Line(channel=channel, stub=ParcelStub(channel))
