"""Where the codec of a device comes from: the installation, a file, or a server that has it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from mpcompress_client import safetensors_file
from mpcompress_client.client import CompressionClient
from mpcompress_client.errors import (
    CodecMismatchError,
    CodecUnavailableError,
    InvalidRequestError,
    MPCompressError,
    UnknownCodecError,
)
from mpcompress_client.infos import CodecInfo
from mpcompress_client.library import library
from mpcompress_client.local.cache import CodecFileCache

if TYPE_CHECKING:
    from mpcompress.codec import FeatureCodec
    from mpcompress.registry import CodecSpec


def load_codec(
    codec: str | PathLike[str],
    target: str | CompressionClient | None,
    cache_dir: str | PathLike[str] | None,
) -> FeatureCodec:
    """Loads a codec; see `EdgeCodec.load`."""
    with library():
        from mpcompress import registry

        shipped = registry.preset_ids()
        if str(codec) in shipped:
            return registry.load(registry.preset(str(codec)))
        path = Path(codec)
        if path.is_file():
            return registry.load(_spec_of(path))
    if target is not None and isinstance(codec, str):
        with _connected(target) as client:
            return _from_server(client, codec, CodecFileCache(cache_dir))
    known = ", ".join(shipped) or "none"
    raise UnknownCodecError(
        f"{str(codec)!r} is neither a codec file nor a shipped codec ({known}); "
        "a codec that a server has is fetched from there when its target is given"
    )


def shipped_codecs() -> list[str]:
    """Ids of the codecs that come with the library, sorted. Raises CodecUnavailableError when it is not installed."""
    with library():
        from mpcompress import registry

        return registry.preset_ids()


def _spec_of(path: Path) -> CodecSpec:
    from mpcompress.registry import CodecSpec

    try:
        header = json.loads(safetensors_file.read_metadata(path)["mpcompress"])
        codec_id, family = str(header["id"]), str(header["family"])
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, MPCompressError):
            raise
        raise InvalidRequestError(f"{path} is no codec file") from error
    return CodecSpec(id=codec_id, family=family, weights=str(path))


@contextlib.contextmanager
def _connected(target: str | CompressionClient) -> Iterator[CompressionClient]:
    if isinstance(target, CompressionClient):
        yield target
        return
    with CompressionClient(target) as client:
        yield client


def _from_server(client: CompressionClient, codec_id: str, cache: CodecFileCache) -> FeatureCodec:
    info = _listed(client, codec_id)
    kept = cache.find(info.fingerprint)
    if kept is not None:
        # A file that another version of the library wrote, or that names another codec: fetched again.
        with contextlib.suppress(InvalidRequestError, CodecMismatchError):
            return _loaded(kept, info)
        cache.remove(kept)
    path = cache.put(info.fingerprint, client.codec_file(codec_id, fingerprint=info.fingerprint))
    try:
        return _loaded(path, info)
    except MPCompressError:
        cache.remove(path)
        raise


def _listed(client: CompressionClient, codec_id: str) -> CodecInfo:
    listed = {info.id: info for info in client.codecs()}
    if codec_id not in listed:
        known = ", ".join(sorted(listed)) or "none"
        raise UnknownCodecError(f"{client.target} has no codec {codec_id!r}; it has: {known}", field="codec_id")
    info = listed[codec_id]
    if not info.available:
        raise CodecUnavailableError(f"codec {codec_id} is not available at {client.target}: {info.unavailable_reason}")
    if not info.codec_file_bytes:
        raise CodecUnavailableError(
            f"codec {codec_id} has no file that a device could run it with: compress through {client.target} instead"
        )
    return info


def _loaded(path: Path, info: CodecInfo) -> FeatureCodec:
    """Loads a fetched file. Raises CodecMismatchError when it is not what the server lists."""
    with library():
        from mpcompress import registry

        codec = registry.load(registry.CodecSpec(id=info.id, family=info.family, weights=str(path)))
    if codec.fingerprint != info.fingerprint or codec.bitstream_version != info.bitstream_version:
        raise CodecMismatchError(
            f"the file of codec {info.id} has fingerprint {codec.fingerprint.hex()} and bitstream version "
            f"{codec.bitstream_version} here, the server lists {info.fingerprint.hex()} and {info.bitstream_version}: "
            "are both of the same release?",
            field="fingerprint",
        )
    return codec
