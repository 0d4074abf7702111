"""The codecs of one server: loaded from the settings, found by id or by fingerprint."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property

import structlog

from mpcompress import registry
from mpcompress.codec import FeatureCodec
from mpcompress.errors import (
    CodecFileError,
    CodecMismatchError,
    CodecUnavailableError,
    MpcompressError,
    UnknownCodecError,
)
from mpcompress.registry import CodecSpec
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.remotes import RemoteServer
from mpcompress_server.settings import CodecEntry, Settings, SettingsError

_log = structlog.get_logger("mpcompress_server.codecs")

PICTURE_FAMILIES = ("vtm", "vvenc", "x265")


@dataclass(kw_only=True, eq=False)
class LoadedCodec:
    """A codec of the settings, whether it can run or not.

    Attributes:
        entry: what the settings say.
        spec: what the registry loads.
        codec: metadata and checks; also the first thread instance. None when it did not load.
        unavailable: why it cannot run, in words fit for a client; "" when it can.
        remote: the server that has it, when that is another; set when it is started.
        file_bytes: size of its codec file; 0: none.
        file_sha256: 32 bytes of that file's hash.
    """

    entry: CodecEntry
    spec: CodecSpec | None = None
    codec: FeatureCodec | None = None
    unavailable: str = ""
    remote: RemoteServer | None = None
    file_bytes: int = 0
    file_sha256: bytes = field(default=b"", repr=False)

    @cached_property
    def id(self) -> str:
        """Its id."""
        return self.entry.id

    @property
    def info(self) -> pb.CodecInfo | None:
        """Of a codec of another server: what that says of it; None before it has."""
        return self.remote.codecs.get(self.id) if self.remote is not None else None

    @property
    def format(self) -> tuple[bytes, int] | None:
        """Fingerprint and bitstream version; None when they are not known."""
        if self.codec is not None:
            return self.codec.fingerprint, self.codec.bitstream_version
        info = self.info
        return (info.fingerprint, info.bitstream_version) if info is not None and info.fingerprint else None

    def known_format(self) -> tuple[bytes, int]:
        """The same. Raises CodecUnavailableError or WorkerUnreachableError when they are not known."""
        if self.format is not None:
            return self.format
        if self.remote is not None and self.info is None:
            raise self.remote.unreachable()
        return self.ready().fingerprint, self.ready().bitstream_version

    def ready(self) -> FeatureCodec:
        """The codec. Raises CodecUnavailableError with the reason when it cannot run."""
        if self.unavailable or self.codec is None:
            why = self.unavailable or (self.info.unavailable_reason if self.info is not None else "")
            raise CodecUnavailableError(f"codec {self.id} is not available: {why}", field="codec_id")
        return self.codec


class CodecSet:
    """All codecs of a server. What the settings name twice or misspell never gets here."""

    def __init__(self, codecs: Sequence[LoadedCodec]) -> None:
        self._by_id = {loaded.id: loaded for loaded in sorted(codecs, key=lambda loaded: loaded.id)}

    def __iter__(self) -> Iterator[LoadedCodec]:
        return iter(self._by_id.values())

    def get(self, codec_id: str) -> LoadedCodec | None:
        """The codec of that id, if there is one."""
        return self._by_id.get(codec_id)

    def find(self, codec_id: str) -> LoadedCodec:
        """The codec of that id. Raises UnknownCodecError."""
        if codec_id not in self._by_id:
            raise UnknownCodecError(
                f"this server has no codec {_quoted(codec_id)}; ListCodecs (`mpcompress codecs`) names those it has",
                field="codec_id",
            )
        return self._by_id[codec_id]

    def find_for_unit(self, header: pb.CodedUnitHeader) -> LoadedCodec:
        """The codec that decodes a unit: that of its fingerprint, whatever its id is here.

        Raises:
            UnknownCodecError: neither id nor fingerprint is known.
            CodecMismatchError: the id is known, with another fingerprint or bitstream version.
            CodecUnavailableError, WorkerUnreachableError: the id is known, and nothing of its format.
        """
        named = self._by_id.get(header.codec_id)
        same = [loaded for loaded in self._by_id.values() if loaded.format and loaded.format[0] == header.fingerprint]
        wanted = header.fingerprint.hex()
        if not same:
            if named is None:
                raise UnknownCodecError(
                    f"this server has no codec {_quoted(header.codec_id)} and none of fingerprint {wanted}: decode the "
                    "unit where its codec is, or serve that here too",
                    field="unit.codec_id",
                )
            here = named.known_format()[0].hex()
            raise CodecMismatchError(
                f"the unit needs {named.id} with fingerprint {wanted}; this server has {here}",
                field="unit.fingerprint",
            )
        # One that is here, or whose worker answers, before one that can only be waited for.
        found = named if named is not None and named in same else min(same, key=_distance)
        version = found.known_format()[1]
        if version != header.bitstream_version:
            raise CodecMismatchError(
                f"the unit has bitstream version {header.bitstream_version}; this server reads {version}",
                field="unit.bitstream_version",
            )
        return found


def _distance(loaded: LoadedCodec) -> int:
    if loaded.unavailable:
        return 3
    return 0 if loaded.remote is None else 1 if loaded.remote.reachable else 2


def import_plugins(names: Sequence[str]) -> None:
    """Imports the modules that register further families. Raises SettingsError naming the one that cannot be."""
    for index, name in enumerate(names):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise SettingsError(f"plugins[{index}]: cannot import {name!r}: {error}") from error


def load_codecs(settings: Settings) -> CodecSet:
    """Loads every codec of the settings; takes as long as its weights are large.

    A codec whose file or dependency is missing is there, but unavailable.

    Raises:
        SettingsError: an entry that names no known family or shipped codec.
    """
    import_plugins(settings.plugins)
    return CodecSet([load_codec(entry, key, settings) for key, entry in entries_of(settings).items()])


def entries_of(settings: Settings) -> dict[str, CodecEntry]:
    """What is to be served, by the key in the settings. Patterns of remote entries stand for shipped codecs.

    Raises:
        SettingsError: a pattern that fits none, or a codec that a worker for pictures has no use for.
    """
    entries = settings.codecs
    if entries is None:
        entries = tuple(CodecEntry(id=codec_id) for codec_id in registry.preset_ids() if _suits(codec_id, settings))
    if settings.role == "vtm-worker":
        return {f"codecs[{index}]": _of_worker(entry, f"codecs[{index}]") for index, entry in enumerate(entries)}
    found = {f"codecs[{index}]": entry for index, entry in enumerate(entries) if not _is_pattern(entry)}
    taken = {entry.id for entry in found.values()}
    for index, entry in enumerate(entries):
        if _is_pattern(entry):
            fitting = [codec_id for codec_id in registry.preset_ids() if fnmatchcase(codec_id, entry.id)]
            if not fitting:
                raise SettingsError(f"codecs[{index}].id: {entry.id!r} fits no shipped codec")
            for codec_id in fitting:
                if codec_id not in taken:
                    taken.add(codec_id)
                    found[f"codecs[{index}], {codec_id}"] = entry.model_copy(update={"id": codec_id})
    return found


def _is_pattern(entry: CodecEntry) -> bool:
    return not registry.CODEC_ID.fullmatch(entry.id)


def _suits(codec_id: str, settings: Settings) -> bool:
    return settings.role != "vtm-worker" or registry.preset(codec_id).family in PICTURE_FAMILIES


def _of_worker(entry: CodecEntry, key: str) -> CodecEntry:
    """A worker's entry: one process for each item, since other items have the other cores."""
    family = entry.family or (registry.preset(entry.id).family if entry.id in registry.preset_ids() else None)
    if family is not None and family not in PICTURE_FAMILIES:
        raise SettingsError(f"{key}: a vtm-worker codes pictures, and {entry.id} is of family {family}")
    return entry.model_copy(update={"options": {"parallel": 1, **entry.options}})


