"""Giving up work that takes minutes."""

from __future__ import annotations

from mpcompress.codec import CancelToken
from mpcompress.errors import CodingCancelledError

__all__ = ["CancelToken", "CodingCancelledError", "raise_if_cancelled"]


def raise_if_cancelled(cancel: CancelToken | None) -> None:
    """Raises CodingCancelledError when `cancel` is set."""
    if cancel is not None and cancel.is_set():
        raise CodingCancelledError("cancelled by the caller")
