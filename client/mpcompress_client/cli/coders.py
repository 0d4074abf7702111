"""Codecs that commands measure, through a server or on this device, behind the same two calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mpcompress_client.cli.server import Server
from mpcompress_client.client import CompressionClient
from mpcompress_client.errors import UnknownCodecError
from mpcompress_client.infos import CodecInfo
from mpcompress_client.items import Decoded
from mpcompress_client.local import EdgeCodec
from mpcompress_proto.coded_unit import CodedUnit


class Coder(ABC):
    """A codec wherever it runs. May be shared by threads."""

    info: CodecInfo

    @abstractmethod
    def compress(self, tensors: Any, **arguments: Any) -> CodedUnit:
        """One item."""

    @abstractmethod
    def decompress(self, unit: CodedUnit, *, ctx: Any = None) -> Decoded:
        """One unit."""


class LocalCoder(Coder):
    """A codec on this device."""

    def __init__(self, codec: EdgeCodec) -> None:
        self._codec = codec
        self.info = codec.info

    def compress(self, tensors: Any, **arguments: Any) -> CodedUnit:
        """One item."""
        return self._codec.compress(tensors, **arguments)

    def decompress(self, unit: CodedUnit, *, ctx: Any = None) -> Decoded:
        """One unit."""
        return self._codec.decompress(unit, ctx=ctx)


class RemoteCoder(Coder):
    """A codec of a server."""

    def __init__(self, client: CompressionClient, info: CodecInfo) -> None:
        self._client = client
        self.info = info

    def compress(self, tensors: Any, **arguments: Any) -> CodedUnit:
        """One item."""
        return self._client.compress(tensors, codec=self.info.id, **arguments)

    def decompress(self, unit: CodedUnit, *, ctx: Any = None) -> Decoded:
        """One unit."""
        return self._client.decompress(unit, ctx=ctx)


@contextmanager
def open_coders(codecs: Sequence[str], *, local: bool, server: Server) -> Iterator[list[Coder]]:
    """The codecs of these ids (with `local` also paths), in order.

    Args:
        codecs: ids or paths.
        local: on this device instead of through the server.
        server: the server; with `local` a codec of this device may be fetched there, when the user named it.

    Raises:
        MPCompressError: as `EdgeCodec.load` and `CompressionClient.codecs`.
    """
    if local:
        with server.if_named() as source:
            coders: list[Coder] = [LocalCoder(EdgeCodec.load(codec, target=source)) for codec in codecs]
        yield coders
        return
    with server.connect() as client:
        listed = {info.id: info for info in client.codecs()}
        for codec in codecs:
            if codec not in listed:
                known = ", ".join(sorted(listed)) or "none"
                raise UnknownCodecError(f"{client.target} has no codec {codec!r}; it has: {known}")
        yield [RemoteCoder(client, listed[codec]) for codec in codecs]
