"""The contract of a codec: what the registry loads, the server runs and the shared tests check.

A `FeatureCodec` takes and gives numpy arrays, lists in and lists out, in the same order. It knows nothing of gRPC,
files or threads: `compress` and `decompress` of one instance are called by one thread at a time.

    tensors, params ──► resolve ──► compress ──► Coded(strings, pstate)
    Unit(strings, pstate, specs) ──► check_unit ──► decompress ──► {"h_hat": ...}

`resolve` and `check_unit` see shapes and parameters only, so that a bad request is refused before its bytes are read:
they are quick, keep no state, and may run while another call is in progress. Before a payload has arrived `check_unit`
sees zero-filled stand-ins of its sizes.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")
ArithmeticName = Literal["exact", "float32"]

MAX_RANK = 6
FINGERPRINT_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """Name, numpy dtype name (``"float16"``, ``"bfloat16"``) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        count = 1
        for side in self.shape:
            count *= side
        return count


@dataclass(frozen=True, kw_only=True)
class TensorPort:
    """A tensor that a codec takes or gives. `channels` is the size of the channel axis; 0 means any."""

    name: str
    ranks: tuple[int, ...]
    dtypes: tuple[str, ...]
    channels: int = 0
    layout: str = ""


@dataclass(frozen=True, kw_only=True)
class QpRange:
    """Range and default of qp, in steps of 1/8 (qp 24 is 192)."""

    minimum: int
    maximum: int
    default: int


@dataclass(frozen=True, kw_only=True)
class CodingParams:
    """How to code an item; None means the codec's default. Hashable: items of equal params may share a batch.

    Args:
        qp_eighths: quantisation parameter in steps of 1/8.
        token_res: (H, W) of the patch-token grid.
        prefix_tokens: tokens in front of the patch tokens.
        target_bpfp: bits of the complete .mpc file per feature element to reach instead of a qp.
        target_nmse: squared error over variance to reach instead of a qp.
        target_policy: what an unreachable target gives: the nearest point, or an error.
        family: parameters that one family knows, as sorted (name, value) pairs.
    """

    qp_eighths: int | None = None
    token_res: tuple[int, int] | None = None
    prefix_tokens: int | None = None
    target_bpfp: float | None = None
    target_nmse: float | None = None
    target_policy: Literal["nearest", "error"] = "nearest"
    family: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What coding gave, for information: see CodingReport in the proto for units."""

    nmse: float | None = None
    qp_eighths: int | None = None
    target_reached: bool | None = None
    domain_distance: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Coded:
    """One compressed item: the sub-streams of its payload in order, and what decoding needs besides."""

    strings: list[bytes]
    pstate: dict[str, Any]
    ctx_hash: bytes = b""
    report: Report = field(default_factory=Report)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One item to decompress. `specs` are the tensors as they were before compression.

    Everything in it comes from a network: a codec checks it before it allocates or computes.
    """

    strings: list[bytes]
    pstate: dict[str, Any]
    specs: tuple[TensorSpec, ...]
    ctx_hash: bytes = b""
    context: Mapping[str, Array] = field(default_factory=dict)


class CancelToken(Protocol):
    """Tells a codec that nobody waits for an item any more: a `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether the item is given up."""
        ...


@runtime_checkable
class ProgressToken(CancelToken, Protocol):
    """A cancel token whose owner also wants to know how far the item is."""

    def progress(self, done: int, total: int) -> None:
        """Called in the codec's thread: `done` of `total` parts (strips, say) are done."""
        ...


