"""Codecs that run on this device instead of a server: the same calls, the same units, byte for byte.

Needs the codec library, which is imported when the first codec is loaded and not before.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from mpcompress_client.arrays import named_arrays, specs_of
from mpcompress_client.calls import CONTEXT, CompressOptions, DecompressOptions, UnitLike, open_unit
from mpcompress_client.client import CompressionClient
from mpcompress_client.errors import (
    CodecMismatchError,
    CorruptUnitError,
    InvalidRequestError,
)
from mpcompress_client.items import Decoded
from mpcompress_client.library import library
from mpcompress_client.local.loading import load_codec
from mpcompress_client.local.messages import codec_info, library_params, library_specs
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.pstate import get_pstate
from mpcompress_proto.tensors import Array, cast, dtype_of
from mpcompress_proto.v1 import compression_pb2 as pb

if TYPE_CHECKING:
    from mpcompress.codec import FeatureCodec

_ARITHMETIC: dict[str, pb.Arithmetic.ValueType] = {"exact": pb.ARITHMETIC_EXACT, "float32": pb.ARITHMETIC_FLOAT32}


class EdgeCodec:
    """A codec on this device. May be shared by threads, which then take turns.

    Attributes:
        info: what a server would list about it.
    """

    def __init__(self, codec: FeatureCodec) -> None:
        self._codec = codec
        self._lock = threading.Lock()
        self.info = codec_info(codec)

    @classmethod
    def load(
        cls,
        codec: str | PathLike[str],
        *,
        target: str | CompressionClient | None = None,
        cache_dir: str | PathLike[str] | None = None,
    ) -> EdgeCodec:
        """Loads a codec: a shipped one by its id, any by the path of its file, one of a server by its id there.

        Args:
            codec: id or path. Shipped ids and files that exist come first and need no server.
            target: a server's address, or a client of one (with its TLS and tokens), that has the codec of this id.
                Its fingerprint is asked there; the file itself travels once.
            cache_dir: where fetched files are kept. None: $MPCOMPRESS_CACHE_DIR, else the user's cache directory.

        Raises:
            UnknownCodecError: neither a shipped codec nor a file, nor known to the server.
            CodecUnavailableError: its dependencies are not installed, and the message says which extra has them; or
                the codec has no file to run it with.
            CodecMismatchError: the server's file makes another codec here than there: different releases.
            InvalidRequestError: a damaged codec file, or a cache that cannot be written.
            ServerUnavailableError: the server cannot be reached.
        """
        return cls(load_codec(codec, target, cache_dir))

    def compress(
        self,
        tensors: Any,
        *,
        qp: float | None = None,
        token_res: Sequence[int] | None = None,
        prefix_tokens: int | None = None,
        **params: Any,
    ) -> CodedUnit:
        """As `CompressionClient.compress`, here."""
        options = CompressOptions(
            codec=self.info.id,
            qp=qp,
            token_res=token_res,
            prefix_tokens=prefix_tokens,
            params=params,
            family_of=lambda _: self.info.family,
        )
        arrays = named_arrays(tensors)
        messages = specs_of(arrays)
        with self._lock, library():
            resolved = self._codec.resolve(library_specs(messages), library_params(options.message, self._codec))
            (coded,) = self._codec.compress([arrays], resolved)
        unit = CodedUnit.build(
            codec_id=self._codec.id,
            bitstream_version=self._codec.bitstream_version,
            fingerprint=self._codec.fingerprint,
            arithmetic=_ARITHMETIC[self._codec.arithmetic],
            tensors=[spec for spec in messages if spec.name == self._codec.inputs[0].name],
            kind=self._codec.pstate_kind,
            pstate=coded.pstate,
            strings=coded.strings,
            ctx_hash=coded.ctx_hash,
            report=pb.CodingReport(
                nmse=coded.report.nmse,
                qp_eighths=coded.report.qp_eighths,
                target_reached=coded.report.target_reached,
                domain_distance=coded.report.domain_distance,
                warnings=coded.report.warnings,
            ),
        )
        assert unit.report is not None
        unit.report.bpfp = unit.bpfp
        return unit

    def decompress(self, unit: UnitLike, *, dtype: Any = None, ctx: Any = None, out: Any = None) -> Decoded:
        """As `CompressionClient.decompress`, here."""
        options = DecompressOptions(dtype=dtype)
        opened = open_unit(unit)
        output, destination = options.output_of(opened, out)
        self._check_unit(opened)
        context = {} if ctx is None else named_arrays(ctx, CONTEXT)
        specs_of(context)
        with self._lock, library():
            from mpcompress.codec import Unit

            library_unit = Unit(
                strings=opened.strings,
                pstate=opened.pstate,
                specs=tuple(library_specs(opened.header.tensors)),
                ctx_hash=opened.header.ctx_hash,
                context=context,
            )
            self._codec.check_unit(library_unit)
            (found,) = self._codec.decompress([library_unit])
        if output != pb.DATA_TYPE_UNSPECIFIED:
            found = {name: _as_wanted(array, name, output) for name, array in found.items()}
        if destination is not None:
            destination.check(specs_of(found))
            filled: Decoded = destination.fill(found)
            return filled
        return next(iter(found.values())) if len(found) == 1 else dict(found)

    def _check_unit(self, unit: CodedUnit) -> None:
        if unit.fingerprint != self._codec.fingerprint:
            raise CodecMismatchError(
                f"the unit needs {unit.codec_id} with fingerprint {unit.fingerprint.hex()}; "
                f"{self.info.id} here has {self._codec.fingerprint.hex()}",
                field="unit.fingerprint",
            )
        if unit.header.bitstream_version != self._codec.bitstream_version:
            raise CodecMismatchError(
                f"the unit has bitstream version {unit.header.bitstream_version}; "
                f"{self.info.id} here reads {self._codec.bitstream_version}",
                field="unit.bitstream_version",
            )
        if get_pstate(unit.header)[0] != self._codec.pstate_kind:
            raise CorruptUnitError(f"the unit's state is not of family {self.info.family}", field="unit.pstate")


def _as_wanted(array: Array, name: str, output: pb.DataType.ValueType) -> Array:
    dtype = dtype_of(output)
    if array.dtype != dtype and ("int" in array.dtype.name or "int" in dtype.name):
        raise InvalidRequestError(
            f"{name} is {array.dtype.name}, it does not become {dtype.name}", field="output_dtype"
        )
    return cast(array, dtype)
