"""A connection to a server for asyncio, and what can be asked of the server itself."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self, Unpack

import grpc
import grpc.aio

from mpcompress_client import infos
from mpcompress_client.calls import CodecFile
from mpcompress_client.connection_base import ConnectionArguments, ConnectionBase
from mpcompress_client.lines import Lines
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.v1 import compression_pb2 as pb


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
        self._lines = Lines(self._endpoint, channel, self._open_channel, self._close_later)
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls that are under way end with CancelledError."""
        self._closed = True
        for channel in self._lines.drain():
            await channel.close(None)

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
        request = pb.GetCodecFileRequest(codec_id=codec, fingerprint=fingerprint)
        call = self._lines.call("GetCodecFile", request, timeout_s=self._timeout(timeout_s))
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

    def _open_channel(self) -> grpc.aio.Channel:
        """Opened when first used: a channel belongs to the event loop that runs then."""
        options, credentials = self._endpoint.options, self._endpoint.credentials
        if credentials is not None:
            return grpc.aio.secure_channel(self.target, credentials, options=options)
        return grpc.aio.insecure_channel(self.target, options=options)

    def _close_later(self, channel: grpc.aio.Channel) -> None:
        closing = asyncio.ensure_future(channel.close(None))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _list(self, timeout_s: float | None) -> pb.ListCodecsResponse:
        self._check_open()
        try:
            with self._lines.held() as stub:
                response: pb.ListCodecsResponse = await stub.ListCodecs(
                    pb.ListCodecsRequest(), timeout=self._timeout(timeout_s), metadata=self._endpoint.metadata
                )
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        return self._listed(response)
