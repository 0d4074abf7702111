"""What family `klt` stores: numbers fitted at calibration, checked when read, and the file they travel in.

All logarithms are integers in units of 1/48 octave, so that one unit is an eighth of a qp step (step = 2^(qp / 6)).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpcompress.codec import QpRange, fingerprint_of
from mpcompress.entropy.tables import CdfTables
from mpcompress.errors import CodecFileError
from mpcompress.transforms.tensor_file import read_tensor_file, write_tensor_file
from mpcompress.transforms.tiling import LARGEST_GRID_TILE, LARGEST_SEQUENCE_TILE

FAMILY = "klt"
BITSTREAM_VERSION = 1
UNITS_PER_OCTAVE = 48
QP_LIMITS = (-768, 1536)
"""Eighths of a qp that the format can hold; what a codec advertises lies inside."""

MAX_CHANNELS = 16384
MAX_PREFIX_TOKENS = 1024
MAX_PREFIX_OFFSET = 384
MAX_GAIN = 1920
"""40 octaves: more than float16 spans."""

_LOG_LIMIT = 1920
_METADATA_KEY = "mpcompress"


@dataclass(frozen=True, kw_only=True, eq=False)
class KltModel:
    """A calibrated codec's numbers. C channels, K components, P prefix tokens, tiles of at most (h, w) tokens.

    Args:
        id: codec id.
        description: one sentence.
        token_res: grid it was made for; None for sequences.
        tile: (h, w), largest tile: at most 16 x 16, or 1 x 64.
        base_log2: log2 of the step at qp 0, 1/48 octave.
        row_cutoff: a coefficient whose log2(scale / step) is below this is not coded; 1/48 octave.
        row_shift: table row = (log2(scale / step) - row_cutoff) >> row_shift, at most the last row.
        prefix_qp_offset_eighths: the prefix tokens' qp less the patches'.
        qp: range that it was fitted for.
        rounding: of |x| / step: what is added before the floor below 1, and from 1 up. Only encoders use it.
        domain_typical: how far calibration tensors are from their own statistics, in the median. Only encoders use it.
        domain_bound: distance from the calibration set above which a tensor is reported.
        mean: float32 (C,), of the patch tokens.
        prefix_mean: float32 (P, C).
        basis: float16 (K, C), orthonormal rows, by falling variance: channels to components.
        energy: float32 (K,), mean square of each component. Only encoders use it.
        scale_tile: int16 (h, w, K), log2 E|x| of each coefficient of the largest tile.
        scale_dc: int16 (h, w, K), log2 E|x| of the first coefficient of a tile of (row + 1, column + 1) tokens.
        scale_shift: int16, for each smaller tile, in the order of the sides, and each of its positions: what is added
            to `scale_tile` interpolated at the position's frequency.
        scale_prefix: int16 (P, K), log2 E|x| of the prefix tokens' components.
        centroid: float32 (R, Q): mean of |q| - |x| / step where |q| is column + 1, or more in the last column.
        tables: R tables of q.
        card: what a person wants to know: JSON-able.
    """

    id: str
    description: str
    token_res: tuple[int, int] | None
    tile: tuple[int, int]
    base_log2: int
    row_cutoff: int
    row_shift: int
    prefix_qp_offset_eighths: int
    qp: QpRange
    rounding: tuple[float, float]
    domain_typical: float
    domain_bound: float
    mean: NDArray[np.float32]
    prefix_mean: NDArray[np.float32]
    basis: NDArray[np.float16]
    energy: NDArray[np.float32]
    scale_tile: NDArray[np.int16]
    scale_dc: NDArray[np.int16]
    scale_shift: NDArray[np.int16]
    scale_prefix: NDArray[np.int16]
    centroid: NDArray[np.float32]
    tables: CdfTables
    card: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_numbers(self)
        K, C = self.basis.shape if self.basis.ndim == 2 else (0, 0)
        P = self.prefix_mean.shape[0] if self.prefix_mean.ndim == 2 else -1
        if not (1 <= K == C <= MAX_CHANNELS and 0 <= P <= MAX_PREFIX_TOKENS):
            raise CodecFileError(f"basis {self.basis.shape} with prefix {self.prefix_mean.shape}", field="basis")
        if self.centroid.ndim != 2 or self.centroid.shape[1] < 1:
            raise CodecFileError(f"centroid has shape {self.centroid.shape}", field="centroid")
        h, w = self.tile
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "mean": ((C,), np.float32),
            "prefix_mean": ((P, C), np.float32),
            "basis": ((K, C), np.float16),
            "energy": ((K,), np.float32),
            "scale_tile": ((h, w, K), np.int16),
            "scale_dc": ((h, w, K), np.int16),
            "scale_shift": ((h * (h + 1) // 2 * (w * (w + 1) // 2),), np.int16),
            "scale_prefix": ((P, K), np.int16),
            "centroid": ((self.tables.count, self.centroid.shape[1]), np.float32),
        }
        for name, (shape, dtype) in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                said = f"{array.dtype} {array.shape}"
                raise CodecFileError(f"{name} is {said}, not {np.dtype(dtype)} {shape}", field=name)
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CodecFileError(f"{name} holds NaN or infinity", field=name)
            array.flags.writeable = False
        if np.abs(self.centroid).max() > 1 or np.abs(self.basis).max() > 2 or self.energy.min() <= 0:
            raise CodecFileError("a centroid, basis or energy is out of range", field="centroid")

    @property
    def channels(self) -> int:
        """C."""
        return int(self.basis.shape[1])

    @property
    def components(self) -> int:
        """K."""
        return int(self.basis.shape[0])

    @property
    def prefix_tokens(self) -> int:
        """P."""
        return int(self.prefix_mean.shape[0])

    def fingerprint(self) -> bytes:
        """8 bytes over all that decoding depends on, and nothing else: no name, card, qp range or rounding."""
        width = self.token_res[1] if self.token_res else 0
        numbers = [BITSTREAM_VERSION, width, self.base_log2, self.row_cutoff, self.row_shift]
        numbers += [self.prefix_qp_offset_eighths, self.tables.precision]
        parts: list[tuple[str, bytes | NDArray[Any]]] = [
            ("family", FAMILY.encode()),
            ("numbers", np.array(numbers, np.int64)),
        ]
        names = ("mean", "prefix_mean", "basis", "scale_tile", "scale_dc", "scale_shift", "scale_prefix", "centroid")
        parts += [(name, getattr(self, name)) for name in names]
        parts += [(f"table_{name}", getattr(self.tables, name)) for name in ("freqs", "lengths", "offsets")]
        return fingerprint_of(parts)

    def to_bytes(self) -> bytes:
        """The codec file: safetensors, with a JSON object as metadata."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}
        for name in ("freqs", "lengths", "offsets"):
            tensors[f"table_{name}"] = getattr(self.tables, name)
        header = {
            "family": FAMILY,
            "bitstream_version": BITSTREAM_VERSION,
            "precision": self.tables.precision,
            "qp_eighths": [self.qp.minimum, self.qp.maximum, self.qp.default],
            "token_res": None if self.token_res is None else list(self.token_res),
            "tile": list(self.tile),
            "rounding": list(self.rounding),
        }
        names = ("id", "description", "base_log2", "row_cutoff", "row_shift", "prefix_qp_offset_eighths")
        header.update(
            {name: getattr(self, name) for name in (*names, "domain_typical", "domain_bound")}, card=dict(self.card)
        )
        return write_tensor_file(tensors, {_METADATA_KEY: json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, data: bytes) -> KltModel:
        """Reads a codec file. Raises CodecFileError for anything that `to_bytes` does not write."""
        tensors, metadata = read_tensor_file(data)
        if _METADATA_KEY not in metadata:
            raise CodecFileError("not a codec file: it has no mpcompress metadata", field="weights")
        try:
            header = json.loads(metadata[_METADATA_KEY])
            if header["family"] != FAMILY:
                raise CodecFileError(f"a file of family {header['family']!r}, not {FAMILY}", field="weights")
            if header["bitstream_version"] != BITSTREAM_VERSION:
                said = header["bitstream_version"]
                raise CodecFileError(
                    f"bitstream version {said!r}; this release reads {BITSTREAM_VERSION}", field="weights"
                )
            table_parts = {name: tensors.pop(f"table_{name}") for name in ("freqs", "lengths", "offsets")}
            minimum, maximum, default = (_integer(value) for value in header["qp_eighths"])
            return cls(
                id=str(header["id"]),
                description=str(header["description"]),
                token_res=None if header["token_res"] is None else _pair(header["token_res"]),
                tile=_pair(header["tile"]),
                base_log2=_integer(header["base_log2"]),
                row_cutoff=_integer(header["row_cutoff"]),
                row_shift=_integer(header["row_shift"]),
                prefix_qp_offset_eighths=_integer(header["prefix_qp_offset_eighths"]),
                qp=QpRange(minimum=minimum, maximum=maximum, default=default),
                rounding=(float(header["rounding"][0]), float(header["rounding"][1])),
                domain_typical=float(header["domain_typical"]),
                domain_bound=float(header["domain_bound"]),
                tables=CdfTables(**table_parts, precision=_integer(header["precision"])),
                card=dict(header["card"]),
                **tensors,
            )
        except CodecFileError:
            raise
        except (KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
            raise CodecFileError(f"damaged codec file: {error!r}", field="weights") from error


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise CodecFileError(f"{value!r} is not an integer", field="weights")
    return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return _integer(first), _integer(second)


def _check_numbers(model: KltModel) -> None:
    h, w = model.tile
    if not (1 <= h <= LARGEST_GRID_TILE and 1 <= w <= (LARGEST_GRID_TILE if h > 1 else LARGEST_SEQUENCE_TILE)):
        raise CodecFileError(f"tiles of {model.tile} tokens", field="tile")
    if model.token_res is not None and not all(1 <= side <= 65535 for side in model.token_res):
        raise CodecFileError(f"a grid of {model.token_res} tokens", field="token_res")
    limits = {
        "base_log2": (model.base_log2, -_LOG_LIMIT, _LOG_LIMIT),
        "row_cutoff": (model.row_cutoff, -_LOG_LIMIT, _LOG_LIMIT),
        "row_shift": (model.row_shift, 0, 8),
        "prefix_qp_offset_eighths": (model.prefix_qp_offset_eighths, -MAX_PREFIX_OFFSET, MAX_PREFIX_OFFSET),
        "qp.minimum": (model.qp.minimum, QP_LIMITS[0], model.qp.default),
        "qp.maximum": (model.qp.maximum, model.qp.default, QP_LIMITS[1]),
        "rounding[0]": (model.rounding[0], 0.0, 0.5),
        "rounding[1]": (model.rounding[1], 0.0, 0.5),
        "domain_typical": (model.domain_typical, 0.1, 1e9),
        "domain_bound": (model.domain_bound, 1.0, 1e9),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise CodecFileError(f"{name} is {value}, not in {low} to {high}", field=name)
