"""What this installation has, in the terms of a server's list."""

from __future__ import annotations

from mpcompress_client.errors import CodecUnavailableError
from mpcompress_client.infos import CodecInfo, codec_info
from mpcompress_client.library import library
from mpcompress_client.local.codec import EdgeCodec
from mpcompress_client.local.loading import shipped_codecs
from mpcompress_proto.v1 import compression_pb2 as pb

__all__ = ["shipped_infos"]


def shipped_infos() -> list[CodecInfo]:
    """The codecs that come with the library, by id; one that cannot be loaded says why and what to do.

    Raises:
        CodecUnavailableError: none can be loaded here, or the library is not installed.
    """
    found, missing = [], []
    for codec_id in shipped_codecs():
        try:
            found.append(EdgeCodec.load(codec_id).info)
        except CodecUnavailableError as error:
            missing.append(error)
            found.append(_without(codec_id, str(error)))
    if missing and len(missing) == len(found):
        raise missing[0]
    return found


def _without(codec_id: str, reason: str) -> CodecInfo:
    with library():
        from mpcompress import registry

        family = registry.preset(codec_id).family
    return codec_info(pb.CodecInfo(codec_id=codec_id, family=family, unavailable_reason=reason, local=True))
