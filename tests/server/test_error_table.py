"""The table of errors: complete, and explained to those who meet them."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from raw_wire import details

from mpcompress import errors as library
from mpcompress_proto import errors as wire
from mpcompress_server import errors

CATALOGUE = Path(__file__).parents[2] / "docs" / "errors.md"


def _tree(kind):
    return {kind, *(leaf for child in kind.__subclasses__() for leaf in _tree(child))}


def test_every_deliberate_error_has_a_row():
    abstract = {library.MpcompressError, errors.ServerError, errors.StreamError}
    ours = ("mpcompress.", "mpcompress_server.", "mpcompress_proto.")
    for root in (library.MpcompressError, wire.WireError, errors.ServerError):
        for kind in _tree(root) - abstract:
            if kind.__module__.startswith(ours):
                assert errors.rule_of(kind("words")) is not errors.INTERNAL, kind


def test_every_reason_is_explained():
    text = CATALOGUE.read_text(encoding="utf-8")
    rows = {rule.reason: rule for rule in (*errors.TABLE.values(), errors.UNREACHABLE_TARGET, errors.INTERNAL)}
    assert sorted(rows) == errors.REASONS
    for reason, rule in rows.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| `{reason}`")]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == rule.code.name
        assert len(cells) == 4
        assert all(cells)


def test_unexpected_errors_tell_nothing():
    found = details(errors.to_status(KeyError("/secret/path"), "r1"))
    assert found["code"] == grpc.StatusCode.INTERNAL
    assert found["request_id"] == "r1"
    assert "secret" not in found["message"]
    assert "r1" in found["message"]


@pytest.mark.parametrize(
    ("field", "code"),
    [("params.target_nmse", grpc.StatusCode.OUT_OF_RANGE), ("tensors[0]", grpc.StatusCode.INVALID_ARGUMENT)],
)
def test_a_target_out_of_reach_is_not_a_bad_tensor(field, code):
    found = details(errors.to_status(library.OutOfRangeError("words", field=field), "r"))
    assert (found["code"], found["fields"]) == (code, [field])


def test_messages_have_a_bound():
    status = errors.to_status(library.InvalidInputError("x" * 100_000, field="tensors"), "r")
    assert len(status.SerializeToString()) < 4096
