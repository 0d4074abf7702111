"""Which codec does an item's work, and where: here, or (a further kind of route) on another server."""

from __future__ import annotations

from dataclasses import dataclass

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.codecs import CodecSet, LoadedCodec


@dataclass(frozen=True, kw_only=True)
class LocalRoute:
    """The work is done by a codec of this server."""

    loaded: LoadedCodec


# Every place that handles a route handles all members of this union; mypy finds those that do not.
Route = LocalRoute


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
        return LocalRoute(loaded=self.codecs.find(codec_id))

    def for_unit(self, header: pb.CodedUnitHeader) -> Route:
        """Where to decompress a unit. Raises UnknownCodecError and CodecMismatchError."""
        return LocalRoute(loaded=self.codecs.find_for_unit(header))
