"""The synchronous client."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Literal, overload

import grpc

from mpcompress_client import pipeline
from mpcompress_client.calls import (
    DEFAULT_LOOK_AHEAD,
    DEFAULT_LOOK_AHEAD_BYTES,
    CompressOptions,
    DecompressOptions,
    UnitLike,
    check_look_ahead,
)
from mpcompress_client.connection import Connection
from mpcompress_client.errors import MPCompressError, ServerError
from mpcompress_client.items import Decoded, Item, RequestT, ResponseT, ResultT
from mpcompress_client.source import InputT, Source
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.coded_unit import CodedUnit

Errors = Literal["raise", "return"]


class CompressionClient(Connection):
    """Compresses and decompresses through a server. How to connect, and what to ask the server: see `Connection`."""

    def compress(
        self,
        tensors: Any,
        *,
        codec: str,
        qp: float | None = None,
        token_res: Sequence[int] | None = None,
        prefix_tokens: int | None = None,
        timeout_s: float | None = None,
        **params: Any,
    ) -> CodedUnit:
        """Compresses one item.

        Args:
            tensors: an array `(L, C)` or `(B, L, C)`, or arrays by the codec's input names ("h", "ctx"); float32,
                float16, bfloat16, int8, int16 or int32, in any memory layout.
            codec: which codec, by id; `codecs()` lists them.
            qp: quantisation parameter, a multiple of 1/8; smaller is finer. None: the codec's default.
            token_res: (H, W) of the patch-token grid. None: the codec's own.
            prefix_tokens: tokens in front of the patch tokens. None: the codec's own.
            timeout_s: time limit, seconds. None: the client's.
            params: `target_bpfp`, `target_nmse`, `target_policy`, and what the codec lists as its `parameters`.

        Returns:
            The unit; `unit.save(path)` writes a .mpc file.

        Raises:
            InvalidRequestError: a tensor or parameter the codec cannot take; the message names it.
            UnknownCodecError: no such codec.
            ResourceExhaustedError: no room on the server.
            DeadlineError: out of time.
            ServerUnavailableError: the server cannot be reached.
            MPCompressError: any other failure; see mpcompress_client.errors.
        """
        options = self._options(codec, qp, token_res, prefix_tokens, params)
        return self._one(self._stub.Compress, options.item(tensors, self._timeout(timeout_s)))

    def decompress(
        self, unit: UnitLike, *, dtype: Any = None, ctx: Any = None, timeout_s: float | None = None
    ) -> Decoded:
        """Decompresses one unit.

        Args:
            unit: a CodedUnit, the bytes of a .mpc file, or the path of one.
            dtype: dtype of the result; None: the dtype that was compressed.
            ctx: the context of a context codec: an array, or arrays by name.
            timeout_s: time limit, seconds. None: the client's.

        Returns:
            The array, or arrays by name when the codec gives several.

        Raises:
            CorruptUnitError: damaged, truncated or extended bytes.
            CodecMismatchError: the server has no codec with the unit's fingerprint.
            MPCompressError: as `compress`.
        """
        item = DecompressOptions(dtype=dtype).item(unit, ctx, self._timeout(timeout_s))
        return self._one(self._stub.Decompress, item)

    @overload
    def compress_many(
        self,
        items: Iterable[Any],
        *,
        codec: str,
        qp: float | None = ...,
        token_res: Sequence[int] | None = ...,
        prefix_tokens: int | None = ...,
        timeout_s: float | None = ...,
        errors: Literal["raise"] = ...,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        **params: Any,
    ) -> Generator[CodedUnit, None, None]: ...

    @overload
    def compress_many(
        self,
        items: Iterable[Any],
        *,
        codec: str,
        qp: float | None = ...,
        token_res: Sequence[int] | None = ...,
        prefix_tokens: int | None = ...,
        timeout_s: float | None = ...,
        errors: Errors,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        **params: Any,
    ) -> Generator[CodedUnit | MPCompressError, None, None]: ...

    def compress_many(
        self,
        items: Iterable[Any],
        *,
        codec: str,
        qp: float | None = None,
        token_res: Sequence[int] | None = None,
        prefix_tokens: int | None = None,
        timeout_s: float | None = None,
        errors: Errors = "raise",
        look_ahead: int = DEFAULT_LOOK_AHEAD,
        look_ahead_bytes: int = DEFAULT_LOOK_AHEAD_BYTES,
        **params: Any,
    ) -> Generator[CodedUnit | MPCompressError, None, None]:
        """Compresses items over one stream; results in the order of `items`, each as soon as it is there.

        `items` is read in another thread, at most `look_ahead` items (and about `look_ahead_bytes`) ahead of the
        results taken. Closing or dropping the iterator cancels the rest. When the stream breaks, every item that was
        sent and not answered gets the error, and those after it go over a new stream.

        Args:
            items: what `compress` takes, one after the other.
            codec: as in `compress`, as all arguments up to `timeout_s`.
            qp: as in `compress`.
            token_res: as in `compress`.
            prefix_tokens: as in `compress`.
            timeout_s: time limit of each item, seconds.
            errors: "raise" ends with the first item's error; "return" gives the exception in the item's place.
            look_ahead: items sent and not yet taken.
            look_ahead_bytes: bytes of items sent and not yet taken.
            params: as in `compress`.

        Raises:
            MPCompressError: as `compress`, when `errors` is "raise". What `items` raises is passed on.
        """
        options = self._options(codec, qp, token_res, prefix_tokens, params)
        limit_s = self._timeout(timeout_s)
        return self._many(
            self._stub.Compress, lambda value: options.item(value, limit_s), items, errors, look_ahead, look_ahead_bytes
        )

    @overload
    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = ...,
        timeout_s: float | None = ...,
        errors: Literal["raise"] = ...,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
    ) -> Generator[Decoded, None, None]: ...

    @overload
    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = ...,
        timeout_s: float | None = ...,
        errors: Errors,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
    ) -> Generator[Decoded | MPCompressError, None, None]: ...

    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = None,
        timeout_s: float | None = None,
        errors: Errors = "raise",
        look_ahead: int = DEFAULT_LOOK_AHEAD,
        look_ahead_bytes: int = DEFAULT_LOOK_AHEAD_BYTES,
    ) -> Generator[Decoded | MPCompressError, None, None]:
        """Decompresses units over one stream; everything as `compress_many`, and each unit as in `decompress`.

        Args:
            units: units, or pairs (unit, ctx) for context codecs.
            dtype: as in `decompress`.
            timeout_s: time limit of each item, seconds.
            errors: as in `compress_many`.
            look_ahead: as in `compress_many`.
            look_ahead_bytes: as in `compress_many`; a unit counts with the tensors that it gives.

        Raises:
            MPCompressError: as `decompress`, when `errors` is "raise".
        """
        options = DecompressOptions(dtype=dtype)
        limit_s = self._timeout(timeout_s)

        def prepare(value: Any) -> Any:
            unit, ctx = value if isinstance(value, tuple) else (value, None)
            return options.item(unit, ctx, limit_s)

        return self._many(self._stub.Decompress, prepare, units, errors, look_ahead, look_ahead_bytes)

    def _options(
        self,
        codec: str,
        qp: float | None,
        token_res: Sequence[int] | None,
        prefix_tokens: int | None,
        params: dict[str, Any],
    ) -> CompressOptions:
        return CompressOptions(
            codec=codec, qp=qp, token_res=token_res, prefix_tokens=prefix_tokens, params=params, family_of=self._family
        )

    def _one(self, method: Any, item: Item[RequestT, ResponseT, ResultT]) -> ResultT:
        self._check_open()
        call = method(item.requests(1), timeout=item.timeout_s + pipeline.GRACE_S)
        result: ResultT | None = None
        try:
            for response in call:
                if response.item_id == 1 and result is None:
                    result = item.receive(response)
        except grpc.RpcError as error:
            if result is None:
                raise error_of_rpc(error, self.target) from error
        finally:
            call.cancel()
        if result is None:
            raise ServerError(f"{self.target} ended the call without a result")
        return result

    def _many(
        self,
        method: Callable[[Iterator[RequestT]], Any],
        prepare: Callable[[InputT], Item[RequestT, ResponseT, ResultT]],
        inputs: Iterable[InputT],
        errors: str,
        look_ahead: int,
        look_ahead_bytes: int,
    ) -> Generator[ResultT | MPCompressError, None, None]:
        self._check_open()
        check_look_ahead(errors, look_ahead, look_ahead_bytes)

        def make(source: Source[InputT]) -> pipeline.Pipeline[InputT, RequestT, ResponseT, ResultT]:
            self._check_open()
            return pipeline.Pipeline(
                open_call=method,
                prepare=prepare,
                source=source,
                target=self.target,
                look_ahead=look_ahead,
                look_ahead_bytes=look_ahead_bytes,
            )

        return pipeline.run(errors=errors, source=Source(inputs), make=make)
