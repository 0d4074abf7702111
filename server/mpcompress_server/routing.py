"""Which codec does an item's work, and where: here or on another server."""

from __future__ import annotations

from dataclasses import dataclass

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.codecs import CodecSet, LoadedCodec
from mpcompress_server.remotes import RemoteServer


@dataclass(frozen=True, kw_only=True)
class LocalRoute:
    """The work is done by a codec of this server."""

    loaded: LoadedCodec


@dataclass(frozen=True, kw_only=True)
class RemoteRoute:
    """The work is done by a codec of another server; `info` is what that says of it, empty before it has."""

    loaded: LoadedCodec
    server: RemoteServer
    info: pb.CodecInfo


# Every place that handles a route handles all members of this union; mypy finds those that do not.
Route = LocalRoute | RemoteRoute


class Router:
    """Finds the route of an item from its header alone.

    Args:
        codecs: the codecs of this server.
    """

    def __init__(self, codecs: CodecSet) -> None:
        self.codecs = codecs

    def visible(self) -> list[LoadedCodec]:
        """The codecs that the caller is told of."""
        return list(self.codecs)

    def for_compress(self, codec_id: str) -> Route:
        """Where to compress with a codec. Raises UnknownCodecError."""
        return route_of(self.codecs.find(codec_id))

    def for_unit(self, header: pb.CodedUnitHeader) -> Route:
        """Where to decompress a unit. Raises UnknownCodecError, CodecMismatchError and WorkerUnreachableError."""
        return route_of(self.codecs.find_for_unit(header))


def route_of(loaded: LoadedCodec) -> Route:
    """Where a codec does its work."""
    if loaded.remote is None:
        return LocalRoute(loaded=loaded)
    return RemoteRoute(loaded=loaded, server=loaded.remote, info=loaded.info or pb.CodecInfo())
