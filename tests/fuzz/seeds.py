"""Healthy inputs of the fuzz targets, to start mutating from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from fuzz_targets import CODEC, indexed, tables

from mpcompress.entropy import encode
from mpcompress.entropy.compressai_format import encode_with_indexes
from mpcompress_client.local import EdgeCodec

DATA = Path(__file__).parents[1] / "data" / "features_final.npy"


def seeds() -> dict[str, list[bytes]]:
    """Inputs by target."""
    features = np.load(DATA)
    units = [EdgeCodec.load(CODEC).compress(features[0], qp=qp) for qp in (24, 40)]
    headers = [unit.header.SerializeToString() for unit in units]
    count = 300
    symbols = np.random.default_rng(0).integers(-1, 2, count).astype(np.int32)
    return {
        "mpc_file": [unit.to_bytes() for unit in units],
        "klt_unit": [
            len(header).to_bytes(2, "little") + header + unit.payload
            for header, unit in zip(headers, units, strict=True)
        ],
        "klt_payload": [bytes([192]) + units[0].payload],
        "rans": [
            count.to_bytes(2, "little") + encode(symbols, np.arange(count, dtype=np.uint8) % 3, tables()),
        ],
        "compressai_stream": [
            count.to_bytes(2, "little") + encode_with_indexes(symbols, np.arange(count, dtype=np.int32) % 2, indexed()),
        ],
    }
