"""The synchronous client."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Literal, overload

from mpcompress_client import pipeline
from mpcompress_client.calls import (
    DEFAULT_LOOK_AHEAD,
    DEFAULT_LOOK_AHEAD_BYTES,
    DecompressOptions,
    UnitLike,
    check_look_ahead,
)
from mpcompress_client.connection import Connection
from mpcompress_client.errors import MPCompressError
from mpcompress_client.items import Decoded, Item, RequestT, ResponseT, ResultT
from mpcompress_client.many import Many
from mpcompress_client.progress import ProgressCallback, check_callback
from mpcompress_client.source import InputT, Source
from mpcompress_proto import bundles
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.parcel import Parcel

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
        progress: ProgressCallback | None = None,
        **params: Any,
    ) -> CodedUnit:
        """Compresses one item.

        Args:
            tensors: an array `(L, C)` or `(B, L, C)`, or arrays by the codec's input names ("h", "ctx"); float32,
                float16, bfloat16, int8, int16 or int32, in any memory layout. numpy arrays, torch tensors on any
                device, and whatever speaks `__array__` or DLPack.
            codec: which codec, by id; `codecs()` lists them.
            qp: quantisation parameter, a multiple of 1/8; smaller is finer. None: the codec's default.
            token_res: (H, W) of the patch-token grid. None: the codec's own.
            prefix_tokens: tokens in front of the patch tokens. None: the codec's own.
            timeout_s: time limit, all attempts together, seconds. None: the client's.
            progress: called with each `Progress` event of the item, in this or another thread.
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
        many: Many[CodedUnit] = self.compress_many(
            (tensors,),
            codec=codec,
            qp=qp,
            token_res=token_res,
            prefix_tokens=prefix_tokens,
            timeout_s=timeout_s,
            progress=progress,
            **params,
        )
        return many.only()

    def decompress(
        self,
        unit: UnitLike,
        *,
        dtype: Any = None,
        ctx: Any = None,
        out: Any = None,
        timeout_s: float | None = None,
        progress: ProgressCallback | None = None,
    ) -> Decoded:
        """Decompresses one unit.

        Args:
            unit: a CodedUnit, the bytes of a .mpc file, or the path of one.
            dtype: dtype of the result; None: that of `out`, or the dtype that was compressed.
            ctx: the context of a context codec: an array, or arrays by name.
            out: numpy array or torch tensor to write the result into, or several by output name: of the result's shape,
                and of its dtype when `dtype` is given. Only written when the whole result is there.
            timeout_s: time limit, all attempts together, seconds. None: the client's.
            progress: as in `compress`.

        Returns:
            The array, or arrays by name when the codec gives several; `out` when it was given.

        Raises:
            CorruptUnitError: damaged, truncated or extended bytes.
            CodecMismatchError: the server has no codec with the unit's fingerprint.
            MPCompressError: as `compress`.
        """
        outs = None if out is None else (out,)
        many = self.decompress_many([(unit, ctx)], dtype=dtype, out=outs, timeout_s=timeout_s, progress=progress)
        return many.only()

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
        progress: ProgressCallback | None = ...,
        **params: Any,
    ) -> Many[CodedUnit]: ...

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
        progress: ProgressCallback | None = ...,
        **params: Any,
    ) -> Many[CodedUnit | MPCompressError]: ...

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
        progress: ProgressCallback | None = None,
        **params: Any,
    ) -> Many[Any]:
        """Compresses items over one stream; results in the order of `items`, each as soon as it is there.

        `.as_completed()` gives pairs of index and result as they finish instead. `items` is read in another thread, at
        most `look_ahead` items (and about `look_ahead_bytes`) ahead of the results taken. Closing or dropping the
        iterator cancels the rest. When the stream breaks or the server stops, what was sent and not answered is sent
        again over a new stream, as far as the client's `retry` and the item's time limit go.

        Args:
            items: what `compress` takes, one after the other.
            codec: as in `compress`, as all arguments up to `timeout_s`.
            qp: as in `compress`.
            token_res: as in `compress`.
            prefix_tokens: as in `compress`.
            timeout_s: time limit of each item, from when it is first sent, seconds.
            errors: "raise" ends with the first item's error; "return" gives the exception in the item's place.
            look_ahead: items sent and not yet taken.
            look_ahead_bytes: bytes of items sent and not yet taken.
            progress: called in another thread with each `Progress` event of each item; what it raises ends the call.
            params: as in `compress`.

        Raises:
            MPCompressError: as `compress`, when `errors` is "raise". What `items` raises is passed on.
        """
        options = self._options(codec, qp, token_res, prefix_tokens, params)
        limit_s, want = self._timeout(timeout_s), check_callback(progress) is not None
        return self._many(
            "Compress",
            lambda value, _: options.item(value, limit_s, want),
            items,
            limit_s,
            errors,
            look_ahead,
            look_ahead_bytes,
            progress,
        )

    @overload
    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = ...,
        out: Any = ...,
        timeout_s: float | None = ...,
        errors: Literal["raise"] = ...,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        progress: ProgressCallback | None = ...,
    ) -> Many[Decoded]: ...

    @overload
    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = ...,
        out: Any = ...,
        timeout_s: float | None = ...,
        errors: Errors,
        look_ahead: int = ...,
        look_ahead_bytes: int = ...,
        progress: ProgressCallback | None = ...,
    ) -> Many[Decoded | MPCompressError]: ...

    def decompress_many(
        self,
        units: Iterable[UnitLike | tuple[UnitLike, Any]],
        *,
        dtype: Any = None,
        out: Any = None,
        timeout_s: float | None = None,
        errors: Errors = "raise",
        look_ahead: int = DEFAULT_LOOK_AHEAD,
        look_ahead_bytes: int = DEFAULT_LOOK_AHEAD_BYTES,
        progress: ProgressCallback | None = None,
    ) -> Many[Any]:
        """Decompresses units over one stream; everything as `compress_many`, and each unit as in `decompress`.

        Args:
            units: units, or pairs (unit, ctx) for context codecs.
            dtype: as in `decompress`.
            out: buffers by index, each as in `decompress`: a list of them, or one array `(N, ...)` for all.
            timeout_s: as in `compress_many`.
            errors: as in `compress_many`.
            look_ahead: as in `compress_many`.
            look_ahead_bytes: as in `compress_many`; a unit counts with the tensors that it gives.
            progress: as in `compress_many`.

        Raises:
            MPCompressError: as `decompress`, when `errors` is "raise".
        """
        options = DecompressOptions(dtype=dtype)
        limit_s, want = self._timeout(timeout_s), check_callback(progress) is not None
        return self._many(
            "Decompress",
            lambda value, index: options.item_of(value, limit_s, out, index, want),
            units,
            limit_s,
            errors,
            look_ahead,
            look_ahead_bytes,
            progress,
        )

    def _many(
        self,
        method: str,
        prepare: Callable[[InputT, int], Item[RequestT, ResponseT, ResultT]],
        inputs: Iterable[InputT],
        limit_s: float,
        errors: str,
        look_ahead: int,
        look_ahead_bytes: int,
        progress: ProgressCallback | None,
    ) -> Many[Any]:
        self._check_open()
        check_look_ahead(errors, look_ahead, look_ahead_bytes)

        def open_call(requests: Iterator[Parcel[RequestT]], call_limit_s: float | None) -> Any:
            self._check_open()
            return self._lines.call(method, requests, timeout_s=call_limit_s, says=bundles.METADATA)

        def open_only(requests: Iterator[Parcel[RequestT]], call_limit_s: float | None) -> Any:
            self._check_open()
            first = list(islice(requests, 2))
            # Interceptors of the user's own channel know the method as the stream that it is.
            if len(first) == 1 and self._lines.own:
                return self._lines.call(f"{method}One", first[0], timeout_s=call_limit_s)
            return self._lines.call(method, chain(first, requests), timeout_s=call_limit_s)

        def start(ordered: bool, only: bool) -> Generator[tuple[int, ResultT | MPCompressError], None, None]:
            # The end of the one item's source is looked for before its result is taken, however large it is.
            ahead_bytes = sys.maxsize if only else look_ahead_bytes

            def make() -> pipeline.Pipeline[InputT, RequestT, ResponseT, ResultT]:
                self._check_open()
                return pipeline.Pipeline(
                    open_call=open_only if only else open_call,
                    prepare=prepare,
                    source=Source(inputs),
                    ledger=self._ledger(look_ahead, ahead_bytes, ordered, progress),
                    target=self.target,
                    limit_s=limit_s if only else None,
                )

            return pipeline.run(errors=errors, make=make)

        return Many(start)
