"""Codecs that only tests serve, loaded as a plug-in: they register their families when this module is imported.

`bytes` stores the elements as they are behind a checksum. Its options make it misbehave where a test wants that:
the first element of a tensor is a trigger.
"""

from __future__ import annotations

import os
import signal
import threading
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpcompress import registry
from mpcompress.codec import (
    Array,
    Coded,
    CodingParams,
    FeatureCodec,
    QpRange,
    TensorPort,
    TensorSpec,
    Unit,
    fingerprint_of,
)
from mpcompress.errors import (
    CodecMismatchError,
    CodecUnavailableError,
    CorruptBitstreamError,
    InvalidInputError,
    NonFiniteError,
)
from mpcompress_proto.tensors import DTYPE_NAMES, data_type, dtype_of

TYPE_URL = "type.example.com/bytes"
CRASH, HANG, BUG, BAD_OUTPUT, BIG_SIDE = 101.0, 102.0, 103.0, 104.0, 1 << 20


class Gate:
    """Holds codec calls until the test lets them go, and tells it when one has arrived."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()

    def pass_through(self) -> None:
        self.arrived.release()
        if not self.open.wait(60):
            raise RuntimeError("nobody opened the gate")


GATES: dict[str, Gate] = {}


class BytesCodec(FeatureCodec):
    family = "test_bytes"
    bitstream_version = 1
    arithmetic = "exact"
    parameters = ("type_url", "value")
    qp = QpRange(minimum=0, maximum=400, default=192)

    def __init__(self, spec: registry.CodecSpec) -> None:
        self.id = spec.id
        self.options = dict(spec.options)
        self.description = "Stores elements; for tests only."
        dtypes = DTYPE_NAMES
        self.inputs: tuple[TensorPort, ...] = (TensorPort(name="h", ranks=(1, 2, 3), dtypes=dtypes),)
        self.outputs: tuple[TensorPort, ...] = (TensorPort(name="h_hat", ranks=(1, 2, 3), dtypes=dtypes),)
        if self.options.get("context"):
            self.inputs += (TensorPort(name="ctx", ranks=(1, 2, 3), dtypes=dtypes),)
        self.fingerprint = fingerprint_of([("salt", str(self.options.get("salt", "")).encode())])
        self.file = b"x" * int(self.options.get("file_bytes", 0))

    @property
    def pstate_kind(self) -> str:
        return "plugin"

    def resolve(self, specs: Sequence[TensorSpec], params: CodingParams) -> CodingParams:
        for index, spec in enumerate(specs):
            if len(spec.shape) > 3:
                raise InvalidInputError("rank 1 to 3", field=f"tensors[{index}].shape")
        if params.qp_eighths is not None and not 0 <= params.qp_eighths <= 400:
            raise InvalidInputError("qp 0 to 50", field="params.qp_eighths")
        if params.prefix_tokens == 77:
            raise ZeroDivisionError("a bug in resolve, with /a/path/in/it")
        return params

    def compress(self, batch: Sequence[Mapping[str, Array]], params: CodingParams) -> list[Coded]:
        return [self._compress(item) for item in batch]

    def _compress(self, item: Mapping[str, Array]) -> Coded:
        h = item["h"]
        self._misbehave(float(h.flat[0]))
        if not np.isfinite(h.astype(np.float32)).all():
            raise NonFiniteError("h holds NaN or infinity", field="tensors[0]")
        data = h.tobytes()
        ctx_hash = b""
        if "ctx" in item:
            ctx_hash = fingerprint_of([("ctx", item["ctx"].tobytes())])
        if self.options.get("deflate"):
            data = zlib.compress(data, 1)
        return Coded(
            strings=[data[: len(data) // 2], data[len(data) // 2 :]],
            pstate={"type_url": TYPE_URL, "value": b"state"},
            ctx_hash=ctx_hash,
        )

    def check_unit(self, unit: Unit) -> tuple[TensorSpec, ...]:
        if unit.pstate.get("value") != b"state":
            raise CorruptBitstreamError("not my state", field="unit.plugin.value")
        if len(unit.strings) != 2:
            raise CorruptBitstreamError("two streams", field="unit.stream_bytes")
        return tuple(TensorSpec(name="h_hat", dtype=spec.dtype, shape=spec.shape) for spec in unit.specs[:1])

    def decompress(self, batch: Sequence[Unit]) -> list[dict[str, Array]]:
        return [self._decompress(unit) for unit in batch]

    def _decompress(self, unit: Unit) -> dict[str, Array]:
        if unit.ctx_hash and unit.ctx_hash != fingerprint_of([("ctx", unit.context["ctx"].tobytes())]):
            raise CodecMismatchError("another context", field="unit.ctx_hash")
        data = b"".join(unit.strings)
        if self.options.get("deflate"):
            data = zlib.decompress(data)
        spec = unit.specs[0]
        array = np.frombuffer(data, dtype_of(data_type(spec.dtype))).reshape(spec.shape)
        self._misbehave(float(array.flat[0]))
        if array.flat[0] == BAD_OUTPUT:
            array = array[:1]
        return {"h_hat": array}

    def _misbehave(self, trigger: float) -> None:
        if "gate" in self.options:
            GATES[self.options["gate"]].pass_through()
        if trigger == BUG:
            raise ZeroDivisionError("a bug, with /a/path/in/it")
        if self.options.get("reckless") and trigger == CRASH:
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.options.get("reckless") and trigger == HANG:
            threading.Event().wait()

    def warm_up(self) -> None:
        if self.options.get("fails_to_warm_up"):
            raise ValueError("a failure with /a/path/in/it")
        if self.options.get("dies_at_start"):
            os.kill(os.getpid(), signal.SIGKILL)

    def codec_file(self) -> bytes | None:
        return self.file or None


def load(spec: registry.CodecSpec) -> BytesCodec:
    if spec.options.get("missing"):
        raise CodecUnavailableError("install the thing", field="")
    if spec.weights is not None:
        spec.weights_path()
    return BytesCodec(spec)


def options(**values: Any) -> dict[str, Any]:
    """A codec entry of the settings."""
    return {"family": "test_bytes", **values}


if "test_bytes" not in registry.families():
    registry.register_family("test_bytes", "mpc_test_codecs:load")
    registry.register_family("test_absent", "mpc_no_such_module:load")
