"""What `--json` prints is one document with the fields that docs/cli.md names, in every command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import FINAL

from mpcompress_client.cli import run

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
# Whose own fields the row does not name one by one.
WHOLE = {"tensors", "pstate", "findings", "inputs", "outputs", "parameters"}


def documented(command: str) -> set[str]:
    """The fields of all rows about a command."""
    table = PAGE.read_text(encoding="utf-8").partition("## JSON")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith(("| `", "| either"))]
    found = {word for row in rows if f"`{command}`" in row for word in re.findall(r"`(\w+)`", row)}
    if command in ("compress", "decompress"):
        found |= {word for row in rows if row.startswith("| either") for word in re.findall(r"`(\w+)`", row)}
    return found


def names(value: object) -> set[str]:
    """The names in a document and in the lists of objects in it."""
    if isinstance(value, list):
        return set().union(*map(names, value))
    if not isinstance(value, dict):
        return set()
    below = [names(inner) for name, inner in value.items() if isinstance(inner, list) and name not in WHOLE]
    return value.keys() | set().union(*below)


@pytest.fixture
def printed(server, capsys, monkeypatch, tmp_path, final):
    """The document of a command in a folder with two feature files and a unit, against the real server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPCOMPRESS_TARGET", server)
    Path("features").mkdir()
    for name, h in zip("ab", final, strict=False):
        np.save(f"features/{name}.npy", h)
    assert run(["compress", "features", "-o", "units", "--codec", FINAL]) == 0
    capsys.readouterr()

    def command(*arguments: str) -> object:
        assert run([*arguments, "--json"]) in (0, 1)
        return json.loads(capsys.readouterr().out)

    return command


@pytest.mark.parametrize(
    "arguments",
    [
        ("compress", "features/a.npy", "-o", "a.mpc", "--codec", FINAL),
        ("compress", "features", "-o", "more", "--codec", FINAL),
        ("compress", "features", "-o", "units", "--codec", FINAL, "--resume"),
        ("decompress", "units/a.mpc", "-o", "a.npy"),
        ("decompress", "units", "-o", "again"),
        ("inspect", "units/a.mpc"),
        ("inspect", "units"),
        ("evaluate", "features", "--codec", FINAL),
        ("bench", "--codec", FINAL, "--seconds", "0.2", "--concurrency", "1"),
        ("bench", "--codec", FINAL, "--seconds", "0.2", "--rate", "5"),
        ("doctor",),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_every_field_is_in_the_document(printed, arguments):
    found = names(printed(*arguments))
    assert found
    assert found <= documented(arguments[0])


def test_a_list_of_codecs_is_what_python_gets(printed, client):
    found = printed("codecs")
    assert [codec["id"] for codec in found] == [info.id for info in client.codecs()]
    assert documented("codecs") - {"codecs", "CodecInfo"} <= found[0].keys()
