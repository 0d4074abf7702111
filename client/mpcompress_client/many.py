"""What `compress_many` and `decompress_many` give: results in order, or as they finish."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator

from mpcompress_client.errors import InvalidRequestError
from mpcompress_client.items import ResultT


class Many(Iterator[ResultT]):
    """Results of many items, in their order, each as soon as it is there. Nothing is pulled before one is asked for.

    Closing or dropping it cancels what is not answered.
    """

    def __init__(self, start: Callable[[bool, bool], Generator[tuple[int, ResultT], None, None]]) -> None:
        self._start = start
        self._results: Generator[tuple[int, ResultT], None, None] | None = None

    def __iter__(self) -> Many[ResultT]:
        return self

    def __next__(self) -> ResultT:
        if self._results is None:
            self._results = self._start(True, False)
        return next(self._results)[1]

    def as_completed(self) -> Generator[tuple[int, ResultT], None, None]:
        """Instead of the results in order: pairs of an item's index, from 0, and its result, as they finish.

        Raises:
            InvalidRequestError: results have been taken already.
        """
        if self._results is not None:
            raise InvalidRequestError("as_completed comes instead of iterating, not after it")
        self._results = self._start(False, False)
        return self._results

    def only(self) -> ResultT:
        """The result of a call with one item; this thread reads it."""
        ((_, result),) = self._start(True, True)
        return result

    def close(self) -> None:
        """Cancels what is not answered."""
        if self._results is None:
            self._results = self._start(True, False)
        self._results.close()


class AsyncMany(AsyncIterator[ResultT]):
    """Results of many items, in their order, each as soon as it is there. Nothing is pulled before one is asked for.

    Closing it cancels what is not answered; so does dropping it, when the event loop comes to it.
    """

    def __init__(self, start: Callable[[bool], AsyncGenerator[tuple[int, ResultT], None]]) -> None:
        self._start = start
        self._results: AsyncGenerator[tuple[int, ResultT], None] | None = None

    def __aiter__(self) -> AsyncMany[ResultT]:
        return self

    async def __anext__(self) -> ResultT:
        if self._results is None:
            self._results = self._start(True)
        return (await anext(self._results))[1]

    def as_completed(self) -> AsyncGenerator[tuple[int, ResultT], None]:
        """Instead of the results in order: pairs of an item's index, from 0, and its result, as they finish.

        Raises:
            InvalidRequestError: results have been taken already.
        """
        if self._results is not None:
            raise InvalidRequestError("as_completed comes instead of iterating, not after it")
        self._results = self._start(False)
        return self._results

    async def aclose(self) -> None:
        """Cancels what is not answered, and waits until nothing of it is left."""
        if self._results is None:
            self._results = self._start(True)
        await self._results.aclose()
