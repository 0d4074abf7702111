"""The user's iterable of items, as a pipeline reads it. Does no input or output of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

InputT = TypeVar("InputT")


class Source(Generic[InputT]):
    """The user's iterable, which ends for good with its first exception."""

    def __init__(self, inputs: Iterable[InputT]) -> None:
        self._iterator = iter(inputs)
        self.exhausted = False

    def pull(self) -> list[InputT]:
        """The next element in a list, or an empty list at the end. Raises what the iterable raises."""
        if self.exhausted:
            return []
        try:
            return [next(self._iterator)]
        except BaseException as error:
            self.exhausted = True
            if isinstance(error, StopIteration):
                return []
            raise
