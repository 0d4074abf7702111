"""Codecs that run on this device instead of a server: the same calls, the same units, byte for byte.

Needs the codec library, which is imported when the first codec is loaded and not before.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpcompress_client import safetensors_file
from mpcompress_client.arrays import named_arrays, output_type, specs_of
from mpcompress_client.calls import CONTEXT, CompressOptions, UnitLike, open_unit
from mpcompress_client.errors import (
    CodecMismatchError,
    CorruptUnitError,
    InvalidRequestError,
    MPCompressError,
    UnknownCodecError,
)
from mpcompress_client.infos import CodecInfo, QpRange, TensorPort
from mpcompress_client.items import Decoded
from mpcompress_client.library import library
from mpcompress_client.params import QP_STEPS
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.pstate import get_pstate, to_dict
from mpcompress_proto.tensors import FEATURES, Array, cast, dtype_of
from mpcompress_proto.v1 import compression_pb2 as pb

if TYPE_CHECKING:
    from mpcompress.codec import CodingParams, FeatureCodec, TensorSpec

_ARITHMETIC: dict[str, pb.Arithmetic.ValueType] = {"exact": pb.ARITHMETIC_EXACT, "float32": pb.ARITHMETIC_FLOAT32}


class EdgeCodec:
    """A codec on this device. May be shared by threads, which then take turns.

    Attributes:
        info: what a server would list about it.
    """

    def __init__(self, codec: FeatureCodec) -> None:
        self._codec = codec
        self._lock = threading.Lock()
        self.info = _info(codec)

    @classmethod
    def load(cls, codec: str | PathLike[str]) -> EdgeCodec:
        """Loads a shipped codec by its id, or any codec by the path of its file.

        Raises:
            UnknownCodecError: neither a shipped codec nor a file.
            CodecUnavailableError: its dependencies are not installed; the message says which extra has them.
            InvalidRequestError: a damaged codec file.
        """
        with library():
            from mpcompress import registry

            shipped = registry.preset_ids()
            if str(codec) in shipped:
                return cls(registry.load(registry.preset(str(codec))))
            path = Path(codec)
            if not path.is_file():
                known = ", ".join(shipped) or "none"
                raise UnknownCodecError(f"{str(codec)!r} is neither a codec file nor a shipped codec ({known})")
            try:
                header = json.loads(safetensors_file.read_metadata(path)["mpcompress"])
                codec_id, family = str(header["id"]), str(header["family"])
            except (KeyError, TypeError, ValueError) as error:
                if isinstance(error, MPCompressError):
                    raise
                raise InvalidRequestError(f"{path} is no codec file") from error
            return cls(registry.load(registry.CodecSpec(id=codec_id, family=family, weights=str(path))))

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
            resolved = self._codec.resolve(_specs(messages), _params(options.message, self._codec))
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

    def decompress(self, unit: UnitLike, *, dtype: Any = None, ctx: Any = None) -> Decoded:
        """As `CompressionClient.decompress`, here."""
        output = output_type(dtype)
        opened = open_unit(unit)
        self._check_unit(opened)
        context = {} if ctx is None else named_arrays(ctx, CONTEXT)
        specs_of(context)
        with self._lock, library():
            from mpcompress.codec import Unit

            library_unit = Unit(
                strings=opened.strings,
                pstate=opened.pstate,
                specs=tuple(_specs(opened.header.tensors)),
                ctx_hash=opened.header.ctx_hash,
                context=context,
            )
            self._codec.check_unit(library_unit)
            (found,) = self._codec.decompress([library_unit])
        if output != pb.DATA_TYPE_UNSPECIFIED:
            found = {name: _as_wanted(array, name, output) for name, array in found.items()}
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


def shipped_codecs() -> list[str]:
    """Ids of the codecs that come with the library, sorted. Raises CodecUnavailableError when it is not installed."""
    with library():
        from mpcompress import registry

        return registry.preset_ids()


def _as_wanted(array: Array, name: str, output: pb.DataType.ValueType) -> Array:
    dtype = dtype_of(output)
    if array.dtype != dtype and ("int" in array.dtype.name or "int" in dtype.name):
        raise InvalidRequestError(
            f"{name} is {array.dtype.name}, it does not become {dtype.name}", field="output_dtype"
        )
    return cast(array, dtype)


def _specs(messages: Sequence[pb.TensorSpec]) -> list[TensorSpec]:
    from mpcompress.codec import TensorSpec

    return [
        TensorSpec(name=spec.name or FEATURES, dtype=dtype_of(spec.dtype).name, shape=tuple(spec.shape))
        for spec in messages
    ]


def _params(message: pb.CodingParams, codec: FeatureCodec) -> CodingParams:
    from mpcompress.codec import CodingParams

    member = message.WhichOneof("family")
    family: dict[str, Any] = {}
    if member is not None:
        if member != codec.pstate_kind:
            raise InvalidRequestError(
                f"codec {codec.id} is of family {codec.family}, it takes no {member} parameters",
                field=f"params.{member}",
            )
        family = {name: value for name, value in to_dict(getattr(message, member)).items() if value not in ("", 0, [])}
        given = getattr(message, member)
        for descriptor in given.DESCRIPTOR.fields:
            if descriptor.has_presence and given.HasField(descriptor.name):
                family[descriptor.name] = getattr(given, descriptor.name)
    target = message.WhichOneof("target")
    return CodingParams(
        qp_eighths=message.qp_eighths if message.HasField("qp_eighths") else None,
        token_res=(message.token_res.height, message.token_res.width) if message.HasField("token_res") else None,
        prefix_tokens=message.prefix_tokens if message.HasField("prefix_tokens") else None,
        target_bpfp=message.target_bpfp if target == "target_bpfp" else None,
        target_nmse=message.target_nmse if target == "target_nmse" else None,
        target_policy="error" if message.target_policy == pb.TARGET_POLICY_ERROR else "nearest",
        family=tuple(sorted((name, tuple(v) if isinstance(v, list) else v) for name, v in family.items())),
    )


def _info(codec: FeatureCodec) -> CodecInfo:
    def port(source: Any) -> TensorPort:
        return TensorPort(
            name=source.name,
            ranks=source.ranks,
            dtypes=source.dtypes,
            channels=source.channels,
            layout=source.layout,
        )

    qp = None
    if codec.qp is not None:
        low, high, default = (x / QP_STEPS for x in (codec.qp.minimum, codec.qp.maximum, codec.qp.default))
        qp = QpRange(minimum=low, maximum=high, default=default)
    return CodecInfo(
        id=codec.id,
        family=codec.family,
        bitstream_version=codec.bitstream_version,
        fingerprint=codec.fingerprint,
        arithmetic=codec.arithmetic,
        description=codec.description,
        inputs=tuple(port(source) for source in codec.inputs),
        outputs=tuple(port(source) for source in codec.outputs),
        qp=qp,
        token_res=codec.token_res,
        prefix_tokens=codec.prefix_tokens,
        available=True,
        unavailable_reason="",
        trained=codec.trained,
        codec_file_bytes=len(codec.codec_file() or b""),
        parameters=codec.parameters,
        local=True,
    )
