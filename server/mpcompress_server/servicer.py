"""The four RPCs, bound by hand: a message that cannot be parsed must end its stream with a status that says so."""

from __future__ import annotations

import asyncio
import hashlib
import re
import uuid
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

import mpcompress
from mpcompress.errors import CodecMismatchError, CodecUnavailableError
from mpcompress_proto import bundles
from mpcompress_proto.errors import WireError
from mpcompress_proto.tensors import MAX_CHUNK_BYTES
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import messages as convert
from mpcompress_server.admission import Connections
from mpcompress_server.counters import Counters
from mpcompress_server.errors import INTERNAL, ProtocolError, ServerError, StreamError, abort, rule_of
from mpcompress_server.forwarding import error_of_call
from mpcompress_server.operations import CompressOperation, DecompressOperation, Operation
from mpcompress_server.reservation import ByteBudget
from mpcompress_server.routing import LocalRoute, RemoteRoute, Router
from mpcompress_server.scheduler import Scheduler
from mpcompress_server.settings import Limits
from mpcompress_server.stream import Stream

SERVICE = "mpcompress.v1.CompressionService"
MAX_MESSAGE_BYTES = 4 << 20
# The stream that an item came by where it was forwarded: a worker takes streams in turn, and each item is a call there.
_TURN = "x-mpcompress-stream"
_TRACE = re.compile(r"[\x20-\x7e]{1,512}")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,64}")

Context = grpc.aio.ServicerContext[Any, Any]


class Servicer:
    """Holds what all calls share.

    Args:
        router: finds codecs.
        limits: of the server.
        scheduler: runs complete items.
        counters: told what becomes of items.
    """

    def __init__(self, *, router: Router, limits: Limits, scheduler: Scheduler, counters: Counters) -> None:
        self.budget = ByteBudget(limits.max_inflight_bytes, limits.max_inflight_items)
        self.connections = Connections(limits)
        self.counters = counters
        self._router = router
        self._limits = limits
        self._scheduler = scheduler
        self._streams: set[Stream] = set()
        self._background: set[asyncio.Future[Any]] = set()
        self._draining_s: float | None = None

    def drain(self, grace_s: float) -> None:
        """Tells every stream to finish what it has."""
        self._draining_s = grace_s
        for stream in list(self._streams):
            stream.drain(grace_s)

    async def settle(self) -> None:
        """Waits for work whose call has ended."""
        while self._background:
            await asyncio.wait(set(self._background))

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The RPCs, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        compress = CompressOperation(self._router, self._limits)
        decompress = DecompressOperation(self._router, self._limits)
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Compress": _stream_handler(compress, self._serve),
                "Decompress": _stream_handler(decompress, self._serve),
                "ListCodecs": grpc.unary_unary_rpc_method_handler(
                    self._list_codecs,
                    request_deserializer=_reader(pb.ListCodecsRequest.FromString, pb.ListCodecsRequest),
                    response_serializer=pb.ListCodecsResponse.SerializeToString,
                ),
                "GetCodecFile": grpc.unary_stream_rpc_method_handler(
                    self._get_codec_file,
                    request_deserializer=_reader(pb.GetCodecFileRequest.FromString, pb.GetCodecFileRequest),
                    response_serializer=pb.GetCodecFileResponse.SerializeToString,
                ),
            },
        )

    async def _serve(self, operation: Operation, context: Context) -> None:
        request_id = request_id_of(context)
        most_bundled = bundles.accepted(context.invocation_metadata())
        if most_bundled > 1:
            await context.send_initial_metadata(bundles.METADATA)
        with self.connections.budget(context.peer()) as budget:
            stream = Stream(
                operation=operation,
                limits=self._limits,
                budgets=(budget, self.budget),
                scheduler=self._scheduler,
                counters=self.counters,
                request_id=request_id,
                turn=_metadata_of(context, _TURN, _REQUEST_ID),
                metadata=_passed_on(context, request_id),
                background=self._background,
                most_bundled=most_bundled,
            )
            await self._run(stream, context, request_id)

    async def _run(self, stream: Stream, context: Context, request_id: str) -> None:
        self._streams.add(stream)
        try:
            if self._draining_s is not None:
                stream.drain(self._draining_s)
            await stream.run(context)
        except StreamError as error:
            await abort(context, error, request_id)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            structlog.get_logger("mpcompress_server").error("call failed", request_id=request_id, exc_info=error)
            await abort(context, error, request_id)
        finally:
            self._streams.discard(stream)

    async def _list_codecs(
        self, request: pb.ListCodecsRequest | ServerError, context: Context
    ) -> pb.ListCodecsResponse:
        if isinstance(request, ServerError):
            await abort(context, request, request_id_of(context))
        return pb.ListCodecsResponse(
            codecs=[convert.codec_info(loaded) for loaded in self._router.visible()],
            limits=convert.limits_message(self._limits),
            server_version=mpcompress.__version__,
        )

    async def _get_codec_file(self, request: pb.GetCodecFileRequest | ServerError, context: Context) -> None:
        request_id = request_id_of(context)
        try:
            if isinstance(request, ServerError):
                raise request
            await self._send_codec_file(request, context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            log = structlog.get_logger("mpcompress_server").bind(request_id=request_id, method="get_codec_file")
            if rule_of(error) is INTERNAL:
                log.error("call failed", exc_info=error)
            else:
                log.info("call failed", reason=rule_of(error).reason, error=str(error))
            await abort(context, error, request_id)

    async def _send_codec_file(self, request: pb.GetCodecFileRequest, context: Context) -> None:
        route = self._router.for_compress(request.codec_id)
        match route:
            case RemoteRoute():
                await self._relay_codec_file(request, route, context)
                return
            case LocalRoute():
                codec = route.loaded.ready()
        if request.fingerprint and request.fingerprint != codec.fingerprint:
            raise CodecMismatchError(
                f"codec {codec.id} has fingerprint {codec.fingerprint.hex()} here", field="fingerprint"
            )
        content = await asyncio.to_thread(codec.codec_file)
        if not content:
            raise CodecUnavailableError(f"codec {codec.id} runs on a server only: it has no file", field="codec_id")
        header = pb.CodecFileHeader(
            codec_id=request.codec_id,
            fingerprint=codec.fingerprint,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).digest(),
            file_name=f"{request.codec_id}.safetensors",
        )
        await context.write(pb.GetCodecFileResponse(header=header))
        for start in range(0, len(content), MAX_CHUNK_BYTES):
            await context.write(pb.GetCodecFileResponse(data=content[start : start + MAX_CHUNK_BYTES]))

    async def _relay_codec_file(self, request: pb.GetCodecFileRequest, route: RemoteRoute, context: Context) -> None:
        server = route.server
        call = server.stub.GetCodecFile(
            request,
            timeout=context.time_remaining(),
            metadata=[*server.metadata(), *_passed_on(context, request_id_of(context))],
        )
        try:
            async for message in call:
                await context.write(message)
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, server) from error
        finally:
            call.cancel()


