"""Coding on this device, with the extra `edge`: the same units as a server's, byte for byte."""

from mpcompress_client.local.cache import CACHE_DIR_VARIABLE
from mpcompress_client.local.codec import EdgeCodec
from mpcompress_client.local.listing import shipped_infos
from mpcompress_client.local.loading import shipped_codecs

__all__ = ["CACHE_DIR_VARIABLE", "EdgeCodec", "shipped_codecs", "shipped_infos"]
