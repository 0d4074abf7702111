"""Family `store`: elements as they are, so that a measurement through a server shows the service and nothing else.

A plug-in of the server, for benchmarks only: `plugins = ["store_codec"]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mpcompress import registry
from mpcompress.codec import Array, Coded, CodingParams, FeatureCodec, TensorPort, TensorSpec, Unit, fingerprint_of
from mpcompress.errors import CorruptBitstreamError

_DTYPES = ("float32", "float16")


class StoreCodec(FeatureCodec):
    """Stores one tensor of up to three axes."""

    family = "store"
    bitstream_version = 1
    arithmetic = "exact"
    description = "Stores elements; for benchmarks only."
    inputs = (TensorPort(name="h", ranks=(1, 2, 3), dtypes=_DTYPES),)
    outputs = (TensorPort(name="h_hat", ranks=(1, 2, 3), dtypes=_DTYPES),)
    fingerprint = fingerprint_of([("store", b"1")])

    def __init__(self, codec_id: str) -> None:
        self.id = codec_id

    @property
    def pstate_kind(self) -> str:
        """An Any."""
        return "plugin"

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        """Takes everything."""
        return params

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """Copies."""
        pstate = {"type_url": "type.example.com/store", "value": b""}
        return [Coded(strings=[item["h"].tobytes()], pstate=pstate) for item in batch]

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """Only the size can be wrong."""
        (spec,) = unit.specs
        if len(unit.strings) != 1 or len(unit.strings[0]) != spec.elements * np.dtype(spec.dtype).itemsize:
            raise CorruptBitstreamError("not the size of the tensor", field="payload")
        return (TensorSpec(name="h_hat", dtype=spec.dtype, shape=spec.shape),)

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """Without a copy."""
        return [{"h_hat": np.frombuffer(u.strings[0], u.specs[0].dtype).reshape(u.specs[0].shape)} for u in batch]


class HollowCodec(StoreCodec):
    """Forgets its tensor: a unit holds nothing of it, and any unit decodes to the same ones."""

    family = "hollow"
    description = "Stores nothing; for benchmarks only."
    fingerprint = fingerprint_of([("hollow", b"1")])

    def __init__(self, codec_id: str) -> None:
        super().__init__(codec_id)
        self._made: dict[TensorSpec, Array] = {}

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        """Eight bytes for anything."""
        pstate = {"type_url": "type.example.com/hollow", "value": b""}
        return [Coded(strings=[bytes(8)], pstate=pstate) for _ in batch]

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        """Takes everything."""
        (spec,) = unit.specs
        return (TensorSpec(name="h_hat", dtype=spec.dtype, shape=spec.shape),)

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        """The same array for all units of a kind."""
        for unit in batch:
            (spec,) = unit.specs
            if spec not in self._made:
                self._made[spec] = np.ones(spec.shape, spec.dtype)
        return [{"h_hat": self._made[unit.specs[0]]} for unit in batch]


def load(spec: registry.CodecSpec) -> StoreCodec:
    """For the registry."""
    return HollowCodec(spec.id) if spec.family == "hollow" else StoreCodec(spec.id)


for _family in ("store", "hollow"):
    if _family not in registry.families():
        registry.register_family(_family, "store_codec:load")
