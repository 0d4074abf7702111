"""A connection to a server, and what can be asked of the server itself."""

from __future__ import annotations

from types import TracebackType
from typing import Self, Unpack

import grpc
from grpc.experimental import ChannelOptions

from mpcompress_client import infos
from mpcompress_client.calls import CodecFile
from mpcompress_client.connection_base import ConnectionArguments, ConnectionBase
from mpcompress_client.lines import Lines
from mpcompress_client.status import error_of_rpc
from mpcompress_proto.v1 import compression_pb2 as pb

# A call with one request is made and read by the thread that wants it, without any other.
_ONE_THREAD = (ChannelOptions.SingleThreadedUnaryStream, 1)


class Connection(ConnectionBase):
    """A channel to a server; use it as a context manager. May be shared by threads.

    Its arguments are those of `ConnectionBase`.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        channel: grpc.Channel | None = None,
        **arguments: Unpack[ConnectionArguments],
    ) -> None:
        super().__init__(target, channel, arguments)
        self._lines = Lines(self._endpoint, channel, self._open_channel, lambda retired: retired.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls that are under way end with CancelledError."""
        self._closed = True
        for channel in self._lines.drain():
            channel.close()

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
        call = self._lines.call("GetCodecFile", request, timeout_s=self._timeout(timeout_s))
        file = CodecFile(codec)
        try:
            for response in call:
                if not file.take(response):
                    break
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        finally:
            call.cancel()
        return file.checked()

    def _open_channel(self) -> grpc.Channel:
        credentials, options = self._endpoint.credentials, (_ONE_THREAD, *self._endpoint.options)
        if credentials is not None:
            return grpc.secure_channel(self.target, credentials, options)
        return grpc.insecure_channel(self.target, options)

    def _list(self, timeout_s: float | None) -> pb.ListCodecsResponse:
        self._check_open()
        try:
            with self._lines.held() as stub:
                response: pb.ListCodecsResponse = stub.ListCodecs(
                    pb.ListCodecsRequest(), timeout=self._timeout(timeout_s), metadata=self._endpoint.metadata
                )
        except grpc.RpcError as error:
            raise error_of_rpc(error, self.target) from error
        return self._listed(response)

    def _family(self, codec: str) -> str:
        if not self._knows_family(codec):
            self._list(None)
        return super()._family(codec)
