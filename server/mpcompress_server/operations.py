"""What Compress and Decompress do differently; everything about streams and items that they share is elsewhere.

An operation turns a header into a `Plan`: every check that needs no bytes, how many bytes come, what they become and
how the result travels back.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mpcompress.codec import Array, Coded, FeatureCodec, TensorPort, TensorSpec
from mpcompress.errors import InvalidInputError
from mpcompress_proto.coded_unit import UnitMaker, check_header, check_payload, split_payload
from mpcompress_proto.errors import WireError
from mpcompress_proto.parcel import COMPRESS_REQUEST, COMPRESS_RESPONSE, DECOMPRESS_REQUEST, DECOMPRESS_RESPONSE, Wire
from mpcompress_proto.tensors import check_specs, dtype_name, dtype_named, shaped, wire_view
from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_server import answers, remote_plans
from mpcompress_server import messages as convert
from mpcompress_server.answers import Answer
from mpcompress_server.codecs import LoadedCodec
from mpcompress_server.errors import ItemTooLargeError
from mpcompress_server.outlines import BatchKey, Outline, Outlines, said_by
from mpcompress_server.plan import Plan
from mpcompress_server.routing import LocalRoute, RemoteRoute, Router
from mpcompress_server.scheduler import CompressWork, DecompressWork, Finished
from mpcompress_server.settings import Limits


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A chunk of either RPC. `part` counts in the order in which an item's parts travel."""

    item_id: int
    part: int
    offset: int
    data: bytes | memoryview
    field: str


class Operation(Protocol):
    """One of the two RPCs."""

    name: str
    request: type[Any]
    requests: Wire[Any]
    response: type[Any]
    responses: Wire[Any]

    def plan(self, header: Any) -> Plan:
        """Checks a header; allocates nothing. Raises what the error table knows."""

    def piece(self, kind: str, chunk: Any, data: bytes | memoryview) -> Piece:
        """The chunk in a request's oneof member `kind`, whose bytes are `data`."""


class CompressOperation:
    """Tensors in, a unit out."""

    name = "compress"
    request, requests = pb.CompressRequest, COMPRESS_REQUEST
    response, responses = pb.CompressResponse, COMPRESS_RESPONSE

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._limits = limits
        self._outlines = Outlines()

    def plan(self, header: pb.CompressHeader) -> Plan:
        """Checks the specs, finds the codec and lets it resolve the parameters, unless it has for an equal header."""
        said = said_by(header)
        known = self._outlines.find(said)
        sizes = self._checked_sizes(header) if known is None else known.sizes
        route = self._router.for_compress(header.codec_id)
        match route:
            case RemoteRoute():
                return remote_plans.compress_plan(header, route, sizes)
            case LocalRoute():
                codec = route.loaded.ready()
                if known is None or known.loaded() is not route.loaded:
                    known = _outline(header, route.loaded, codec, sizes)
                    self._outlines.keep(said, known)
                return _compress_plan(header.item_id, route.loaded, known)

    def _checked_sizes(self, header: pb.CompressHeader) -> list[int]:
        if not header.tensors:
            raise WireError("an item has at least one tensor", field="tensors")
        sizes = check_specs(header.tensors, "tensors")
        _check_room(sum(sizes), self._limits, "tensors")
        return sizes

    def piece(self, kind: str, chunk: pb.TensorChunk, data: bytes | memoryview) -> Piece:
        """A tensor's bytes."""
        return Piece(item_id=chunk.item_id, part=chunk.tensor_index, offset=chunk.offset, data=data, field="chunk")


class DecompressOperation:
    """A unit in, tensors out."""

    name = "decompress"
    request, requests = pb.DecompressRequest, DECOMPRESS_REQUEST
    response, responses = pb.DecompressResponse, DECOMPRESS_RESPONSE

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._limits = limits

    def plan(self, header: pb.DecompressHeader) -> Plan:
        """Checks the unit's header, finds its codec and asks it what the unit will decode to."""
        if not header.HasField("unit"):
            raise WireError("no unit", field="unit")
        unit = pb.CodedUnitHeader()
        unit.CopyFrom(header.unit)
        check_header(unit)
        sizes = [unit.payload_bytes, *check_specs(header.tensors, "tensors")]
        _check_room(sum(sizes), self._limits, "unit.payload_bytes")
        route = self._router.for_unit(unit)
        match route:
            case RemoteRoute():
                plan = remote_plans.decompress_plan(header, route, sizes)
                _check_room(plan.result_bytes, self._limits, "unit.tensors")
                return plan
            case LocalRoute():
                return self._local(header, unit, route.loaded, sizes)

    def _local(
        self, header: pb.DecompressHeader, unit: pb.CodedUnitHeader, loaded: LoadedCodec, sizes: list[int]
    ) -> Plan:
        codec = loaded.ready()
        if unit.WhichOneof("pstate") != codec.pstate_kind:
            raise WireError(f"codec {codec.id} has a state of kind {codec.pstate_kind}", field="unit.pstate")
        context = convert.specs_of(header.tensors)
        _check_names(context, codec.inputs[1:], "tensors")
        outputs = _wanted(codec.check_unit(convert.unit_outline(unit, context)), header.output_dtype)
        result_bytes = sum(convert.nbytes(spec) for spec in outputs)
        _check_room(result_bytes, self._limits, "unit.tensors")
        item_id = header.item_id

        def work(buffers: list[Array]) -> DecompressWork:
            payload = buffers[0].tobytes()
            check_payload(unit, payload)
            arrays = _arrays(buffers[1:], context)
            return DecompressWork(unit=convert.unit_of(unit, split_payload(unit, payload), arrays), outputs=outputs)

        def answer(finished: Finished) -> Answer:
            assert isinstance(finished.outcome, dict)
            views = [wire_view(finished.outcome[spec.name]) for spec in outputs]
            specs = [convert.spec_message(spec) for spec in outputs]
            return answers.decompressed(item_id, specs, views, convert.duration(finished.coding_s))

        return Plan(
            loaded=loaded,
            sizes=sizes,
            result_bytes=result_bytes,
            compress=False,
            key=BatchKey((self.name, codec.batch_key(outputs, None))),
            work=work,
            answer=answer,
        )

    def piece(self, kind: str, chunk: Any, data: bytes | memoryview) -> Piece:
        """The payload's bytes, which come first, or a context tensor's."""
        part = 0 if kind == "payload" else 1 + chunk.tensor_index
        return Piece(item_id=chunk.item_id, part=part, offset=chunk.offset, data=data, field=kind)


