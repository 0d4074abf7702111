"""Exchanging the codecs of a running server: the new ones are loaded beside the old, all of them or none."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from mpcompress.errors import MpcompressError
from mpcompress_server.codecs import (
    CodecSet,
    LoadedCodec,
    entries_of,
    import_plugins,
    load_codec,
    spec_of,
)
from mpcompress_server.fleet import Fleet
from mpcompress_server.settings import CodecEntry, Settings, SettingsError

_log = structlog.get_logger("mpcompress_server.reload")

# What a reload takes from the settings; all else needs a restart.
_RELOADED = ("codecs", "plugins", "allow_untrained", "executors")


@dataclass(frozen=True, kw_only=True)
class Change:
    """Codec ids: what a reload did."""

    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)


class Reloader:
    """Knows what the running codecs were made of.

    Args:
        fleet: runs them.
        settings: what they were loaded from.
    """

    def __init__(self, fleet: Fleet, settings: Settings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._lock = asyncio.Lock()
        self._sources = {entry.id: _source(entry, key, settings) for key, entry in entries_of(settings).items()}

    async def reload(self, settings: Settings) -> Change:
        """Makes the codecs those of new settings. Codecs whose entry and weights are as before go on untouched.

        Raises:
            SettingsError: names the key of what cannot be served; then nothing has changed.
        """
        async with self._lock:
            old = {loaded.id: loaded for loaded in self._fleet.codecs}
            entries = entries_of(settings)
            await asyncio.to_thread(import_plugins, settings.plugins)
            sources = {entry.id: _source(entry, key, settings) for key, entry in entries.items()}
            codecs: list[LoadedCodec] = []
            fresh: list[LoadedCodec] = []
            try:
                for key, entry in entries.items():
                    before = old.get(entry.id)
                    if before is not None and not before.unavailable and sources[entry.id] == self._sources[entry.id]:
                        codecs.append(before)
                        continue
                    loaded = await asyncio.to_thread(load_codec, entry, key, settings)
                    fresh.append(loaded)
                    await self._fleet.start_codec(loaded, settings)
                    # One that did not work before either is no reason to keep the others from changing.
                    if loaded.unavailable and not (before is not None and before.unavailable):
                        raise SettingsError(f"{key} ({entry.id}): {loaded.unavailable}")
                    codecs.append(loaded)
            except BaseException:
                for loaded in fresh:
                    await self._fleet.discard(loaded)
                raise
            self._fleet.exchange(CodecSet(codecs))
            self._sources = sources
            self._warn_of_others(settings)
            self._settings = settings
            return _change(old, codecs)

    def _warn_of_others(self, settings: Settings) -> None:
        old, new = self._settings.model_dump(), settings.model_dump()
        changed = [key for key in new if key not in _RELOADED and old[key] != new[key]]
        if changed:
            _log.warning("these settings need a restart to change", keys=changed)


def _change(old: dict[str, LoadedCodec], codecs: list[LoadedCodec]) -> Change:
    new = {loaded.id: loaded for loaded in codecs}
    return Change(
        added=sorted(new.keys() - old.keys()),
        replaced=sorted(codec_id for codec_id in new.keys() & old.keys() if new[codec_id] is not old[codec_id]),
        removed=sorted(old.keys() - new.keys()),
        kept=sorted(codec_id for codec_id in new.keys() & old.keys() if new[codec_id] is old[codec_id]),
    )


def _source(entry: CodecEntry, key: str, settings: Settings) -> tuple[Any, ...]:
    """Equal when the same codec would be loaded: entry, weights file, and what all codecs depend on."""
    if entry.remote is not None:
        return entry, entry.remote.stamps()
    general = (settings.plugins, settings.allow_untrained, settings.executors)
    try:
        spec = spec_of(entry, key)
        path: Path | None = spec.weights_path() if spec.weights is not None else None
        status = path.stat() if path is not None else None
    except (MpcompressError, OSError):  # loading it will say what is wrong
        return entry, None, general
    stamp = (status.st_mtime_ns, status.st_size, status.st_ino) if status is not None else None
    return entry, spec.weights, stamp, general
