"""How large what family `klt` stores may be."""

from __future__ import annotations

QP_LIMITS = (-768, 1536)
"""Eighths of a qp that the format can hold; what a codec advertises lies inside."""

MAX_CHANNELS = 8192
MAX_PREFIX_TOKENS = 1024
MAX_DEPTH = 16
MAX_PREFIX_OFFSET = 384
MAX_GAIN = 1920
"""40 octaves either way: more than float16 spans."""

LEVEL_BUCKETS = 14
COMPONENT_OCTAVES = 16
BANDS = 8
"""Of components, by octaves, for the distance from the calibration set."""
