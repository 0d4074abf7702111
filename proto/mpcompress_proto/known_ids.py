"""Codecs that everybody has, by number: a .mpc file names such a codec in one or two bytes.

An id's number is its place in `KNOWN_IDS`. An edition is all that a unit says of its codec, for codecs whose units are
so small that it counts: the calibrated ones, which get a new edition whenever their fingerprint changes. Its number is
its place in `EDITIONS`.

Files have these numbers for ever: new ones are appended, none is moved, removed or changed, and the number of a codec
that is no longer shipped is never given to another. docs/format.md lists them too.
"""

from __future__ import annotations

from typing import NamedTuple

from mpcompress_proto.v1 import compression_pb2 as pb

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


class Edition(NamedTuple):
    """A codec at one fingerprint, with what its units have in common."""

    codec_id: str
    fingerprint: bytes
    bitstream_version: int
    arithmetic: pb.Arithmetic.ValueType = pb.ARITHMETIC_EXACT


EDITIONS: tuple[Edition, ...] = (
    Edition("klt-imgfocus-vits14-final", bytes.fromhex("bee6415ce3b78125"), 5),
    Edition("klt-imgfocus-vits14-block6", bytes.fromhex("3eb1f689094b7c43"), 5),
    Edition("klt-minilm-l3", bytes.fromhex("7c6db6bf8e7f9223"), 4),
    Edition("klt-minilm-last", bytes.fromhex("3c5f053a1287454c"), 4),
)

EDITION_NUMBERS = {edition: number for number, edition in enumerate(EDITIONS)}
