"""The asyncio client: the calls of `client`, awaited."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Sequence
from typing import Any, Literal, overload

from mpcompress_client.async_connection import AsyncConnection
from mpcompress_client.async_pipeline import AsyncPipeline
from mpcompress_client.calls import (
    DEFAULT_LOOK_AHEAD,
    DEFAULT_LOOK_AHEAD_BYTES,
    CompressOptions,
    DecompressOptions,
    UnitLike,
    check_look_ahead,
)
from mpcompress_client.client import Errors
from mpcompress_client.errors import MPCompressError
from mpcompress_client.items import Decoded, Item, ResultT
from mpcompress_client.many import AsyncMany
from mpcompress_client.progress import ProgressCallback, check_callback
from mpcompress_proto import bundles
from mpcompress_proto.coded_unit import CodedUnit

Prepare = Callable[[Any, int], Item[Any, Any, Any]]


class AsyncCompressionClient(AsyncConnection):
    """Compresses and decompresses through a server, in an event loop.

    ```python
    async with AsyncCompressionClient("127.0.0.1:50051") as client:
        unit = await client.compress(features, codec="klt-imgfocus-vits14-final", qp=24)
        async for unit in client.compress_many(frames(), codec="klt-imgfocus-vits14-final"):
            ...
    ```

    Arguments, results and errors are those of `CompressionClient`.
    """

    async def compress(
        self,
        tensors: Any,
        *,
        codec: str,
        qp: float | None = None,
        token_res: Sequence[int] | None = None,
        prefix_tokens: int | None = None,
        timeout_s: float | None = None,
        progress: ProgressCallback | None = None,
        **params: Any,
    ) -> CodedUnit:
        """Compresses one item; as `CompressionClient.compress`. Cancelling the task cancels the item."""
        many: AsyncMany[CodedUnit] = self.compress_many(
            (tensors,),
            codec=codec,
            qp=qp,
            token_res=token_res,
            prefix_tokens=prefix_tokens,
            timeout_s=timeout_s,
            progress=progress,
            **params,
        )
        return await _only(many)

    async def decompress(
        self,
        unit: UnitLike,
        *,
        dtype: Any = None,
        ctx: Any = None,
        out: Any = None,
        timeout_s: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> Decoded:
        """Decompresses one unit; as `CompressionClient.decompress`. Cancelling the task cancels the item."""
        outs = None if out is None else (out,)
        many = self.decompress_many([(unit, ctx)], dtype=dtype, out=outs, timeout_s=timeout_s, progress=progress)
        return await _only(many)

    @overload
    def compress_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        codec: str,
        qp: float | None = ...,
        token_res: Sequence[int] | None = ...,
        prefix_tokens: int | None = ...,
        timeout_s: float | None = ...,
        errors: Literal["raise"] = ...,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        progress: ProgressCallback | None = ...,
        **params: Any,
    ) -> AsyncMany[CodedUnit]: ...

    @overload
    def compress_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        codec: str,
        qp: float | None = ...,
        token_res: Sequence[int] | None = ...,
        prefix_tokens: int | None = ...,
        timeout_s: float | None = ...,
        errors: Errors,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        progress: ProgressCallback | None = ...,
        **params: Any,
    ) -> AsyncMany[CodedUnit | MPCompressError]: ...

    def compress_many(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        codec: str,
        qp: float | None = None,
        token_res: Sequence[int] | None = None,
        prefix_tokens: int | None = None,
        timeout_s: float | None = None,
        errors: Errors = "raise",
        look_ahead: int = DEFAULT_LOOK_AHEAD,
        look_ahead_bytes: int = DEFAULT_LOOK_AHEAD_BYTES,
        progress: ProgressCallback | None = None,
        **params: Any,
    ) -> AsyncMany[Any]:
        """Compresses items over one stream; as `CompressionClient.compress_many`, for `async for`.

        `items` may be an asynchronous iterable. One that is not is read in another thread, unless it is a sequence.
        `progress` is called in the event loop. `aclose()` waits until nothing of the call is left.
        """
        limit_s, want = self._timeout(timeout_s), check_callback(progress) is not None

        # What is wrong is said at once, unless the server has to be asked first what the parameters mean.
        asks = CompressOptions.asks_for_family(params) and not self._knows_family(codec)
        checked = None if asks else self._options(codec, qp, token_res, prefix_tokens, params)

        async def prepare() -> Prepare:
            options = checked
            if options is None:
                await self._list(None)
                options = self._options(codec, qp, token_res, prefix_tokens, params)
            ready = options
            return lambda value, _: ready.item(value, limit_s, want)

        return self._many("Compress", prepare, items, errors, look_ahead, look_ahead_bytes, progress)

    @overload
    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]] | AsyncIterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = ...,
        out: Any = ...,
        timeout_s: float | None = ...,
        errors: Literal["raise"] = ...,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        progress: ProgressCallback | None = ...,
    ) -> AsyncMany[Decoded]: ...

    @overload
    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]] | AsyncIterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = ...,
        out: Any = ...,
        timeout_s: float | None = ...,
        errors: Errors,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        progress: ProgressCallback | None = ...,
    ) -> AsyncMany[Decoded | MPCompressError]: ...

    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]] | AsyncIterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = None,
        out: Any = None,
        timeout_s: float | None = None,
        errors: Errors = "raise",
        look_ahead: int = DEFAULT_LOOK_AHEAD,
        look_ahead_bytes: int = DEFAULT_LOOK_AHEAD_BYTES,
        progress: ProgressCallback | None = None,
    ) -> AsyncMany[Any]:
        """Decompresses units over one stream; everything as `compress_many` and `CompressionClient.decompress_many`."""
        options = DecompressOptions(dtype=dtype)
        limit_s, want = self._timeout(timeout_s), check_callback(progress) is not None

        async def prepare() -> Prepare:
            return lambda value, index: options.item_of(value, limit_s, out, index, want)

        return self._many("Decompress", prepare, units, errors, look_ahead, look_ahead_bytes, progress)

    def _many(
        self,
        method: str,
        prepare: Callable[[], Awaitable[Prepare]],
        inputs: Iterable[Any] | AsyncIterable[Any],
        errors: str,
        look_ahead: int,
        look_ahead_bytes: int,
        progress: ProgressCallback | None,
    ) -> AsyncMany[Any]:
        self._check_open()
        check_look_ahead(errors, look_ahead, look_ahead_bytes)

        def open_call() -> Any:
            self._check_open()
            return self._lines.call(method, says=bundles.METADATA)

        async def start(ordered: bool) -> AsyncGenerator[tuple[int, Any], None]:
            self._check_open()
            pipeline: AsyncPipeline[Any, Any, Any, Any] = AsyncPipeline(
                open_call=open_call,
                prepare=await prepare(),
                inputs=inputs,
                ledger=self._ledger(look_ahead, look_ahead_bytes, ordered, progress),
                target=self.target,
            )
            results = pipeline.results(errors)
            try:
                async for result in results:
                    yield result
            finally:
                await results.aclose()

        return AsyncMany(start)


async def _only(many: AsyncMany[ResultT]) -> ResultT:
    """The result of a call with one item; ends the call properly, also when the task is cancelled."""
    try:
        (result,) = [result async for result in many]
    finally:
        await many.aclose()
    return result
