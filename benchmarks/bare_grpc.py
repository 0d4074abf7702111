"""Bytes over gRPC and nothing else: the measure that a service's streaming is held to.

`python benchmarks/bare_grpc.py` prints its port and serves until its input ends, on an event loop as the service's.
To `Echo` a client sends messages of bytes and an empty one, and gets as many back; `Answer` has a short one for each.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
import uvloop

METHOD, ANSWER = "/bare.Bytes/Echo", "/bare.Bytes/Answer"
_SHORT = bytes(100)


async def _echo(_requests: Any, context: Any) -> None:
    kept = []
    while data := await context.read():
        kept.append(data)
    while kept:
        await context.write(kept.pop())


async def _answer(_requests: Any, context: Any) -> None:
    while await context.read() is not grpc.aio.EOF:
        await context.write(_SHORT)


async def _serve() -> None:
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
    for path, serve in ((METHOD, _echo), (ANSWER, _answer)):
        service, method = path.strip("/").split("/")
        handler = grpc.stream_stream_rpc_method_handler(serve)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


def echo(channel: grpc.Channel, data: memoryview, chunk: int) -> int:
    """Sends all bytes and takes as many back, into one buffer; returns how many came."""

    def requests() -> Iterator[bytes]:
        for start in range(0, len(data), chunk):
            yield bytes(data[start : start + chunk])
        yield b""

    back, at = bytearray(len(data)), 0
    for message in channel.stream_stream(METHOD)(requests()):
        back[at : at + len(message)] = message
        at += len(message)
    return at


def answers(channel: grpc.Channel, items: Iterable[memoryview]) -> int:
    """Sends a message for each item, as a copy of it; returns how many answers came."""
    return sum(1 for _ in channel.stream_stream(ANSWER)(bytes(item) for item in items))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
