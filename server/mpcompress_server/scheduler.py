"""From complete items to codec calls: the seam between streams, which have items, and executors, which take batches."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpcompress.codec import Array, Coded, CodingParams, TensorSpec, Unit
from mpcompress_proto.parcel import Parcel
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server.codecs import LoadedCodec


@dataclass(frozen=True, kw_only=True)
class CompressWork:
    """One item to compress: its tensors by input name, and the resolved params."""

    tensors: dict[str, Array]
    params: CodingParams


@dataclass(frozen=True, kw_only=True)
class DecompressWork:
    """One unit to decompress, and the specs that its outputs shall have."""

    unit: Unit
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, kw_only=True)
class ForwardWork:
    """One item for another server, as it came.

    Args:
        compress: which RPC.
        header: the client's, without item id, timeout and bytes.
        parts: uint8 arrays: the payload, if any, and the tensors, in the order in which they travel.
        result_bytes: most bytes that the result may have.
    """

    compress: bool
    header: Any
    parts: list[Array]
    result_bytes: int

    def request(self, header: Any, inline: bytes | memoryview) -> Parcel[Any]:
        """What travels of a header, and of all bytes when they are few."""
        return Parcel(
            pb.CompressRequest(header=header) if self.compress else pb.DecompressRequest(header=header), inline
        )

    def chunk(self, item_id: int, part: int, offset: int, view: memoryview) -> Parcel[Any]:
        """What travels of some bytes."""
        if self.compress:
            tensor = pb.TensorChunk(item_id=item_id, tensor_index=part, offset=offset)
            return Parcel(pb.CompressRequest(chunk=tensor), view)
        if part == 0:
            return Parcel(pb.DecompressRequest(payload=pb.PayloadChunk(item_id=item_id, offset=offset)), view)
        tensor = pb.TensorChunk(item_id=item_id, tensor_index=part - 1, offset=offset)
        return Parcel(pb.DecompressRequest(chunk=tensor), view)


Work = CompressWork | DecompressWork | ForwardWork


@dataclass(frozen=True, kw_only=True)
class Forwarded:
    """What another server gave: its CompressedItem or DecompressedItem without bytes, and these."""

    result: Any
    parts: list[Array]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a job gave. `coding_s`: seconds in the codec, for the batch it was in; `first_s`: in its first stage."""

    outcome: Coded | dict[str, Array] | Forwarded
    coding_s: float
    first_s: float = 0.0

    def stages(self, loaded: LoadedCodec, compress: bool) -> list[tuple[str, float]]:
        """The time in a codec by stage, seconds; one stage `codec` for those that do not say where their time goes."""
        if loaded.remote is not None:
            return [("remote", self.coding_s)]
        if loaded.codec is not None and loaded.codec.pstate_kind == "picture":
            return [("external", self.coding_s)]
        if not self.first_s:
            return [("codec", self.coding_s)]
        first, second = ("transform", "entropy") if compress else ("entropy", "transform")
        return [(first, self.first_s), (second, self.coding_s - self.first_s)]


class Job:
    """One item's work. Made by a stream, handed to a scheduler once.

    Args:
        loaded: the codec.
        work: the item; dropped when it is done or cancelled, so that its memory goes at once.
        deadline: time of the event loop's clock at which nobody waits for it any more.
        key: jobs of equal keys may share a batch; see `batch_key`.
        stream: whose turn it is; jobs of one stream keep their order.
        nbytes: its tensors, or those it becomes, bytes.
        metadata: of its call, as far as another server is to know it.
        on_started: called when the codec begins.
        on_position: told how many jobs are before it, when that has changed.
        on_parts: told (parts done, parts in all); both may be told again what they know: the job is alive.

    Attributes:
        result: ends when nothing uses the job's memory any more.
        queued_at: loop time at which it joined its line.
        expected_s: how long its codec is thought to need for it, seconds; 0 when unknown.
        drop: while it runs: makes its codec do no more for it.
    """

    def __init__(
        self,
        *,
        loaded: LoadedCodec,
        work: Work,
        deadline: float,
        key: Hashable = None,
        stream: Hashable = None,
        nbytes: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
        on_started: Callable[[], None] | None = None,
        on_position: Callable[[int], None] | None = None,
        on_parts: Callable[[int, int], None] | None = None,
    ) -> None:
        self.loaded = loaded
        self.work: Work | None = work
        self.deadline = deadline
        self.key = key
        self.stream = stream
        self.nbytes = nbytes
        self.size_class: Hashable = size_class(isinstance(work, CompressWork), nbytes)
        self.metadata = tuple(metadata)
        self.on_started = on_started
        self.on_position = on_position
        self.on_parts = on_parts
        self.result: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        self.queued_at = 0.0
        self.expected_s = 0.0
        self.drop: Callable[[], None] | None = None


def size_class(compress: bool, nbytes: int) -> tuple[bool, int]:
    """Jobs of which one tells how long another will take: same direction, within a factor of two in size."""
    return compress, nbytes.bit_length()


class Scheduler(Protocol):
    """Takes jobs and decides when, and together with which others, they run."""

    def submit(self, job: Job) -> int | None:
        """Takes a job; `job.result` ends when nothing uses its memory any more.

        Returns:
            How many wait before it; None when that will be told to `job.on_position`.
        """

    def cancel(self, job: Job) -> None:
        """Drops a job: at once when it waits, before its next stage when it runs."""

    def expected_s(self, codec_id: str, stream: Hashable, size_class: Hashable) -> float:
        """Seconds until a job that came now would be done, as far as that is known."""

    async def start(self) -> None:
        """Starts taking jobs."""

    async def close(self) -> None:
        """Fails the jobs that wait, waits for those that run."""
