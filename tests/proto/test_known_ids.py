"""Numbers of codecs in .mpc files: every shipped codec has one, and none ever changes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from mpcompress.registry import load, preset, preset_ids
from mpcompress.transforms.klt_report import unit_overhead_bytes
from mpcompress_proto import mpc_file
from mpcompress_proto.coded_unit import CodedUnit
from mpcompress_proto.known_ids import EDITION_NUMBERS, EDITIONS, KNOWN_IDS, NUMBERS, Edition
from mpcompress_proto.tensors import spec_of
from mpcompress_proto.v1 import compression_pb2 as pb

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"

# Files have these numbers. Append what is new; what is here never changes.
GIVEN = (
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

GIVEN_EDITIONS = (
    ("klt-imgfocus-vits14-final", "bee6415ce3b78125", 5, pb.ARITHMETIC_EXACT),
    ("klt-imgfocus-vits14-block6", "3eb1f689094b7c43", 5, pb.ARITHMETIC_EXACT),
    ("klt-minilm-l3", "7c6db6bf8e7f9223", 4, pb.ARITHMETIC_EXACT),
    ("klt-minilm-last", "3c5f053a1287454c", 4, pb.ARITHMETIC_EXACT),
)
CALIBRATED = [codec_id for codec_id in preset_ids() if preset(codec_id).family == "klt"]


def test_editions_stay_and_are_only_appended():
    given = tuple((codec_id, bytes.fromhex(fingerprint), *rest) for codec_id, fingerprint, *rest in GIVEN_EDITIONS)
    assert EDITIONS[: len(given)] == given
    assert len(EDITION_NUMBERS) == len(EDITIONS)
    assert {edition.codec_id for edition in EDITIONS} <= set(KNOWN_IDS)


@pytest.mark.parametrize("codec_id", CALIBRATED)
def test_every_shipped_calibrated_codec_is_an_edition(codec_id):
    codec = load(preset(codec_id))
    assert codec.arithmetic == "exact"
    assert Edition(codec_id, codec.fingerprint, codec.bitstream_version) in EDITION_NUMBERS


def test_numbers_stay_and_are_only_appended():
    assert KNOWN_IDS[: len(GIVEN)] == GIVEN
    assert len(NUMBERS) == len(KNOWN_IDS) <= 65536 - 64000
    assert all(mpc_file.CODEC_ID.fullmatch(codec_id) for codec_id in KNOWN_IDS)
    assert [KNOWN_IDS[NUMBERS[codec_id]] for codec_id in KNOWN_IDS] == list(KNOWN_IDS)


def test_every_shipped_codec_has_a_number():
    assert set(preset_ids()) <= set(KNOWN_IDS)


def test_the_documentation_has_all_numbers():
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.findall(r"\| (\d+) \| `([a-z0-9._-]+)` (?!\| `)", text)
    assert {int(number): codec_id for number, codec_id in found} == dict(enumerate(KNOWN_IDS))
    found = re.findall(r"\| (\d+) \| `([a-z0-9._-]+)` \| `([0-9a-f]{16})` \| (\d+) \|", text)
    said = [Edition(codec_id, bytes.fromhex(print_), int(version)) for _, codec_id, print_, version in found]
    assert [int(number) for number, *_ in found] == list(range(len(EDITIONS)))
    assert tuple(said) == EDITIONS


@pytest.mark.parametrize("codec_id", [*CALIBRATED, "a", "mine", "a" * 23, "a" * 24, "a" * 64])
def test_the_library_knows_what_a_klt_unit_costs_beside_its_payload(codec_id):
    """It may not ask the wire contract, so it counts on its own."""
    codec = Edition(codec_id, bytes(8), 5)
    if codec_id in CALIBRATED:
        codec = next(edition for edition in reversed(EDITIONS) if edition.codec_id == codec_id)
    unit = CodedUnit.build(
        codec_id=codec_id,
        bitstream_version=codec.bitstream_version,
        fingerprint=codec.fingerprint,
        arithmetic=codec.arithmetic,
        tensors=[spec_of(np.zeros((1, 257, 384), np.float16))],
        kind="klt",
        pstate={"qp_eighths": 384, "token_width": 100},
        strings=[b"abc"],
    )
    assert unit_overhead_bytes(codec_id) == unit.nbytes - 3
