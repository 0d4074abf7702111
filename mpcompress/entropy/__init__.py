"""Entropy coding: integer tables and rANS coders, arrays in and out.

`encode`, `decode` with `CdfTables` are the format of the calibrated codecs; `compressai_format` reads and writes
CompressAI's streams with `IndexedTables`; `primitives` are the steps for kernels that model contexts in their own loop.
Importing this package compiles, or loads, its kernels.
"""

from mpcompress.entropy.indexed_tables import IndexedTables
from mpcompress.entropy.rans import decode, encode, encode_intervals
from mpcompress.entropy.tables import CdfTables, quantize_pmf

__all__ = ["CdfTables", "IndexedTables", "decode", "encode", "encode_intervals", "quantize_pmf"]
