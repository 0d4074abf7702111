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
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

MIB = 1 << 20
GIB = 1 << 30
CODEC_ID = r"^[a-z0-9][a-z0-9._-]{0,63}$"
# An item reserves its input and its output, and twice that when its codec runs in a process of its own.
ROOM_PER_ITEM = 2

Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class SettingsError(ValueError):
    """A configuration that cannot be used; the message is one line and names the key."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class Limits(_Section):
    """What one server takes before it refuses."""

    max_item_bytes: int = Field(default=256 * MIB, ge=1)
    """Bytes of one item's tensors, in or out."""
    max_inflight_bytes: int = Field(default=GIB, ge=1)
    """Bytes reserved by all unfinished items of the server."""
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
        if self.default_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"default_timeout_s ({self.default_timeout_s}) is above max_timeout_s ({self.max_timeout_s})"
            )
        return self


class Executors(_Section):
    """How codecs run."""

    numeric_threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the numerical libraries (BLAS, OpenMP) per codec call; 0: cores over codec instances, 1 to 4."""
    watchdog_s: Seconds = 300.0
    """A worker process silent for this long has hung: it is killed and started again."""
    start_timeout_s: Seconds = 180.0
    """How long a worker process may take to load and warm up its codec."""


class CodecEntry(_Section):
    """One codec to serve: a shipped one by its id, or a family with its weights."""

    id: str = Field(pattern=CODEC_ID)
    family: str | None = None
    weights: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    isolation: Literal["thread", "process"] = "thread"
    """Where it runs: a thread of the server, or a supervised process that may crash alone."""
    instances: int = Field(default=1, ge=1, le=256)
    """Copies that work at the same time."""

    @model_validator(mode="after")
    def _complete(self) -> CodecEntry:
        if self.family is None and self.weights is not None:
            raise ValueError("weights without a family: say which family reads them")
        return self


class Settings(_Section):
    """Everything the server can be told. Codecs absent: all shipped ones."""

    listen: str = "127.0.0.1:50051"
    """HOST:PORT, [IPV6]:PORT or unix:PATH; port 0 takes a free one."""
    grace_s: Seconds = 30.0
    """How long unfinished items have after SIGTERM."""
    allow_untrained: bool = False
    """Serve codecs of random weights, which only tests want; else they are listed as unavailable."""
    plugins: tuple[str, ...] = ()
    """Python modules to import at start; they register codec families."""
    limits: Limits = Limits()
    executors: Executors = Executors()
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
    return f"{key or 'settings'}: {text}{more}"


def _relative_to(settings: Settings, folder: Path) -> Settings:
    """Weights named in a file are relative to that file, wherever the server is started."""
    if settings.codecs is None:
        return settings
    entries = tuple(
        entry.model_copy(update={"weights": str(folder / entry.weights)})
        if entry.weights is not None and not entry.weights.startswith("package:")
        else entry
        for entry in settings.codecs
    )
    return settings.model_copy(update={"codecs": entries})
