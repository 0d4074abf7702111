"""One item of a stream: the requests that announce and carry it, and its result from the responses.

Does no input or output, so that the synchronous and the asyncio client share it:

    item.requests(id) ──► stream ──► responses ──► item.receive(response) ──► None ... None, result

Requests and responses are parcels: messages, and the bytes of tensors and payloads apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from mpcompress_client.arrays import specs_of
from mpcompress_client.destination import Destination
from mpcompress_client.errors import InvalidRequestError, ServerError, WireError
from mpcompress_client.status import error_of
from mpcompress_proto.coded_unit import CodedUnit, check_header
from mpcompress_proto.parcel import Parcel
from mpcompress_proto.tensors import (
    Array,
    PayloadReceiver,
    Receiver,
    array_from,
    check_specs,
    cuts,
    inline_bytes,
    joined,
    wire_view,
)
from mpcompress_proto.v1 import compression_pb2 as pb

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT", pb.CompressResponse, pb.DecompressResponse)
ResultT = TypeVar("ResultT")

# What decompressing gives: an array, arrays by name, or the caller's own `out`, of whatever type.
Decoded = Array | dict[str, Array]

# No codec expands more: int8 to float32 is four times, for two outputs eight.
_LARGEST_ANSWER = 16
_LARGEST_ANSWER_FLOOR = 1 << 20


class Item(ABC, Generic[RequestT, ResponseT, ResultT]):
    """One item: made from checked input, sent by `requests`, finished by `receive`.

    Attributes:
        nbytes: what it takes in memory and on the wire, bytes; for bounding what is under way.
        inline_bytes: bytes of its tensors and payload when one message carries them; None when it takes several.
        timeout_s: time from its header to its final event, seconds.
    """

    nbytes: int
    inline_bytes: int | None
    timeout_s: float

    @abstractmethod
    def requests(self, item_id: int, timeout_s: float) -> Iterator[Parcel[RequestT]]:
        """The messages that send it, in order, again each time; `timeout_s` is what is left of its time limit."""

    @abstractmethod
    def restart(self) -> None:
        """Forgets what was received, because the item is sent again."""

    def receive(self, parcel: Parcel[ResponseT]) -> ResultT | None:
        """Takes a response with this item's id; returns the result with the last one, None before.

        Raises:
            MPCompressError: the item's own error, or a ServerError for an answer that breaks the contract.
        """
        event = parcel.message.WhichOneof("event")
        if event == "error":
            raise error_of(parcel.message.error)
        try:
            return self._receive(event, parcel)
        except WireError as error:
            raise ServerError(f"the server's answer breaks the contract: {error.field}: {error.message}") from error

    def _most_bytes(self) -> int:
        """The largest answer worth a buffer: what a server says is checked before it is allocated."""
        return _LARGEST_ANSWER * self.nbytes + _LARGEST_ANSWER_FLOOR

    @abstractmethod
    def _receive(self, event: str | None, parcel: Parcel[ResponseT]) -> ResultT | None:
        """As `receive`, for all events but errors; raises WireError."""


class CompressItem(Item[pb.CompressRequest, pb.CompressResponse, CodedUnit]):
    """Tensors to compress. Raises InvalidRequestError for tensors that cannot travel."""

    def __init__(
        self,
        tensors: Mapping[str, Array],
        *,
        codec_id: str,
        params: pb.CodingParams,
        timeout_s: float,
        want_progress: bool = False,
    ) -> None:
        self._header = pb.CompressHeader(
            codec_id=codec_id, tensors=specs_of(tensors), params=params, want_progress=want_progress
        )
        self._parts = [wire_view(array) for array in tensors.values()]
        self.nbytes = sum(len(part) for part in self._parts)
        self.inline_bytes = inline_bytes(self.nbytes)
        self.timeout_s = timeout_s
        self._answer: pb.CompressedItem | None = None
        self._receiver = PayloadReceiver(0)

    def restart(self) -> None:
        """Forgets the answer so far."""
        self._answer, self._receiver = None, PayloadReceiver(0)

    def requests(self, item_id: int, timeout_s: float) -> Iterator[Parcel[pb.CompressRequest]]:
        """The header, with all bytes when they fit one message, else followed by chunks."""
        request = pb.CompressRequest(header=self._header)
        _announce(request.header, item_id, timeout_s)
        if self.inline_bytes is not None:
            yield Parcel(request, joined(self._parts))
            return
        yield Parcel(request)
        for index, offset, view in cuts(self._parts):
            chunk = pb.TensorChunk(item_id=item_id, tensor_index=index, offset=offset)
            yield Parcel(pb.CompressRequest(chunk=chunk), view)

    def _receive(self, event: str | None, parcel: Parcel[pb.CompressResponse]) -> CodedUnit | None:
        response, bulk, _ = parcel
        if event == "progress":
            return None
        if event == "result" and self._answer is None:
            self._answer = response.result
            check_header(self._answer.unit)
            if self._answer.unit.payload_bytes > self._most_bytes():
                raise WireError("a payload far larger than the tensors", field="result.unit.payload_bytes")
            self._receiver = PayloadReceiver(self._answer.unit.payload_bytes)
            if bulk:
                self._receiver.fill(bulk, "result.inline_payload")
        elif event == "chunk" and self._answer is not None:
            self._receiver.add(0, response.chunk.offset, bulk)
        else:
            raise WireError(f"an unexpected event {event}", field="event")
        if not self._receiver.complete:
            return None
        payload = self._receiver.payload
        report = self._answer.report if self._answer.HasField("report") else None
        return CodedUnit.of_checked_header(self._answer.unit, payload, report)


class DecompressItem(Item[pb.DecompressRequest, pb.DecompressResponse, Decoded]):
    """A unit to decompress, with context tensors when its codec needs them."""

    def __init__(
        self,
        unit: CodedUnit,
        *,
        output: pb.DataType.ValueType,
        context: Mapping[str, Array],
        timeout_s: float,
        out: Destination | None = None,
        want_progress: bool = False,
    ) -> None:
        self._out = out
        self._header = pb.DecompressHeader(
            unit=unit.header, tensors=specs_of(context), output_dtype=output, want_progress=want_progress
        )
        self._payload = memoryview(unit.payload)
        self._parts = [wire_view(array) for array in context.values()]
        sent = len(self._payload) + sum(len(part) for part in self._parts)
        self.inline_bytes = inline_bytes(sent)
        # What comes back is as large as what was compressed, and usually dwarfs the unit.
        self.nbytes = sent + sum(check_specs(unit.header.tensors, "unit.tensors"))
        self.timeout_s = timeout_s
        self._specs: Sequence[pb.TensorSpec] | None = None
        self._receiver = Receiver([])

    def restart(self) -> None:
        """Forgets the answer so far."""
        self._specs, self._receiver = None, Receiver([])

    def requests(self, item_id: int, timeout_s: float) -> Iterator[Parcel[pb.DecompressRequest]]:
        """The header, with all bytes when they fit one message, else followed by the payload's and tensors' chunks."""
        request = pb.DecompressRequest(header=self._header)
        _announce(request.header, item_id, timeout_s)
        if self.inline_bytes is not None:
            yield Parcel(request, joined([self._payload, *self._parts]))
            return
        yield Parcel(request)
        for _, offset, view in cuts([self._payload]):
            yield Parcel(pb.DecompressRequest(payload=pb.PayloadChunk(item_id=item_id, offset=offset)), view)
        for index, offset, view in cuts(self._parts):
            chunk = pb.TensorChunk(item_id=item_id, tensor_index=index, offset=offset)
            yield Parcel(pb.DecompressRequest(chunk=chunk), view)

    def _receive(self, event: str | None, parcel: Parcel[pb.DecompressResponse]) -> Decoded | None:
        response, bulk, _ = parcel
        if event == "progress":
            return None
        if event == "result" and self._specs is None:
            self._specs = response.result.tensors
            if not self._specs:
                raise WireError("a result without tensors", field="result.tensors")
            sizes = check_specs(self._specs, "result.tensors", self._most_bytes())
            if self._out is not None:
                self._out.check(self._specs)
            self._receiver = Receiver(sizes)
            if bulk:
                self._receiver.fill(bulk, "result.inline_data")
        elif event == "chunk" and self._specs is not None:
            self._receiver.add(response.chunk.tensor_index, response.chunk.offset, bulk)
        else:
            raise WireError(f"an unexpected event {event}", field="event")
        if not self._receiver.complete:
            return None
        if self._out is not None:
            buffers = zip(self._specs, self._receiver.buffers, strict=True)
            filled: Decoded = self._out.fill({spec.name: array_from(buffer, spec) for spec, buffer in buffers})
            return filled
        arrays = {
            # Inline bytes belong to the message: a copy makes the user's array writable and aligned.
            spec.name: array_from(buffer if buffer.flags.writeable else buffer.copy(), spec)
            for spec, buffer in zip(self._specs, self._receiver.buffers, strict=True)
        }
        return next(iter(arrays.values())) if len(arrays) == 1 else arrays


def _announce(header: pb.CompressHeader | pb.DecompressHeader, item_id: int, timeout_s: float) -> None:
    header.item_id = item_id
    header.timeout.FromNanoseconds(max(1, round(timeout_s * 1e9)))


def check_timeout(timeout_s: Any) -> float:
    """A usable time limit, seconds. Raises InvalidRequestError."""
    try:
        value = float(timeout_s)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"timeout_s is a number of seconds, not {timeout_s!r}", field="timeout") from error
    if not 1e-6 <= value <= 1e6:
        raise InvalidRequestError(f"timeout_s is between 1e-6 and 1e6 seconds, not {timeout_s!r}", field="timeout")
    return value
