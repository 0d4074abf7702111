"""Settings of the server: one TOML file, a few command-line overrides, every mistake named by its key.

listen = "127.0.0.1:50051"

[limits]
max_item_bytes = 268435456

[[codecs]]
id = "klt-imgfocus-vits14-final"      # a shipped codec needs only its id

[[codecs]]
id = "my-codec"
family = "klt"
weights = "my-codec.safetensors"      # relative to this file
isolation = "process"

[[codecs]]
id = "vtm-*"                          # all shipped codecs of that pattern, on another server (docs/vtm.md)
family = "remote"
options = {target = "dns:///vtm-worker:50051"}
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from mpcompress_server.remote_options import REMOTE_FILES, RemoteOptions
from mpcompress_server.sections import Auth, Connections, Metrics, Seconds, Section, Tls, is_private, under

MIB = 1 << 20
GIB = 1 << 30
CODEC_ID = r"^[a-z0-9][a-z0-9._-]{0,63}$"
REMOTE = "remote"
_PATTERN = r"^[a-z0-9*?][a-z0-9._*?-]{0,63}$"
# An item reserves its input and its output, and twice that when its codec runs in a process of its own.
ROOM_PER_ITEM = 2


class SettingsError(ValueError):
    """A configuration that cannot be used; the message is one line and names the key."""


class Limits(Section):
    """What one server takes before it refuses."""

    max_item_bytes: int = Field(default=256 * MIB, ge=1)
    """Bytes of one item's tensors, in or out."""
    max_inflight_bytes: int = Field(default=GIB, ge=1)
    """Bytes reserved by all unfinished items of the server."""
    max_inflight_items: int = Field(default=16384, ge=1, le=1_000_000)
    """Unfinished items of the server."""
    max_inflight_bytes_per_connection: int | None = Field(default=None, ge=1)
    """Bytes reserved by all unfinished items of one connection; absent: as many as the server has."""
    max_inflight_items_per_connection: int = Field(default=4096, ge=1, le=1_000_000)
    """Unfinished items of one connection. All connections over one unix socket count as one."""
    max_items_per_stream: int = Field(default=256, ge=1, le=1_000_000)
    """Unfinished items of one stream; the next one waits like one without memory."""
    max_unread_answers: int = Field(default=16384, ge=1, le=1_000_000)
    """Answers of one stream that its client has not read; one more ends the stream."""
    reservation_timeout_s: Seconds = 10.0
    """How long a header may wait for its reservation."""
    default_timeout_s: Seconds = 120.0
    """Timeout of an item that asks for none, from its header to its final event."""
    max_timeout_s: Seconds = 3600.0
    """Longest timeout an item may ask for."""

    @model_validator(mode="after")
    def _consistent(self) -> Limits:
        if self.max_inflight_bytes < ROOM_PER_ITEM * self.max_item_bytes:
            raise ValueError(
                f"max_inflight_bytes ({self.max_inflight_bytes}) must be at least {ROOM_PER_ITEM} times max_item_bytes "
                f"({self.max_item_bytes}): an item reserves its input and its output"
            )
        own = self.max_inflight_bytes_per_connection
        if own is not None and own < ROOM_PER_ITEM * self.max_item_bytes:
            raise ValueError(
                f"max_inflight_bytes_per_connection ({own}) must be at least {ROOM_PER_ITEM} times max_item_bytes "
                f"({self.max_item_bytes})"
            )
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"default_timeout_s ({self.default_timeout_s}) is above max_timeout_s ({self.max_timeout_s})"
            )
        return self


