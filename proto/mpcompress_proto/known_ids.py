"""Codec ids that everybody has, by number: a .mpc file names such a codec in two bytes.

An id's number is its place in `KNOWN_IDS`. Files have these numbers for ever: new ids are appended, none is moved,
removed or renamed, and the number of a codec that is no longer shipped is never given to another. docs/format.md lists
them too.
"""

from __future__ import annotations

KNOWN_IDS: tuple[str, ...] = (
    "klt-imgfocus-vits14-final",
    "klt-imgfocus-vits14-block6",
    "klt-minilm-l3",
    "klt-minilm-last",
    "vtm-dinov2-cls",
    "vtm-dinov2-cls-tiles",
    "vtm-dinov2-dpt",
    "vtm-dinov2-seg",
    "vtm-llama3-csr",
    "vtm-sd3-tti",
    "vvenc-dinov2-cls",
    "vvenc-dinov2-cls-tiles",
    "vvenc-dinov2-dpt",
    "vvenc-dinov2-seg",
    "vvenc-llama3-csr",
    "vvenc-sd3-tti",
    "x265-dinov2-cls",
    "x265-dinov2-cls-tiles",
    "x265-dinov2-dpt",
    "x265-dinov2-seg",
    "x265-llama3-csr",
    "x265-sd3-tti",
)

NUMBERS = {codec_id: number for number, codec_id in enumerate(KNOWN_IDS)}
