"""The metrics that gRPC servers have everywhere: names and labels of go-grpc-prometheus, for grpc.aio."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from prometheus_client import CollectorRegistry, Counter, Histogram

_LABELS = ("grpc_type", "grpc_service", "grpc_method")
_TYPES = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0, 3600.0)


class GrpcMetrics(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Counts calls and messages of every method that exists; unknown ones are not counted, so labels are bounded.

    Args:
        registry: gets the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, (*_LABELS, *labels), registry=registry)

        self.started = counter("grpc_server_started", "Calls that began.")
        self.handled = counter("grpc_server_handled", "Calls that ended, by status.", "grpc_code")
        self.received = counter("grpc_server_msg_received", "Messages that clients sent.")
        self.sent = counter("grpc_server_msg_sent", "Messages that the server sent.")
        self.seconds = Histogram(
            "grpc_server_handling_seconds", "Duration of calls.", _LABELS, buckets=_SECONDS, registry=registry
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Called by gRPC for each call."""
        handler: Any = await continuation(handler_call_details)
        if handler is not None:
            service, _, method = handler_call_details.method.strip("/").rpartition("/")
            streams = (bool(handler.request_streaming), bool(handler.response_streaming))
            kind = ("stream" if streams[0] else "unary") + ("_stream" if streams[1] else "_unary")
            call = _Call(self, (_TYPES[streams], service, method), streams)
            handler = handler._replace(**{kind: call.around(getattr(handler, kind))})
        wrapped: grpc.RpcMethodHandler[Any, Any] = handler
        return wrapped


class _Call:
    """One call while it is counted."""

    def __init__(self, metrics: GrpcMetrics, labels: tuple[str, str, str], streams: tuple[bool, bool]) -> None:
        self._metrics = metrics
        self._labels = labels
        self._requests_stream, self._responses_stream = streams
        self._received = metrics.received.labels(*labels)
        self._sent = metrics.sent.labels(*labels)

    def around(self, behaviour: Any) -> Any:
        """The same function, counted. gRPC looks at its kind: a generator stays a generator."""
        if inspect.isasyncgenfunction(behaviour):

            async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
                start, code = self._begin(), grpc.StatusCode.OK
                try:
                    async for response in behaviour(self._request(request), context):
                        self._sent.inc()
                        yield response
                except BaseException as error:
                    code = _code(error, context)
                    raise
                finally:
                    self._end(start, context.code() or code)

            return generate

        async def run(request: Any, context: Any) -> Any:
            start, code = self._begin(), grpc.StatusCode.OK
            try:
                response = await behaviour(
                    self._request(request), _CountingContext(context, self._received, self._sent)
                )
                if not self._responses_stream:
                    self._sent.inc()
                return response
            except BaseException as error:
                code = _code(error, context)
                raise
            finally:
                self._end(start, context.code() or code)

        return run

    def _begin(self) -> float:
        self._metrics.started.labels(*self._labels).inc()
        return time.perf_counter()

    def _end(self, start: float, code: grpc.StatusCode) -> None:
        # Go's names of the codes: OK, Canceled, DeadlineExceeded ...
        self._metrics.handled.labels(*self._labels, go_name(code)).inc()
        self._metrics.seconds.labels(*self._labels).observe(time.perf_counter() - start)

    def _request(self, request: Any) -> Any:
        if not self._requests_stream:
            self._received.inc()
            return request
        return self._counted(request)

    async def _counted(self, requests: Any) -> AsyncIterator[Any]:
        async for request in requests:
            self._received.inc()
            yield request


class _CountingContext:
    """A servicer context that counts what is read and written through it."""

    def __init__(self, context: Any, received: Counter, sent: Counter) -> None:
        self._context = context
        self._received = received
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        message = await self._context.read()
        if message is not grpc.aio.EOF:  # type: ignore[attr-defined]
            self._received.inc()
        return message

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._sent.inc()


def go_name(code: grpc.StatusCode) -> str:
    """The code as go-grpc-prometheus writes it, which dashboards match."""
    if code is grpc.StatusCode.OK:
        return "OK"
    if code is grpc.StatusCode.CANCELLED:
        return "Canceled"
    return "".join(word.capitalize() for word in code.name.split("_"))


def _code(error: BaseException, context: Any) -> grpc.StatusCode:
    """The status of a call that raised and set none."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left = context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN
