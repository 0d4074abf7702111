"""Bytes over gRPC and nothing else: the measure that a service's streaming is held to.

`python benchmarks/bare_grpc.py` prints its port and serves until its input ends. A client sends messages of bytes, an
empty one, and gets as many messages back.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Any

import grpc

METHOD = "/bare.Bytes/Echo"


async def _echo(_requests: Any, context: Any) -> None:
    kept = []
    while data := await context.read():
        kept.append(data)
    while kept:
        await context.write(kept.pop())


async def _serve() -> None:
    handler = grpc.stream_stream_rpc_method_handler(_echo)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 4 << 20)])
    service, method = METHOD.strip("/").split("/")
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


if __name__ == "__main__":
    asyncio.run(_serve())
