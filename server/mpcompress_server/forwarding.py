"""One item on its way through another server: bytes as they came, events as they come, again when a worker dies.

    header, bytes ──► call on the next worker ──► events: queued, started, parts ──► result ──► the client's answer
                        ▲                              │ lost, draining, no room
                        └──────────────────────────────┘ the same bytes to another worker

The item's bytes stay here until its result is complete, within the reservation that its header made; in each direction
at most a message is under way, since gRPC's flow control holds whoever writes to one that does not read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import structlog
from google.rpc import error_details_pb2, status_pb2

from mpcompress.codec import Array
from mpcompress.errors import CodecUnavailableError
from mpcompress_proto.errors import WireError
from mpcompress_proto.parcel import Parcel
from mpcompress_proto.tensors import Receiver, check_specs, cuts, inline_bytes, joined
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import messages as convert
from mpcompress_server.errors import DOMAIN, ItemTimeoutError, RemoteItemError, WorkerUnreachableError
from mpcompress_server.remotes import RemoteServer
from mpcompress_server.scheduler import Finished, Forwarded, ForwardWork, Job

_log = structlog.get_logger("mpcompress_server.forwarding")

_ITEM = 1
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 2.0
_CODE = grpc.StatusCode
_DETAILS = "grpc-status-details-bin"
# How gRPC words a connection that broke under a call; a server of ours says INTERNAL with details only.
_BROKEN = ("Internal error from Core", "RST_STREAM", "Stream removed")
# Reasons of one worker that say nothing about another.
_ELSEWHERE = ("SERVER_DRAINING", "NO_ROOM", "DEADLINE_UNREACHABLE", "WORKER_UNREACHABLE", "CODEC_CRASHED")
# What makes an encoder fail may well be the item.
_MAX_CRASHES = 2
_STAGE = pb.ItemProgress.Stage


class LostError(Exception):
    """This worker will not finish the item; another one may. `status`: what it said, if anything."""

    def __init__(self, message: str, status: status_pb2.Status | None = None) -> None:
        super().__init__(message)
        self.status = status


class Forwarding:
    """One job, from its submission to its result.

    Args:
        server: where to.
        job: of a `ForwardWork`; hears of its start, its position and its parts.
    """

    def __init__(self, server: RemoteServer, job: Job) -> None:
        assert isinstance(job.work, ForwardWork)
        self._server = server
        self._job = job
        self._work = job.work
        self._clock = asyncio.get_running_loop().time
        self._told_start = False

    async def run(self) -> Finished:
        """Sends the item until a worker has answered it.

        Raises:
            RemoteItemError: the worker's own error, with all its details.
            WorkerUnreachableError: no worker is there, or all that took the item were lost.
            CodecUnavailableError: this server may not use its workers.
            ItemTimeoutError: the item's time is over.
        """
        crashes = 0
        for attempt in range(self._server.options.attempts):
            if attempt:
                await asyncio.sleep(min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2 ** (attempt - 1)))
            await self._server.connected(min(self._server.options.patience_s, self._left_s()))
            try:
                return await self._attempt()
            except LostError as error:
                lost = error
            _log.warning("item goes to another worker", codec=self._job.loaded.id, attempt=attempt + 1, error=str(lost))
            crashes += lost.status is not None and reason_of(lost.status) == "CODEC_CRASHED"
            if crashes >= _MAX_CRASHES:
                break
        if lost.status is not None:
            raise RemoteItemError(lost.status)
        raise WorkerUnreachableError(f"no worker finished the item; the last one: {lost}")

    def _left_s(self) -> float:
        left_s = self._job.deadline - self._clock()
        if left_s <= 0:
            raise ItemTimeoutError("the item's timeout ran out")
        return left_s

    async def _attempt(self) -> Finished:
        left_s = self._left_s()
        method = self._server.stub.Compress if self._work.compress else self._server.stub.Decompress
        call = method(timeout=left_s, metadata=[*self._server.metadata(), *self._job.metadata])
        writing = asyncio.create_task(self._write(call, left_s))
        try:
            return await self._read(call)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error.code(), error.details() or "", error.trailing_metadata(), self._server) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise LostError("it cancelled the call") from None  # a proxy did, or the worker's end
        finally:
            call.cancel()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)

    # ------------------------------------------------------------------------------------------------- writing

    async def _write(self, call: Any, left_s: float) -> None:
        """Errors of writing are found again by reading, which knows the status."""
        for parcel in self._parcels(left_s):
            await call.write(parcel)
            del parcel
        await call.done_writing()

    def _parcels(self, left_s: float) -> Iterator[Parcel[Any]]:
        work = self._work
        header = type(work.header)()
        header.CopyFrom(work.header)
        header.item_id, header.want_progress = _ITEM, True
        most_s = convert.seconds(self._server.limits.max_timeout, "max_timeout")
        header.timeout.CopyFrom(convert.duration(min(left_s, most_s or left_s)))
        views = [part.data for part in work.parts]
        inline = inline_bytes(sum(len(view) for view in views)) is not None
        yield work.request(header, joined(views) if inline else b"")
        if not inline:
            for part, offset, view in cuts(views):
                yield work.chunk(_ITEM, part, offset, view)

    # ------------------------------------------------------------------------------------------------- reading

    async def _read(self, call: Any) -> Finished:
        result: Any = None
        receiver: Receiver | None = None
        while (parcel := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            response, bulk, _ = parcel
            kind = response.WhichOneof("event")
            if kind == "progress" and result is None:
                self._progress(response.progress)
            elif kind == "error":
                raise _item_error(response.error, self._server)
            elif kind == "result" and result is None:
                result = response.result
                receiver = self._receiver(result, bulk)
            elif kind == "chunk" and receiver is not None:
                chunk = response.chunk
                receiver.add(0 if self._work.compress else chunk.tensor_index, chunk.offset, bulk)
            del parcel, response, bulk
            if receiver is not None and receiver.complete:
                return self._finished(result, receiver.buffers)
        code, details, trailing = await call.code(), await call.details(), await call.trailing_metadata()
        if code is _CODE.OK:
            raise LostError("it ended the call without a result")
        raise _error_of(code, details or "", trailing, self._server)

    def _receiver(self, result: Any, inline: bytes | memoryview) -> Receiver:
        """Room for a result that is as large as its plan allowed."""
        sizes = [result.unit.payload_bytes] if self._work.compress else check_specs(result.tensors, "tensors")
        if sum(sizes) > self._work.result_bytes:
            raise WireError(f"the worker's result takes {sum(sizes)} bytes, not {self._work.result_bytes}")
        receiver = Receiver(sizes)
        if inline:
            receiver.fill(inline)
        return receiver

    def _finished(self, result: Any, parts: list[Array]) -> Finished:
        time = result.report.coding_time if self._work.compress else result.coding_time
        if self._work.compress:
            result.ClearField("inline_payload")
        else:
            result.ClearField("inline_data")
        return Finished(outcome=Forwarded(result=result, parts=parts), coding_s=convert.seconds(time, "time") or 0.0)

    def _progress(self, event: pb.ItemProgress) -> None:
        job = self._job
        if event.stage == _STAGE.STAGE_QUEUED and job.on_position is not None:
            job.on_position(event.queue_position)
        elif event.stage == _STAGE.STAGE_STARTED and not self._told_start:
            self._told_start, job.work = True, None
            if job.on_started is not None:
                job.on_started()
        elif event.stage == _STAGE.STAGE_PROGRESS and job.on_parts is not None:
            job.on_parts(event.parts_done, event.parts_total)


def reason_of(status: status_pb2.Status) -> str:
    """The reason in a status of ours; "" for others."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info) and info.domain == DOMAIN:
            return str(info.reason)
    return ""


