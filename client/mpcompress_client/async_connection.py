"""A connection to a server for asyncio, and what can be asked of the server itself."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self, Unpack

import grpc
import grpc.aio

from mpcompress_client import infos
from mpcompress_client.calls import CodecFile
from mpcompress_client.connection_base import ConnectionArguments, ConnectionBase
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1.compression_pb2_grpc import CompressionServiceStub


class AsyncConnection(ConnectionBase):
    """A channel to a server; use it with `async with`, in one event loop.

    Its arguments are those of `ConnectionBase`.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        channel: grpc.aio.Channel | None = None,
        **arguments: Unpack[ConnectionArguments],
    ) -> None:
        super().__init__(target, channel, arguments)
        self._channel = channel
        self._the_stub: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that are under way end with CancelledError."""
        self._closed = True
        if self._owned and self._channel is not None:
            await self._channel.close(None)

    async def codecs(self, *, timeout_s: float | None = None) -> list[infos.CodecInfo]:
        """The server's codecs, in order of id."""
        response = await self._list(timeout_s)
        return [infos.codec_info(message) for message in response.codecs]

    async def limits(self, *, timeout_s: float | None = None) -> infos.ServerLimits:
        """What the server takes, and its version."""
        return infos.server_limits(await self._list(timeout_s))

    async def codec_file(self, codec: str, *, fingerprint: bytes = b"", timeout_s: float | None = None) -> bytes:
        """As `CompressionClient.codec_file`."""
        self._check_open()
        call = self._stub.GetCodecFile(
            pb.GetCodecFileRequest(codec_id=codec, fingerprint=fingerprint),
            timeout=self._timeout(timeout_s),
            metadata=self._endpoint.metadata,
        )
        file = CodecFile(codec)
        try:
            async for response in call:
                if not file.take(response):
                    break
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        finally:
            call.cancel()
        return file.checked()

    @property
    def _stub(self) -> Any:
        """Made when first used: a channel belongs to the event loop that runs then."""
        if self._the_stub is None:
            if self._channel is None:
                self._channel = self._open_channel()
            self._the_stub = CompressionServiceStub(self._channel)
        return self._the_stub

    def _open_channel(self) -> grpc.aio.Channel:
        options = self._endpoint.options
        if self._endpoint.credentials is not None:
            return grpc.aio.secure_channel(self.target, self._endpoint.credentials, options=options)
        return grpc.aio.insecure_channel(self.target, options=options)

    async def _list(self, timeout_s: float | None) -> pb.ListCodecsResponse:
        self._check_open()
        try:
            response: pb.ListCodecsResponse = await self._stub.ListCodecs(
                pb.ListCodecsRequest(), timeout=self._timeout(timeout_s), metadata=self._endpoint.metadata
            )
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        return self._listed(response)
