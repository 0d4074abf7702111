"""What a call means before anything is sent: options checked once, items made from inputs. Does no network I/O.

The synchronous and the asyncio client share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from mpcompress_client.arrays import named_arrays, output_type
from mpcompress_client.destination import Destination
from mpcompress_client.errors import InvalidRequestError, ServerError
from mpcompress_client.items import CompressItem, DecompressItem
from mpcompress_client.params import FAMILY_MESSAGES, candidates, coding_params
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.v1 import compression_pb2 as pb

UnitLike = CodedUnit | bytes | bytearray | memoryview | str | PathLike[str]

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_LOOK_AHEAD = 16
DEFAULT_LOOK_AHEAD_BYTES = 64 << 20
CONTEXT = "ctx"

_TARGETS = ("target_bpfp", "target_nmse", "target_policy")


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """How to compress; the parameters are those of `CompressionClient.compress`.

    Args:
        codec: the codec's id.
        qp: a multiple of 1/8, or None.
        token_res: (H, W), or None.
        prefix_tokens: tokens in front, or None.
        params: targets and family parameters by name.
        family_of: gives the family of a codec id; only asked when the parameters' names leave it open.

    Raises:
        InvalidRequestError: naming the parameter.
    """

    codec: str
    qp: float | None = None
    token_res: Sequence[int] | None = None
    prefix_tokens: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    family_of: Callable[[str], str]
    message: pb.CodingParams = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.codec, str) or not self.codec:
            raise InvalidRequestError(f"codec is the id of a codec, not {self.codec!r}", field="codec_id")
        targets = {name: value for name, value in self.params.items() if name in _TARGETS}
        family = {name: value for name, value in self.params.items() if name not in _TARGETS and value is not None}
        message = coding_params(
            qp=self.qp,
            token_res=self.token_res,
            prefix_tokens=self.prefix_tokens,
            member=self._member(family) if family else None,
            family=family,
            **targets,
        )
        object.__setattr__(self, "message", message)

    @staticmethod
    def asks_for_family(params: Mapping[str, Any]) -> bool:
        """Whether `family_of` will be asked. Raises InvalidRequestError for names that no codec takes."""
        family = {name: value for name, value in params.items() if name not in _TARGETS and value is not None}
        return bool(family) and len(candidates(family)) > 1

    def _member(self, family: Mapping[str, Any]) -> str:
        found = candidates(family)
        if len(found) == 1:
            return found[0]
        name = self.family_of(self.codec)
        for member in found:
            if name in FAMILY_MESSAGES[member]:
                return member
        raise InvalidRequestError(
            f"codec {self.codec} does not take {', '.join(sorted(family))}", field=f"params.{next(iter(family))}"
        )

    def item(self, tensors: Any, timeout_s: float, want_progress: bool = False) -> CompressItem:
        """One item of these options. Raises InvalidRequestError for tensors that cannot travel."""
        return CompressItem(
            named_arrays(tensors),
            codec_id=self.codec,
            params=self.message,
            timeout_s=timeout_s,
            want_progress=want_progress,
        )


@dataclass(frozen=True, kw_only=True)
class DecompressOptions:
    """How to decompress. Raises InvalidRequestError for a dtype that does not travel."""

    dtype: Any = None
    output: pb.DataType.ValueType = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", output_type(self.dtype))

    def item(
        self, unit: UnitLike, ctx: Any, timeout_s: float, *, out: Any = None, want_progress: bool = False
    ) -> DecompressItem:
        """One item of these options. Raises CorruptUnitError and InvalidRequestError."""
        context = {} if ctx is None else named_arrays(ctx, CONTEXT)
        opened = open_unit(unit)
        output, destination = self.output_of(opened, out)
        return DecompressItem(
            opened, output=output, context=context, timeout_s=timeout_s, out=destination, want_progress=want_progress
        )

    def output_of(self, unit: CodedUnit, out: Any) -> tuple[pb.DataType.ValueType, Destination | None]:
        """The dtype to ask for and the place of the result, when `out` is one. Raises InvalidRequestError."""
        if out is None:
            return self.output, None
        destination = Destination(out)
        destination.check_unit(unit.header.tensors)
        wanted = output_type(destination.dtype)
        if self.output not in (pb.DATA_TYPE_UNSPECIFIED, wanted):
            raise InvalidRequestError(f"out is {destination.dtype}, but dtype={self.dtype!r}", field="out")
        return wanted, destination

    def item_of(self, value: Any, timeout_s: float, out: Any, index: int, want_progress: bool) -> DecompressItem:
        """The item of one of many inputs: a unit or a pair (unit, ctx); `out[index]` is its buffer."""
        unit, ctx = value if isinstance(value, tuple) else (value, None)
        buffer = None
        if out is not None:
            try:
                buffer = out[index]
            except (TypeError, IndexError, KeyError) as error:
                raise InvalidRequestError(f"out has no buffer for item {index}: {error}", field="out") from error
        return self.item(unit, ctx, timeout_s, out=buffer, want_progress=want_progress)


def open_unit(unit: UnitLike) -> CodedUnit:
    """A CodedUnit from a unit, the bytes of a .mpc file or the path of one.

    Raises:
        CorruptUnitError: damaged, truncated or extended bytes, or none at all.
        InvalidRequestError: something else, or a file that cannot be read.
    """
    if isinstance(unit, CodedUnit):
        return unit
    if isinstance(unit, bytes | bytearray | memoryview):
        return CodedUnit.from_bytes(bytes(unit))
    if isinstance(unit, str | PathLike):
        try:
            return CodedUnit.load(unit)
        except OSError as error:
            raise InvalidRequestError(f"cannot read {unit}: {error.strerror or error}", field="unit") from error
    raise InvalidRequestError(f"a unit is a CodedUnit, bytes or a path, not {type(unit).__name__}", field="unit")


class CodecFile:
    """Collects the answer of GetCodecFile."""

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._header: pb.CodecFileHeader | None = None
        self._data = bytearray()

    def take(self, response: pb.GetCodecFileResponse) -> bool:
        """Takes the next message; False when it is no use to read on."""
        if response.WhichOneof("message") == "header":
            self._header = response.header
        else:
            self._data += response.data
        return self._header is not None and len(self._data) <= self._header.size_bytes

    def checked(self) -> bytes:
        """The file. Raises ServerError when its size or SHA-256 is not the announced one."""
        header, data = self._header, bytes(self._data)
        if header is None or len(data) != header.size_bytes or hashlib.sha256(data).digest() != header.sha256:
            raise ServerError(f"the codec file of {self._codec} arrived damaged: its size or SHA-256 does not match")
        return data


def check_look_ahead(errors: Any, look_ahead: Any, look_ahead_bytes: Any) -> None:
    """Checks the arguments of a call with many items. Raises InvalidRequestError."""
    if errors not in ("raise", "return"):
        raise InvalidRequestError(f'errors is "raise" or "return", not {errors!r}', field="errors")
    for name, value in (("look_ahead", look_ahead), ("look_ahead_bytes", look_ahead_bytes)):
        if not isinstance(value, int) or value < 1:
            raise InvalidRequestError(f"{name} is a whole number above 0, not {value!r}", field=name)