def _item_error(status: status_pb2.Status, server: RemoteServer) -> Exception:
    """What an item's own error means here."""
    if status.code == _CODE.PERMISSION_DENIED.value[0]:
        return _not_allowed(server, status.message)
    if reason_of(status) in _ELSEWHERE:
        return LostError(status.message, status)
    return RemoteItemError(status)


def error_of_call(error: grpc.aio.AioRpcError, server: RemoteServer) -> Exception:
    """What the end of a call that nobody makes again means for the client."""
    found = _error_of(error.code(), error.details() or "", error.trailing_metadata(), server)
    if isinstance(found, LostError):
        return server.unreachable() if found.status is None else RemoteItemError(found.status)
    return found


def _error_of(code: grpc.StatusCode, details: str, trailing: Any, server: RemoteServer) -> Exception:
    """What the status that ended a call means for its item."""
    status = next((status_pb2.Status.FromString(value) for key, value in trailing or () if key == _DETAILS), None)
    if code in (_CODE.UNAUTHENTICATED, _CODE.PERMISSION_DENIED, _CODE.UNIMPLEMENTED):
        return _not_allowed(server, details)
    if code is _CODE.DEADLINE_EXCEEDED:
        return ItemTimeoutError("the item's timeout ran out at its worker")
    broken = code is _CODE.INTERNAL and status is None and any(words in details for words in _BROKEN)
    if code in (_CODE.UNAVAILABLE, _CODE.CANCELLED, _CODE.UNKNOWN) or broken:
        return LostError(details, status)
    return RemoteItemError(status or status_pb2.Status(code=code.value[0], message=details))


def _not_allowed(server: RemoteServer, details: str) -> CodecUnavailableError:
    """The client can do nothing about it, and its own token is not at fault."""
    _log.error("a worker refuses this server: check options.token_file", target=server.options.target, error=details)
    return CodecUnavailableError("this server may not use its workers; its log says why", field="codec_id")
