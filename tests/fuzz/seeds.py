"""Healthy inputs of the fuzz targets, to start mutating from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from fuzz_targets import CODEC, indexed, others, tables

from mpcompress.entropy import encode
from mpcompress.entropy.compressai_format import encode_with_indexes
from mpcompress_client.local import EdgeCodec
from mpcompress_proto.coded_unit import CodedUnit

DATA = Path(__file__).parents[1] / "data" / "features_final.npy"


@cache
def seeds() -> dict[str, list[bytes]]:
    """Inputs by target."""
    features = np.load(DATA)
    units = [EdgeCodec.load(CODEC).compress(features[0], qp=qp) for qp in (24, 40)]
    found = []
    for codec in others():
        h = np.random.default_rng(1).standard_normal((17, 64)).astype(np.float32)
        grid = {"token_res": (4, 4)} if codec.family.startswith("vit_union") else {}
        found.append(EdgeCodec(codec).compress(h, **grid))
    count = 300
    symbols = np.random.default_rng(0).integers(-1, 2, count).astype(np.int32)
    rows = np.arange(count) % 3
    return {
        "mpc_file": [unit.to_bytes() for unit in units + found],
        "klt_unit": [_with_header(unit) for unit in units],
        "pstate": [_with_header(unit) for unit in found],
        "klt_payload": [bytes([192]) + units[0].payload],
        "rans": [
            count.to_bytes(2, "little") + encode(symbols, rows, tables()),
            (1 << 15 | count).to_bytes(2, "little") + encode(symbols, rows, tables(), "short"),
        ],
        "compressai_stream": [
            count.to_bytes(2, "little") + encode_with_indexes(symbols, np.arange(count, dtype=np.int32) % 2, indexed()),
        ],
    }


def _with_header(unit: CodedUnit) -> bytes:
    header = unit.header.SerializeToString()
    return len(header).to_bytes(2, "little") + header + unit.payload
