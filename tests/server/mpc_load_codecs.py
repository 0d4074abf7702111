"""Codecs of two stages, for tests of a server under load; a plug-in like `mpc_test_codecs`.

Options: `first` and `second` name gates that every call passes in a stage; `capacity` is how many items fit the device;
`gpu_bytes` is what each item of a call takes there, on a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from mpc_test_codecs import GATES, BytesCodec

from mpcompress import registry
from mpcompress.codec import Array, CancelToken, Coded, CodingParams, Unit

ALLOCATE, ALLOCATE_SOME = 201.0, 202.0
BATCHES: list[int] = []
LOADED: list[Any] = []


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class StagedCodec(BytesCodec):
    family = "test_staged"
    staged = True

    def begin_compress(
        self, batch: Sequence[Mapping[str, Array]], params: CodingParams, cancel: Sequence[CancelToken]
    ) -> list[Callable[[], Coded]]:
        self._begin(len(batch))
        return [self._second(lambda item=item: self._compress(item)) for item in batch]

    def begin_decompress(
        self, batch: Sequence[Unit], cancel: Sequence[CancelToken]
    ) -> list[Callable[[], dict[str, Array]]]:
        self._begin(len(batch))
        return [self._second(lambda unit=unit: self._decompress(unit)) for unit in batch]

    def _begin(self, count: int) -> None:
        BATCHES.append(count)
        if "first" in self.options:
            GATES[self.options["first"]].pass_through()
        if count > self.options.get("capacity", count):
            raise OutOfMemoryError("CUDA out of memory")
        if "gpu_bytes" in self.options:
            import torch

            torch.empty(count * self.options["gpu_bytes"], dtype=torch.uint8, device="cuda")

    def _second(self, run: Callable[[], Any]) -> Callable[[], Any]:
        def second() -> Any:
            if "second" in self.options:
                GATES[self.options["second"]].pass_through()
            return run()

        return second

    def _misbehave(self, trigger: float) -> None:
        if trigger == ALLOCATE:
            np.ones(1 << 46, np.uint8)
        if trigger == ALLOCATE_SOME:
            np.ones(400 << 20, np.uint8)
        super()._misbehave(trigger)


def load(spec: registry.CodecSpec) -> StagedCodec:
    LOADED.append(spec.options.get("device"))
    return StagedCodec(spec)


if "test_staged" not in registry.families():
    registry.register_family("test_staged", "mpc_load_codecs:load")
