"""Giving up work that takes minutes."""

from __future__ import annotations

from typing import Protocol

from mpcompress.errors import MpcompressError

__all__ = ["CancelToken", "CodingCancelledError", "raise_if_cancelled"]


class CancelToken(Protocol):
    """What tells an encoder to stop: a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether the caller no longer wants the result."""
        ...


class CodingCancelledError(MpcompressError, RuntimeError):
    """The caller's cancel token was set; every process that worked for it is gone."""


def raise_if_cancelled(cancel: CancelToken | None) -> None:
    """Raises CodingCancelledError when `cancel` is set."""
    if cancel is not None and cancel.is_set():
        raise CodingCancelledError("cancelled by the caller")