def _stream_handler(
    operation: Operation, serve: Callable[[Operation, Context], Any]
) -> grpc.RpcMethodHandler[Any, Any]:
    async def handle(_requests: Any, context: Context) -> None:
        await serve(operation, context)

    return grpc.stream_stream_rpc_method_handler(
        handle,
        request_deserializer=_reader(operation.requests.read, operation.request),
        response_serializer=operation.responses.write,
    )


def _reader(parse: Callable[[bytes], Any], message: type[Any]) -> Callable[[bytes], Any]:
    """Parses requests. What cannot be parsed becomes the error to answer with: raising here would lose the reason."""

    def read(data: bytes) -> Any:
        if len(data) > MAX_MESSAGE_BYTES:
            return ProtocolError(f"a message of {len(data)} bytes; at most {MAX_MESSAGE_BYTES}", field="message")
        try:
            return parse(data)
        except DecodeError:
            return ProtocolError(f"not a {message.DESCRIPTOR.name}", field="message")
        except WireError as error:
            return ProtocolError(error.message, field=error.field)

    return read


def request_id_of(context: Context) -> str:
    """The caller's x-request-id when it is harmless in a log, else a fresh one."""
    return _metadata_of(context, "x-request-id", _REQUEST_ID) or uuid.uuid4().hex


def _metadata_of(context: Context, wanted: str, harmless: re.Pattern[str]) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == wanted and isinstance(value, str) and harmless.fullmatch(value):
            return value
    return None


def _passed_on(context: Context, request_id: str) -> tuple[tuple[str, str], ...]:
    """What a worker is to know of a call: its ids for the logs and traces, and that its items are one stream's."""
    found = {key: _metadata_of(context, key, _TRACE) for key in ("traceparent", "tracestate")}
    own = (("x-request-id", request_id), (_TURN, _metadata_of(context, _TURN, _REQUEST_ID) or uuid.uuid4().hex))
    return (*own, *((key, value) for key, value in found.items() if value is not None))