def _check_room(nbytes: int, limits: Limits, field: str) -> None:
    if nbytes > limits.max_item_bytes:
        raise ItemTooLargeError(
            f"the item takes {nbytes} bytes; this server takes {limits.max_item_bytes} (ServerLimits.max_item_bytes)",
            field=field,
        )


def _check_names(specs: Sequence[TensorSpec], ports: Sequence[TensorPort], field: str) -> None:
    names, known = [spec.name for spec in specs], [port.name for port in ports]
    for index, name in enumerate(names):
        if name not in known:
            takes = ", ".join(known) or "none"
            raise InvalidInputError(
                f"no tensor {name!r} here; the codec takes: {takes}", field=f"{field}[{index}].name"
            )
    for name in known:
        if name not in names:
            raise InvalidInputError(f"the codec needs a tensor {name!r}", field=field)


def _arrays(buffers: Sequence[Array], specs: Sequence[TensorSpec]) -> dict[str, Array]:
    return {
        spec.name: shaped(buffer, dtype_named(spec.dtype), spec.shape)
        for buffer, spec in zip(buffers, specs, strict=True)
    }


def _wanted(outputs: Sequence[TensorSpec], dtype: pb.DataType.ValueType) -> tuple[TensorSpec, ...]:
    """The outputs in the dtype that the client wants; integers never become anything else, nor floats integers."""
    if dtype == pb.DATA_TYPE_UNSPECIFIED:
        return tuple(outputs)
    name = dtype_name(dtype, "output_dtype")
    for spec in outputs:
        if spec.dtype != name and ("int" in spec.dtype or "int" in name):
            raise InvalidInputError(f"{spec.name} is {spec.dtype} and cannot be sent as {name}", field="output_dtype")
    return tuple(TensorSpec(name=spec.name, dtype=name, shape=spec.shape) for spec in outputs)


def _outline(header: pb.CompressHeader, loaded: LoadedCodec, codec: FeatureCodec, sizes: list[int]) -> Outline:
    specs = convert.specs_of(header.tensors)
    _check_names(specs, codec.inputs, "tensors")
    params = codec.resolve(specs, convert.params_of(header.params, codec))
    wanted = [spec for spec in specs if spec.name == codec.inputs[0].name]
    return Outline(
        loaded=weakref.ref(loaded),
        sizes=sizes,
        specs=specs,
        params=params,
        # No codec gives more than its features as they came, but for the few bytes that every item has anyway.
        result_bytes=sum(convert.nbytes(spec) for spec in wanted),
        key=BatchKey((CompressOperation.name, codec.batch_key(specs, params))),
        units=UnitMaker(
            codec_id=codec.id,
            bitstream_version=codec.bitstream_version,
            fingerprint=codec.fingerprint,
            arithmetic=convert.ARITHMETIC[codec.arithmetic],
            tensors=[convert.spec_message(spec) for spec in wanted],
            kind=codec.pstate_kind,
        ),
    )


def _compress_plan(item_id: int, loaded: LoadedCodec, outline: Outline) -> Plan:
    def work(buffers: list[Array]) -> CompressWork:
        return CompressWork(tensors=_arrays(buffers, outline.specs), params=outline.params)

    def answer(finished: Finished) -> Answer:
        coded = finished.outcome
        assert isinstance(coded, Coded)
        unit = outline.units.make(pstate=coded.pstate, strings=coded.strings, ctx_hash=coded.ctx_hash)
        report = convert.report_message(coded.report, unit.bpfp, finished.coding_s)
        return answers.compressed(item_id, unit.header, report, memoryview(unit.payload))

    return Plan(
        loaded=loaded,
        sizes=outline.sizes,
        result_bytes=outline.result_bytes,
        compress=True,
        key=outline.key,
        work=work,
        answer=answer,
    )