class FeatureCodec(ABC):
    """A loaded codec: one bitstream format with its weights.

    Attributes:
        id: names this bitstream format for ever, 1 to 64 characters of [a-z0-9._-].
        family: which code reads its pstate ("klt", "vit_union", ...).
        bitstream_version: 1 to 63.
        arithmetic: what its symbols depend on.
        fingerprint: 8 bytes; see `fingerprint_of`.
        description: one sentence for a person.
        inputs: what compress takes; the first is the features, the others are context.
        outputs: what decompress gives.
        qp: None when the codec has no qp.
        token_res: grid it was made for, or None.
        prefix_tokens: prefix tokens it was made for.
        parameters: names of the family parameters it knows.
        trained: False for random weights, which only tests may use.
        staged: whether `begin_compress` and `begin_decompress` leave work to a second stage.
        pstate_kind: which message of the wire holds its pstate ("klt", "vit_union", "hyperprior", "picture", "plugin").
    """

    id: str
    family: str
    bitstream_version: int
    arithmetic: ArithmeticName
    fingerprint: bytes
    description: str
    inputs: tuple[TensorPort, ...]
    outputs: tuple[TensorPort, ...]
    qp: QpRange | None = None
    token_res: tuple[int, int] | None = None
    prefix_tokens: int = 0
    parameters: tuple[str, ...] = ()
    trained: bool = True
    staged: bool = False

    @property
    def pstate_kind(self) -> str:
        """The family's own name, unless families share a message."""
        return self.family

    @property
    def unavailable_reason(self) -> str:
        """Why this codec cannot compress here, and the remedy; "" when it can. It may still decompress."""
        return ""

    @abstractmethod
    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """Checks shapes, dtypes and parameters of an item; returns the params with every default filled in.

        Raises:
            InvalidInputError: with `field` naming the culprit ("tensors[0].shape", "params.token_res", ...).
        """

    @abstractmethod
    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """Compresses items that all resolved to `params`; same order.

        Raises:
            InvalidInputError: NaN, infinity or values too large in any of them. The caller then tries them one by one.
        """

    @abstractmethod
    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """Checks pstate, specs and stream sizes of an item; returns the specs of the outputs it will decode to.

        Raises:
            CorruptBitstreamError: for a state that no encoder writes.
        """

    @abstractmethod
    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """Decompresses units that passed `check_unit`; same order, tensors by output name, dtypes as in the specs.

        Raises:
            CorruptBitstreamError: bytes that no encoder writes.
        """

    def batch_key(self, specs: Sequence[TensorSpec], params: CodingParams | None) -> Hashable:
        """Items of equal keys may share a batch. `params` are resolved; None for decompression.

        The default wants equal dtypes, shapes and params. A codec may be less strict when sharing a batch with other
        shapes changes no bit of its results; items of different params still come in separate calls of `compress`,
        and together in one of `begin_compress_mixed`.
        """
        return tuple((spec.name, spec.dtype, spec.shape) for spec in specs), params

    def begin_compress(
        self, batch: Sequence[Mapping[str, Array]], params: CodingParams, cancel: Sequence[CancelToken]
    ) -> list[Callable[[], Coded]]:
        """`compress` in two stages, so that two batches overlap: does the first, returns each item's second.

        A second stage runs once or never, in a thread that may differ from that of the first, while this instance
        begins another batch; second stages run one at a time. `cancel` has a token per item; a codec that works in
        parts tells those of them that are a `ProgressToken`. The default does everything in the first stage.
        """
        return [_given(coded) for coded in self.compress(batch, params)]

    def begin_compress_mixed(
        self, batch: Sequence[Mapping[str, Array]], params: Sequence[CodingParams], cancel: Sequence[CancelToken]
    ) -> list[Callable[[], Coded]]:
        """`begin_compress` of items that each have params of their own, as a server calls it for a batch.

        The default calls it for each run of equal params.
        """
        stages: list[Callable[[], Coded]] = []
        for own, group in groupby(range(len(batch)), key=params.__getitem__):
            run = list(group)
            begun = self.begin_compress([batch[i] for i in run], own, [cancel[i] for i in run])
            if len(begun) != len(run):
                raise RuntimeError(f"codec {self.id} gave {len(begun)} results for {len(run)} items")
            stages += begun
        return stages

    def begin_decompress(
        self, batch: Sequence[Unit], cancel: Sequence[CancelToken]
    ) -> list[Callable[[], dict[str, Array]]]:
        """`decompress` in two stages; as `begin_compress`."""
        return [_given(tensors) for tensors in self.decompress(batch)]

    def warm_up(self) -> None:  # noqa: B027 - optional: a codec without compiled code has nothing to do
        """Compiles, allocates and touches what the first call would otherwise wait for."""

    def codec_file(self) -> bytes | None:
        """The file an edge device needs to run this codec, or None."""
        return None


def _given(value: T) -> Callable[[], T]:
    return lambda: value


def fingerprint_of(parts: Iterable[tuple[str, bytes | Array]]) -> bytes:
    """Hashes the canonical bytes of everything that decoding depends on.

    Args:
        parts: (name, content) in a fixed order; an array counts with its dtype and shape, little-endian.

    Returns:
        8 bytes: the first of the SHA-256.
    """
    digest = hashlib.sha256()
    for name, content in parts:
        if isinstance(content, np.ndarray):
            little = np.ascontiguousarray(content).astype(content.dtype.newbyteorder("<"), copy=False)
            head, body = f"{name}:{little.dtype.str}:{little.shape}".encode(), little.tobytes()
        else:
            head, body = f"{name}:bytes".encode(), content
        digest.update(len(head).to_bytes(4, "little") + head + len(body).to_bytes(8, "little") + body)
    return digest.digest()[:FINGERPRINT_BYTES]
