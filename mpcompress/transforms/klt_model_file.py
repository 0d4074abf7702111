"""The file of a `KltModel`: safetensors, with a JSON object as metadata."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import numpy as np

from mpcompress.codec import QpRange
from mpcompress.entropy.tables import CdfTables
from mpcompress.errors import CodecFileError
from mpcompress.transforms.klt_filter import FilterModel
from mpcompress.transforms.klt_model import FAMILY, VERSIONS, KltModel
from mpcompress.transforms.tensor_file import read_tensor_file, write_tensor_file

__all__ = ["read_model", "write_model"]

_METADATA_KEY = "mpcompress"
_TABLE_PARTS = ("freqs", "lengths", "offsets")
_INTEGERS = ("base_log2", "cutoff", "prefix_qp_offset_eighths")
_FILTER = "filter_"
_FLOATS = ("rate", "token_energy", "domain_typical", "domain_bound")


def write_model(model: KltModel) -> bytes:
    """The codec file."""
    tensors = {f.name: getattr(model, f.name) for f in fields(model) if isinstance(getattr(model, f.name), np.ndarray)}
    tensors.update({f"table_{name}": getattr(model.tables, name) for name in _TABLE_PARTS})
    header = {
        "family": FAMILY,
        "bitstream_version": model.bitstream_version,
        "precision": model.tables.precision,
        "qp_eighths": [model.qp.minimum, model.qp.maximum, model.qp.default],
        "token_res": None if model.token_res is None else list(model.token_res),
        "mean_grid": list(model.mean_grid),
        "card": dict(model.card),
    }
    header.update({name: getattr(model, name) for name in ("id", "description", *_INTEGERS, *_FLOATS)})
    if model.filter is not None:
        tensors.update({_FILTER + name: array for name, array in model.filter.arrays()})
        header["filter_start"] = model.filter.start
    return write_tensor_file(tensors, {_METADATA_KEY: json.dumps(header, sort_keys=True)})


def read_model(data: bytes) -> KltModel:
    """Reads a codec file. Raises CodecFileError for anything that `write_model` does not write."""
    tensors, metadata = read_tensor_file(data)
    if _METADATA_KEY not in metadata:
        raise CodecFileError("not a codec file: it has no mpcompress metadata", field="weights")
    try:
        header = json.loads(metadata[_METADATA_KEY])
        if header["family"] != FAMILY:
            raise CodecFileError(f"a file of family {header['family']!r}, not {FAMILY}", field="weights")
        said = header["bitstream_version"]
        if said not in VERSIONS:
            raise CodecFileError(
                f"a file of bitstream version {said!r}; this release reads {', '.join(map(str, VERSIONS))}: "
                "calibrate again, or get this codec's file for this release",
                field="weights",
            )
        filtered, ending = VERSIONS[said]
        table_parts = {name: tensors.pop(f"table_{name}") for name in _TABLE_PARTS}
        minimum, maximum, default = (_integer(value) for value in header["qp_eighths"])
        parts: dict[str, Any] = dict(tensors)
        if filtered:
            names = [name for name in parts if name.startswith(_FILTER)]
            arrays = {name.removeprefix(_FILTER): parts.pop(name) for name in names}
            parts["filter"] = FilterModel(start=_integer(header["filter_start"]), **arrays)
        parts.update({name: _integer(header[name]) for name in _INTEGERS})
        parts.update({name: float(header[name]) for name in _FLOATS})
        return KltModel(
            id=str(header["id"]),
            description=str(header["description"]),
            token_res=None if header["token_res"] is None else _pair(header["token_res"]),
            mean_grid=_pair(header["mean_grid"]),
            qp=QpRange(minimum=minimum, maximum=maximum, default=default),
            tables=CdfTables(**table_parts, precision=_integer(header["precision"])),
            card=dict(header["card"]),
            ending=ending,
            **parts,
        )
    except CodecFileError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
        raise CodecFileError(f"damaged codec file: {error!r}", field="weights") from error


def _integer(value: Any) -> int:
    if type(value) is not int:
        raise CodecFileError(f"{value!r} is not an integer", field="weights")
    return value


def _pair(value: Any) -> tuple[int, int]:
    first, second = value
    return _integer(first), _integer(second)
