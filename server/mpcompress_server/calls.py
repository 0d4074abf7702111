"""One call into a codec: a batch of items in, one outcome per item out. The same code runs in threads and workers.

    begin_call ──► first stage of all items ──► the second stages, as a function ──► CallResult
                   │ one fails: each alone      │ dropped items: not run
                   │ out of device memory: halves, once

The first stage of one call may run while the second stage of the one before it does, in another thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpcompress.codec import Array, Coded, CodingParams, FeatureCodec, TensorSpec, Unit
from mpcompress_proto.tensors import cast, dtype_named
from mpcompress_server.dropping import Dropped, DroppedError


@dataclass(frozen=True, kw_only=True)
class CompressCall:
    """Items of one batch key.

    Args:
        inputs: per item the tensors by input name.
        params: per item what `FeatureCodec.resolve` gave.
        dropped: which of them nobody waits for any more.
    """

    inputs: list[Mapping[str, Array]]
    params: list[CodingParams]
    dropped: Dropped = field(default_factory=lambda: Dropped(0))

    def __post_init__(self) -> None:
        _one_flag_each(self)

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, kw_only=True)
class DecompressCall:
    """Units that passed `FeatureCodec.check_unit`.

    Args:
        units: the items.
        outputs: per item the specs of its outputs, with the dtypes that the client wants.
        dropped: which of them nobody waits for any more.
    """

    units: list[Unit]
    outputs: list[tuple[TensorSpec, ...]]
    dropped: Dropped = field(default_factory=lambda: Dropped(0))

    def __post_init__(self) -> None:
        _one_flag_each(self)

    def __len__(self) -> int:
        return len(self.units)


Call = CompressCall | DecompressCall
Outcome = Coded | dict[str, Array] | Exception
Stage = Callable[[], Coded | dict[str, Array]]


def _one_flag_each(call: Call) -> None:
    if len(call.dropped) != len(call):
        object.__setattr__(call, "dropped", Dropped(len(call)))


@dataclass(frozen=True, kw_only=True)
class CallResult:
    """What a call gave.

    Args:
        outcomes: one per item, in order.
        coding_s: time in the codec, seconds.
        first_s: the part of it in the first stage; 0 for a codec that has no second.
        too_many: the device had no memory for all items at once.
    """

    outcomes: list[Outcome]
    coding_s: float
    first_s: float = 0.0
    too_many: bool = False


def run_call(codec: FeatureCodec, call: Call) -> CallResult:
    """Runs a call in this thread. What goes wrong with an item becomes that item's outcome; nothing is raised."""
    return begin_call(codec, call)()


def begin_call(codec: FeatureCodec, call: Call) -> SecondStages:
    """Runs the first stage of a call; the result runs the second. Neither raises."""
    start = time.perf_counter()
    begun = _Begun(codec, call)
    begun.attempt(range(len(call)))
    return SecondStages(begun, len(call), time.perf_counter() - start, codec.staged)


class SecondStages:
    """What is left of a call, to be run once.

    Attributes:
        too_many: the device had no memory for all items at once.
    """

    def __init__(self, begun: _Begun, items: int, first_s: float, staged: bool) -> None:
        self.too_many = begun.too_many
        self._begun = begun
        self._items = items
        self._first_s = first_s
        self._staged = staged

    def __call__(self) -> CallResult:
        """Runs the second stages."""
        start = time.perf_counter()
        outcomes = [self._begun.finish(index) for index in range(self._items)]
        return CallResult(
            outcomes=outcomes,
            coding_s=self._first_s + time.perf_counter() - start,
            first_s=self._first_s if self._staged else 0.0,
            too_many=self.too_many,
        )


class _Begun:
    """The items of a call between their stages."""

    def __init__(self, codec: FeatureCodec, call: Call) -> None:
        self._codec = codec
        self._call = call
        self._tokens = call.dropped.tokens()
        self._stages: list[Stage | Exception] = [RuntimeError("never begun")] * len(call)
        self.too_many = False

    def attempt(self, indices: Sequence[int], *, last: bool = False) -> None:
        """First stages. One bad item fails its whole batch: each one alone tells which it was."""
        try:
            self._begin(indices)
        except Exception as error:
            if _is_device_memory(error) and not last:
                self._retry_smaller(indices)
            elif _is_device_memory(error) or len(indices) == 1:
                for index in indices:
                    self._stages[index] = _plain(error)
            else:
                for index in indices:
                    self.attempt((index,), last=last)

    def _retry_smaller(self, indices: Sequence[int]) -> None:
        """Each half once more, a single item as it is, after the device's unused blocks are given back."""
        self.too_many = self.too_many or len(indices) > 1
        _free_device_memory()
        half = (len(indices) + 1) // 2
        for part in (indices[:half], indices[half:]):
            if part:
                self.attempt(part, last=True)

    def _begin(self, indices: Sequence[int]) -> None:
        call, codec = self._call, self._codec
        for index in indices:
            if self._tokens[index].is_set():
                self._stages[index] = DroppedError("cancelled before its codec began")
        left = [index for index in indices if not self._tokens[index].is_set()]
        if isinstance(call, DecompressCall):
            if left:
                units, tokens = [call.units[i] for i in left], [self._tokens[i] for i in left]
                self._put(left, codec.begin_decompress(units, tokens))
            return
        inputs, params = [call.inputs[i] for i in left], [call.params[i] for i in left]
        self._put(left, codec.begin_compress_mixed(inputs, params, [self._tokens[i] for i in left]))

    def _put(self, indices: Sequence[int], stages: Sequence[Stage]) -> None:
        if len(stages) != len(indices):
            raise RuntimeError(f"codec {self._codec.id} gave {len(stages)} results for {len(indices)} items")
        for index, stage in zip(indices, stages, strict=True):
            self._stages[index] = stage

    def finish(self, index: int) -> Outcome:
        """Second stage of one item."""
        stage = self._stages[index]
        # What the stage holds goes as soon as it is done.
        self._stages[index] = RuntimeError("already finished")
        if self._tokens[index].is_set():
            return DroppedError("cancelled in its codec")
        if isinstance(stage, Exception):
            return stage
        try:
            value = stage()
        except Exception as error:
            return _plain(error)
        if isinstance(value, Coded):
            return value
        assert isinstance(self._call, DecompressCall)
        return _as_wanted(value, self._call.outputs[index])


def _is_device_memory(error: Exception) -> bool:
    """Whether a GPU is out of memory, known by name: this module imports no torch."""
    return any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__) or (
        isinstance(error, RuntimeError) and "CUDA out of memory" in str(error)
    )


def _plain(error: Exception) -> Exception:
    return MemoryError("no memory on the device") if _is_device_memory(error) else error


def _free_device_memory() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _as_wanted(found: Mapping[str, Array], specs: tuple[TensorSpec, ...]) -> Outcome:
    """The outputs in the promised order, shapes and dtypes; what does not match its promise is the codec's bug."""
    result: dict[str, Array] = {}
    for spec in specs:
        array = found.get(spec.name)
        if array is None or array.shape != spec.shape:
            shape = None if array is None else array.shape
            return RuntimeError(f"output {spec.name} has shape {shape}, promised was {spec.shape}")
        result[spec.name] = cast(array, dtype_named(spec.dtype))
    return result
