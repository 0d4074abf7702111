"""The user's iterable of items, as a pipeline reads it. Does no input or output of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

InputT = TypeVar("InputT")


class Source(Generic[InputT]):
    """The user's iterable, with one place to put an element back."""

    def __init__(self, inputs: Iterable[InputT]) -> None:
        self._iterator = iter(inputs)
        self._returned: list[InputT] = []
        self.exhausted = False

    def pull(self) -> list[InputT]:
        """The next element in a list, or an empty list at the end. Raises what the iterable raises."""
        if self._returned:
            return [self._returned.pop()]
        if self.exhausted:
            return []
        try:
            return [next(self._iterator)]
        except BaseException as error:
            self.exhausted = True
            if isinstance(error, StopIteration):
                return []
            raise

    def put_back(self, element: InputT) -> None:
        """Makes `element` the next one."""
        self._returned.append(element)

    @property
    def done(self) -> bool:
        """Whether nothing is left."""
        return self.exhausted and not self._returned
