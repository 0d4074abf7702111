"""A name server for one name, in the test's own process: the addresses that a test says."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

_A = 1
_TTL_S = 1


class NameServer(asyncio.DatagramProtocol):
    """Answers every question for an address with `addresses`."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked = 0
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, peer: Any) -> None:
        """One question, RFC 1035."""
        end = 12
        while data[end]:
            end += 1 + data[end]
        question = data[12 : end + 5]
        (kind,) = struct.unpack(">H", question[-4:-2])
        addresses = self.addresses if kind == _A else []
        self.asked += kind == _A
        header = data[:2] + struct.pack(">HHHHH", 0x8580, 1, len(addresses), 0, 0)
        answers = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", _A, 1, _TTL_S, 4) + ipaddress.IPv4Address(address).packed
            for address in addresses
        )
        self._transport.sendto(header + question + answers, peer)


@asynccontextmanager
async def name_server() -> AsyncIterator[tuple[NameServer, str]]:
    """A name server and its HOST:PORT."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=("127.0.0.1", 0))
    try:
        yield server, "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
    finally:
        transport.close()
