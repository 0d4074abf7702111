"""The codec file of a neural codec: a state dict with its tables as safetensors, a JSON object as metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.errors import CodecFileError
from mpcompress.registry import CODEC_ID
from mpcompress.transforms.tensor_file import read_tensor_file, write_tensor_file

__all__ = ["BITSTREAM_VERSION", "NeuralFile"]

BITSTREAM_VERSION = 1
_METADATA_KEY = "mpcompress"
_DTYPES = ("float32", "int32", "int16")


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuralFile:
    """What one file holds.

    Args:
        id: codec id.
        family: codec family.
        description: one sentence.
        sizes: constructor arguments of the documented class.
        tensors: its state dict, float32, int32 and int16.
        token_res: (H, W) it was made for; None: any.
        settings: what else the family wants to know, JSON-able.
        trained: False for random weights.
        card: what a person wants to know, JSON-able.
    """

    id: str
    family: str
    description: str
    sizes: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]] = field(repr=False)
    token_res: tuple[int, int] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    trained: bool = True
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not CODEC_ID.fullmatch(self.id):
            raise CodecFileError(f"codec id {self.id!r} is not 1 to 64 characters of [a-z0-9._-]", field="id")
        if self.token_res is not None and not all(1 <= side <= 65535 for side in self.token_res):
            raise CodecFileError(f"a grid of {self.token_res} tokens", field="token_res")
        for name, tensor in self.tensors.items():
            if tensor.dtype.name not in _DTYPES:
                raise CodecFileError(f"{name} is {tensor.dtype}, not {', '.join(_DTYPES)}", field=name)
            if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
                raise CodecFileError(f"{name} holds NaN or infinity", field=name)

    def to_bytes(self) -> bytes:
        """The file."""
        header = {
            "family": self.family,
            "bitstream_version": BITSTREAM_VERSION,
            "id": self.id,
            "description": self.description,
            "sizes": dict(self.sizes),
            "token_res": None if self.token_res is None else list(self.token_res),
            "settings": dict(self.settings),
            "trained": self.trained,
            "card": dict(self.card),
        }
        return write_tensor_file(self.tensors, {_METADATA_KEY: json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> NeuralFile:
        """Reads a file. Raises CodecFileError for anything that `to_bytes` does not write."""
        tensors, metadata = read_tensor_file(data)
        if _METADATA_KEY not in metadata:
            raise CodecFileError(
                "not a codec file: it has no mpcompress metadata; `mpcompress import-checkpoint` makes one of weights",
                field="weights",
            )
        try:
            header = json.loads(metadata[_METADATA_KEY])
            if header["bitstream_version"] != BITSTREAM_VERSION:
                said = header["bitstream_version"]
                raise CodecFileError(
                    f"bitstream version {said!r}; this release reads {BITSTREAM_VERSION}", field="weights"
                )
            grid = header["token_res"]
            return cls(
                id=str(header["id"]),
                family=str(header["family"]),
                description=str(header["description"]),
                sizes=dict(header["sizes"]),
                tensors=tensors,
                token_res=None if grid is None else (int(grid[0]), int(grid[1])),
                settings=dict(header["settings"]),
                trained=bool(header["trained"]),
                card=dict(header["card"]),
            )
        except CodecFileError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise CodecFileError(f"damaged codec file: {error!r}", field="weights") from error