def load_codec(entry: CodecEntry, key: str, settings: Settings) -> LoadedCodec:
    """Loads one codec. Raises SettingsError, as `load_codecs`."""
    loaded = LoadedCodec(entry=entry)
    if entry.remote is not None:
        return loaded  # what it is, its server says
    try:
        loaded.spec = spec_of(entry, key)
        codec = registry.load(loaded.spec)
        content = codec.codec_file()
    except SettingsError:
        raise
    except Exception as error:
        give_up(loaded, error)
        return loaded
    loaded.codec = codec
    if not codec.trained and not settings.allow_untrained:
        loaded.unavailable = "it is untrained: random weights, for tests only; the server needs --allow-untrained"
    if content:
        loaded.file_bytes, loaded.file_sha256 = len(content), hashlib.sha256(content).digest()
    return loaded


def give_up(loaded: LoadedCodec, error: Exception) -> None:
    """Marks a codec as unavailable. The client learns what it can use; paths and tracebacks stay in the log."""
    if isinstance(error, CodecUnavailableError):
        loaded.unavailable = error.message
    elif isinstance(error, ImportError):
        loaded.unavailable = f"the server lacks the Python package {error.name or 'that it needs'}"
    elif isinstance(error, CodecFileError):
        loaded.unavailable = "its codec file cannot be loaded; the server's log says why"
    else:
        loaded.unavailable = "it failed to start; the server's log says why"
    known = isinstance(error, (MpcompressError, ImportError))
    _log.warning("codec unavailable", codec=loaded.id, error=str(error), exc_info=None if known else error)


def spec_of(entry: CodecEntry, key: str) -> CodecSpec:
    """What the registry is to load. Raises SettingsError naming the key."""
    if entry.family is not None:
        try:
            return CodecSpec(id=entry.id, family=entry.family, weights=entry.weights, options=entry.options)
        except CodecFileError as error:
            raise SettingsError(f"{key}.{error.field or 'family'}: {error.message}") from error
    try:
        shipped = registry.preset(entry.id)
    except UnknownCodecError as error:
        raise SettingsError(f"{key}.id: {error.message}") from error
    options = {**shipped.options, **entry.options}
    return CodecSpec(id=entry.id, family=shipped.family, weights=shipped.weights, options=options)


def _quoted(codec_id: str) -> str:
    return repr(codec_id[:64])
