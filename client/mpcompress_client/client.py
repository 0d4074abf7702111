"""The synchronous client."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

import grpc

from mpcompress_client import infos, pipeline
from mpcompress_client.calls import (
    DEFAULT_LOOK_AHEAD,
    DEFAULT_LOOK_AHEAD_BYTES,
    DEFAULT_TIMEOUT_S,
    CompressOptions,
    DecompressOptions,
    UnitLike,
    check_look_ahead,
    check_target,
)
from mpcompress_client.errors import InvalidRequestError, MPCompressError, ServerError
from mpcompress_client.items import Decoded, Item, RequestT, ResponseT, ResultT, check_timeout
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1.compression_pb2_grpc import CompressionServiceStub

InputT = TypeVar("InputT")
Errors = Literal["raise", "return"]


class CompressionClient:
    """Talks to a server; use it as a context manager. May be shared by threads.

    Args:
        target: the server's address, "host:port" or any gRPC target.
        timeout_s: time limit of each item and call, seconds.
        credentials: TLS credentials; None talks plain text.
        channel: an open channel to use instead of a new one; it is not closed.
        options: further gRPC channel options.

    Raises:
        InvalidRequestError: a target that is no address.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        credentials: grpc.ChannelCredentials | None = None,
        channel: grpc.Channel | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        self.target = check_target(target)
        self.timeout_s = check_timeout(timeout_s)
        self._owned = channel is None
        if channel is not None:
            self._channel = channel
        elif credentials is not None:
            self._channel = grpc.secure_channel(target, credentials, options=list(options))
        else:
            self._channel = grpc.insecure_channel(target, options=list(options))
        self._stub = CompressionServiceStub(self._channel)
        self._families: dict[str, str] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> CompressionClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are under way end with CancelledError."""
        self._closed = True
        if self._owned:
            self._channel.close()

    # ------------------------------------------------------------------------------------------------ one item

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
        options = CompressOptions(
            codec=codec, qp=qp, token_res=token_res, prefix_tokens=prefix_tokens, params=params, family_of=self._family
        )
        item = options.item(tensors, self._timeout(timeout_s))
        return self._one(self._stub.Compress, item)

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

    # ---------------------------------------------------------------------------------------------- many items

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
        options = CompressOptions(
            codec=codec, qp=qp, token_res=token_res, prefix_tokens=prefix_tokens, params=params, family_of=self._family
        )
        limit_s = self._timeout(timeout_s)
        return self._many(
            self._stub.Compress, lambda value: options.item(value, limit_s), items, errors, look_ahead, look_ahead_bytes
        )

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

    # --------------------------------------------------------------------------------------------- the server

    def codecs(self, *, timeout_s: float | None = None) -> list[infos.CodecInfo]:
        """The server's codecs, in order of id."""
        response = self._list(timeout_s)
        return [infos.codec_info(message) for message in response.codecs]

    def limits(self, *, timeout_s: float | None = None) -> infos.ServerLimits:
        """What the server takes, and its version."""
        return infos.server_limits(self._list(timeout_s))

    def codec_file(self, codec: str, *, fingerprint: bytes = b"", timeout_s: float | None = None) -> bytes:
        """The file with which a device runs a codec itself, checked against its SHA-256.

        Raises:
            UnknownCodecError: no such codec.
            CodecMismatchError: the server's file has another fingerprint than the one asked for.
            CodecUnavailableError: this codec has no file.
            ServerError: the file arrived damaged.
        """
        self._check_open()
        request = pb.GetCodecFileRequest(codec_id=codec, fingerprint=fingerprint)
        call: Any = self._stub.GetCodecFile(request, timeout=self._timeout(timeout_s))
        header: pb.CodecFileHeader | None = None
        data = bytearray()
        try:
            for response in call:
                if response.WhichOneof("message") == "header":
                    header = response.header
                else:
                    data += response.data
                if header is None or len(data) > header.size_bytes:
                    break
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        finally:
            call.cancel()
        if header is None or len(data) != header.size_bytes or hashlib.sha256(data).digest() != header.sha256:
            raise ServerError(f"the codec file of {codec} arrived damaged: its size or SHA-256 does not match")
        return bytes(data)

    # -------------------------------------------------------------------------------------------------- inside

    def _timeout(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else check_timeout(timeout_s)

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidRequestError("this client is closed")

    def _list(self, timeout_s: float | None) -> pb.ListCodecsResponse:
        self._check_open()
        try:
            response: pb.ListCodecsResponse = self._stub.ListCodecs(
                pb.ListCodecsRequest(), timeout=self._timeout(timeout_s)
            )
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        with self._lock:
            self._families = {codec.codec_id: codec.family for codec in response.codecs}
        return response

    def _family(self, codec: str) -> str:
        """The family of a codec; asks the server once. "" when the server does not list it."""
        with self._lock:
            known = self._families
        if known is None or codec not in known:
            self._list(None)
            known = self._families or {}
        return known.get(codec, "")

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

        def make(
            source: pipeline.Source[InputT],
        ) -> pipeline.Pipeline[InputT, RequestT, ResponseT, ResultT]:
            self._check_open()
            return pipeline.Pipeline(
                open_call=method,
                prepare=prepare,
                source=source,
                target=self.target,
                look_ahead=look_ahead,
                look_ahead_bytes=look_ahead_bytes,
            )

        return pipeline.run(errors=errors, source=pipeline.Source(inputs), make=make)
