"""Numba compiles faster when it remembers what it has found out, and when nobody looks for garbage meanwhile."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from typing import Any

from numba.core.types.functions import BaseFunction

__all__ = ["remembering"]

_Function: Any = BaseFunction
_lock = threading.RLock()


@contextlib.contextmanager
def remembering() -> Iterator[None]:
    """Within: one kernel is compiled.

    Numba types every operation anew, nine of ten with arguments that it has seen before, and asks for a `+` what
    strings and sets say to it: a tenth of its time. Another tenth would go into looking for cycles, as a compiler makes
    a million objects and drops few.
    """
    known: dict[Any, Any] = {}

    def get_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
        key = self, context, args, tuple(kws.items())
        if key not in known:
            known[key] = first(self, context, args, kws)
        return known[key]

    with _lock:  # of the class, which all threads share
        first = _Function.get_call_type
        enabled = gc.isenabled()
        gc.disable()
        _Function.get_call_type = get_call_type
        try:
            yield
        finally:
            _Function.get_call_type = first
            if enabled:
                gc.enable()
