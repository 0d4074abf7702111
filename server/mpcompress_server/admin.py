"""AdminService: what those who run the server may do from afar. Served only where there are tokens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import grpc
import structlog

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.auth import Tokens, may_administrate
from mpcompress_server.errors import PermissionDeniedError, ReloadFailedError, abort
from mpcompress_server.reload import Change
from mpcompress_server.servicer import request_id_of
from mpcompress_server.settings import SettingsError

ADMIN_SERVICE = "mpcompress.v1.AdminService"

_log = structlog.get_logger("mpcompress_server.admin")


class AdminServicer:
    """The RPCs of AdminService.

    Args:
        reload: reads the configuration again; raises SettingsError.
        tokens: who may.
    """

    def __init__(self, reload: Callable[[], Awaitable[Change]], tokens: Tokens) -> None:
        self._reload = reload
        self._tokens = tokens

    def handlers(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The RPCs, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            ADMIN_SERVICE,
            {
                "ReloadCodecs": grpc.unary_unary_rpc_method_handler(
                    self._reload_codecs,
                    request_deserializer=pb.ReloadCodecsRequest.FromString,
                    response_serializer=pb.ReloadCodecsResponse.SerializeToString,
                )
            },
        )

    async def _reload_codecs(self, _request: pb.ReloadCodecsRequest, context: Any) -> pb.ReloadCodecsResponse:
        request_id = request_id_of(context)
        if not may_administrate(self._tokens):
            _log.warning("administration refused", request_id=request_id, peer=context.peer())
            await abort(context, PermissionDeniedError("this token is not for administration"), request_id)
        _log.info("reload asked for", request_id=request_id, peer=context.peer())
        try:
            change = await self._reload()
        except SettingsError:
            # Its message has paths of this machine.
            error = ReloadFailedError("the configuration cannot be served; the server's log names the key")
            await abort(context, error, request_id)
        except Exception as error:
            await abort(context, error, request_id)
        return pb.ReloadCodecsResponse(**asdict(change))