class Executors(Section):
    """How codecs run."""

    numeric_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the numerical libraries (BLAS, OpenMP) per codec call; 0: cores over codec instances, 1 to 4."""
    watchdog_s: Seconds = 300.0
    """A worker process silent for this long has hung: it is killed and started again."""
    start_timeout_s: Seconds = 180.0
    """How long a worker process may take to load and warm up its codec."""


class Worker(Section):
    """How a server of role `vtm-worker` works."""

    slots: int = Field(default=0, ge=0, le=1024)
    """Encoders and decoders that run at a time, the other items wait; 0: as many as cores are free to be used."""


class CodecEntry(Section):
    """One codec to serve: a shipped one by its id, a family with its weights, or one that another server has."""

    id: str = Field(pattern=_PATTERN)
    """Of family `remote` also a pattern with * and ?, for all shipped codecs that it fits."""
    family: str | None = None
    weights: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    isolation: Literal["thread", "process"] = "thread"
    """Where it runs: a thread of the server, or a supervised process that may crash alone."""
    instances: int = Field(default=1, ge=1, le=256)
    """Copies that work at the same time, on each device."""
    devices: tuple[str, ...] = Field(default=(), max_length=64)
    """Devices to run on ("cuda:0", "cuda:1"), for codecs with the option `device`; none: what their options say."""
    max_batch: int = Field(default=8, ge=1, le=4096)
    """Most items of one codec call."""
    max_delay_ms: float = Field(default=0.0, ge=0, le=60_000, allow_inf_nan=False)
    """How long an item may wait for others to share its call; 0: no longer than the codec is busy anyway."""
    max_worker_bytes: int | None = Field(default=None, ge=64 * MIB)
    """Memory that a worker process may take beyond what it has once it is warm; with isolation = "process" only."""

    @property
    def remote(self) -> RemoteOptions | None:
        """Where the codec runs, if that is another server."""
        return RemoteOptions.model_validate(self.options) if self.family == REMOTE else None

    @model_validator(mode="after")
    def _known(self) -> CodecEntry:
        if self.family != REMOTE and re.fullmatch(CODEC_ID, self.id) is None:
            raise ValueError(f'{self.id!r} is no codec id; patterns are for entries of family = "remote"')
        if self.family == REMOTE:
            try:
                RemoteOptions.model_validate(self.options)
            except ValidationError as error:
                raise ValueError(f"options.{_one_line(error)}") from error
            others = self.model_fields_set - {"id", "family", "options"}
            if others:
                raise ValueError(f"{sorted(others)[0]} says how a codec runs here; one of another server does not")
        return self

    @model_validator(mode="after")
    def _complete(self) -> CodecEntry:
        if self.family is None and self.weights is not None:
            raise ValueError("weights without a family: say which family reads them")
        if self.max_worker_bytes is not None and self.isolation != "process":
            raise ValueError('max_worker_bytes needs isolation = "process"')
        if len(set(self.devices)) != len(self.devices):
            raise ValueError("a device is there twice; use instances")
        return self


class Settings(Section):
    """Everything the server can be told. Codecs absent: all shipped ones."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT, [IPV6]:PORT or unix:PATH; port 0 takes a free one."""
    role: Literal["server", "vtm-worker"] = "server"
    """`vtm-worker`: picture codecs only, as many encoders at a time as cores, one process for each item."""
    grace_s: Seconds = 30.0
    """How long unfinished items have after SIGTERM."""
    allow_untrained: bool = False
    """Serve codecs of random weights, which only tests want; else they are listed as unavailable."""
    plugins: tuple[str, ...] = ()
    """Python modules to import at start; they register codec families."""
    limits: Limits = Limits()
    executors: Executors = Executors()
    worker: Worker = Worker()
    tls: Tls = Tls()
    auth: Auth = Auth()
    connections: Connections = Connections()
    metrics: Metrics = Metrics()
    codecs: tuple[CodecEntry, ...] | None = None

    @field_validator("listen")
    @classmethod
    def _address(cls, value: str) -> str:
        if value.startswith("unix:") and len(value) > len("unix:"):
            return value
        match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):(\d{1,5})", value)
        if match is None or int(match.group(2)) > 65535:
            raise ValueError(f"{value!r} is no HOST:PORT, [IPV6]:PORT or unix:PATH")
        return value

    @field_validator("codecs")
    @classmethod
    def _distinct(cls, value: tuple[CodecEntry, ...] | None) -> tuple[CodecEntry, ...] | None:
        ids = [entry.id for entry in value or ()]
        for codec_id in ids:
            if ids.count(codec_id) > 1:
                raise ValueError(f"codec id {codec_id!r} is there twice")
        return value

    @model_validator(mode="after")
    def _tokens_stay_secret(self) -> Settings:
        reachable = not self.tls.enabled and not is_private(self.listen)
        if self.auth.tokens is not None and reachable and not self.auth.allow_plaintext:
            raise ValueError(
                f"auth.tokens: they would travel unencrypted to {self.listen}; give tls.cert and tls.key, or set "
                "auth.allow_plaintext = true behind a proxy that does TLS"
            )
        return self


def load_settings(path: Path | None, **overrides: Any) -> Settings:
    """Reads the settings.

    Args:
        path: TOML file; None for the defaults.
        overrides: top-level keys that win over the file; None means not given.

    Raises:
        SettingsError: unreadable file, bad TOML, unknown key or bad value.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingsError(f"{path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SettingsError(f"{path}: not TOML: {error}") from error
    values |= {key: value for key, value in overrides.items() if value is not None}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        where = f"{path}: " if path is not None else ""
        raise SettingsError(where + _one_line(error)) from error
    return settings if path is None else _relative_to(settings, path.resolve().parent)


def _one_line(error: ValidationError) -> str:
    """The first mistake as "key.path: what"; the number of others after it."""
    first, *others = error.errors(include_url=False)
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    text = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    more = f" (and {len(others)} more)" if others else ""
    return f"{key}: {text}{more}" if key else f"{text}{more}"


def _relative_to(settings: Settings, folder: Path) -> Settings:
    """Paths in a file are relative to that file, wherever the server is started."""
    tls, auth = under(folder, settings.tls, "cert", "key", "client_ca"), under(folder, settings.auth, "tokens")
    settings = settings.model_copy(update={"tls": tls, "auth": auth})
    if settings.codecs is None:
        return settings
    return settings.model_copy(update={"codecs": tuple(_entry_under(folder, entry) for entry in settings.codecs)})


def _entry_under(folder: Path, entry: CodecEntry) -> CodecEntry:
    if entry.family == REMOTE:
        files = {key: str(folder / entry.options[key]) for key in REMOTE_FILES if entry.options.get(key) is not None}
        return entry.model_copy(update={"options": {**entry.options, **files}})
    if entry.weights is None or entry.weights.startswith("package:"):
        return entry
    return entry.model_copy(update={"weights": str(folder / entry.weights)})
