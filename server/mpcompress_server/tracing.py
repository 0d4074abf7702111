"""OpenTelemetry spans: one per call, and below it one per stage of each item.

There is nothing to set. When OpenTelemetry's packages are installed and a tracer provider is configured, which
`opentelemetry-instrument mpcompress-server serve` does from its environment variables, calls become spans; else this
module costs one failed import at start. A call's parent is what its `traceparent` metadata says.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from mpcompress_server.counters import Counters
from mpcompress_server.servicer import SERVICE, request_id_of

# Statuses that are the server's fault; the others are answers.
_FAILURES = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


def configured_provider() -> Any:
    """The tracer provider that somebody configured, or None: then spans would go nowhere."""
    try:
        trace = importlib.import_module("opentelemetry.trace")
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    return None if isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider) else provider


class Tracing(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Makes the spans of one server.

    Args:
        provider: where tracers come from.
        counters: of the server; the stages of items are heard from it.
    """

    def __init__(self, provider: Any, counters: Counters) -> None:
        self._trace = importlib.import_module("opentelemetry.trace")
        self._propagate = importlib.import_module("opentelemetry.propagate")
        self._tracer = provider.get_tracer("mpcompress_server")
        before = counters.on_stage

        def on_stage(operation: str, codec_id: str, stage: str, seconds: float, item_id: int) -> None:
            before(operation, codec_id, stage, seconds, item_id)
            self._stage(operation, codec_id, stage, seconds, item_id)

        counters.on_stage = on_stage

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Called by gRPC for each call."""
        handler: Any = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.strip("/").rpartition("/")
        if handler is not None and service == SERVICE:  # no spans for every probe of its health
            kind = ("stream" if handler.request_streaming else "unary") + (
                "_stream" if handler.response_streaming else "_unary"
            )
            metadata = handler_call_details.invocation_metadata or ()
            carrier = {key: value for key, value in metadata if isinstance(value, str)}
            parent = self._propagate.extract(carrier)
            handler = handler._replace(**{kind: self._around(getattr(handler, kind), service, method, parent)})
        wrapped: grpc.RpcMethodHandler[Any, Any] = handler
        return wrapped

    def _around(self, behaviour: Any, service: str, method: str, parent: Any) -> Any:
        if not inspect.iscoroutinefunction(behaviour):
            raise TypeError(f"{method} is no coroutine function")

        async def run(request: Any, context: Any) -> Any:
            with self._tracer.start_as_current_span(
                f"{service}/{method}",
                context=parent,
                kind=self._trace.SpanKind.SERVER,
                attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                span.set_attribute("mpcompress.request_id", request_id_of(context))
                code = grpc.StatusCode.OK
                try:
                    return await behaviour(request, context)
                except Exception:
                    code = grpc.StatusCode.UNKNOWN
                    raise
                except BaseException:
                    code = grpc.StatusCode.CANCELLED
                    raise
                finally:
                    code = context.code() or code
                    span.set_attribute("rpc.grpc.status_code", code.value[0])
                    if code in _FAILURES:
                        span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, code.name))

        return run

    def _stage(self, operation: str, codec_id: str, stage: str, seconds: float, item_id: int) -> None:
        """A span that has just ended, below the call in whose context this runs."""
        end = time.time_ns()
        span = self._tracer.start_span(
            f"{operation} {stage}",
            start_time=end - int(seconds * 1e9),
            attributes={"mpcompress.codec": codec_id, "mpcompress.item": item_id, "mpcompress.stage": stage},
        )
        span.end(end)
