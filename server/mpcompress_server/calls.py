"""One call into a codec: a batch of items in, one outcome per item out. The same code runs in threads and workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mpcompress.codec import Array, Coded, CodingParams, FeatureCodec, TensorSpec, Unit
from mpcompress_proto.tensors import data_type, dtype_of

_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class CompressCall:
    """Items that resolved to the same params.

    Args:
        inputs: per item the tensors by input name.
        params: what `FeatureCodec.resolve` gave for every one of them.
    """

    inputs: list[Mapping[str, Array]]
    params: CodingParams

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, kw_only=True)
class DecompressCall:
    """Units that passed `FeatureCodec.check_unit`.

    Args:
        units: the items.
        outputs: per item the specs of its outputs, with the dtypes that the client wants.
    """

    units: list[Unit]
    outputs: list[tuple[TensorSpec, ...]]

    def __len__(self) -> int:
        return len(self.units)


Call = CompressCall | DecompressCall
Outcome = Coded | dict[str, Array] | Exception


@dataclass(frozen=True, kw_only=True)
class CallResult:
    """What a call gave: one outcome per item, in order, and the time in the codec, seconds."""

    outcomes: list[Outcome]
    coding_s: float


def run_call(codec: FeatureCodec, call: Call) -> CallResult:
    """Runs a call in this thread. What goes wrong with an item becomes that item's outcome; nothing is raised."""
    start = time.perf_counter()
    try:
        outcomes = _run(codec, call)
    except Exception as error:
        # One bad item fails the whole batch: each one alone tells which it was.
        outcomes = [error] if len(call) == 1 else [_run_one(codec, single) for single in _singles(call)]
    return CallResult(outcomes=outcomes, coding_s=time.perf_counter() - start)


def _run(codec: FeatureCodec, call: Call) -> list[Outcome]:
    if isinstance(call, CompressCall):
        coded = codec.compress(call.inputs, call.params)
        return [*coded] if len(coded) == len(call) else [_miscount(codec, len(coded), len(call))] * len(call)
    tensors = codec.decompress(call.units)
    if len(tensors) != len(call):
        return [_miscount(codec, len(tensors), len(call))] * len(call)
    return [_as_wanted(found, specs) for found, specs in zip(tensors, call.outputs, strict=True)]


def _run_one(codec: FeatureCodec, call: Call) -> Outcome:
    try:
        return _run(codec, call)[0]
    except Exception as error:
        return error


def _singles(call: Call) -> list[Call]:
    if isinstance(call, CompressCall):
        return [CompressCall(inputs=[item], params=call.params) for item in call.inputs]
    pairs = zip(call.units, call.outputs, strict=True)
    return [DecompressCall(units=[unit], outputs=[specs]) for unit, specs in pairs]


def _miscount(codec: FeatureCodec, got: int, wanted: int) -> RuntimeError:
    return RuntimeError(f"codec {codec.id} gave {got} results for {wanted} items")


def _as_wanted(found: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> Outcome:
    """The outputs in the promised order, shapes and dtypes; what does not match its promise is the codec's bug."""
    result: dict[str, Array] = {}
    for spec in specs:
        array = found.get(spec.name)
        if array is None or array.shape != spec.shape:
            shape = None if array is None else array.shape
            return RuntimeError(f"output {spec.name} has shape {shape}, promised was {spec.shape}")
        result[spec.name] = cast(array, spec.dtype)
    return result


def cast(array: Array, dtype: str) -> Array:
    """Converts to a dtype that travels. float16 saturates: a decoded value beyond 65504 is no infinity."""
    target = dtype_of(data_type(dtype))
    if array.dtype == target:
        return array
    if dtype == "float16":
        array = np.clip(array, -_FLOAT16_MAX, _FLOAT16_MAX)
    return array.astype(target)
