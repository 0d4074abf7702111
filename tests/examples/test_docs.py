"""The documentation's own code: Python and commands of the pages for users run, every settings file is valid."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_server import own_server

from mpcompress_client.cli import run
from mpcompress_server.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DEFAULT_TARGET = "127.0.0.1:50051"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language, whatever their indentation."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server as the quickstart starts it: with the codecs that are shipped and calibrated."""
    config = "".join(f'[[codecs]]\nid = "klt-imgfocus-vits14-{tap}"\n' for tap in ("final", "block6"))
    with own_server(tmp_path_factory.mktemp("docs"), config) as target:
        yield target


@pytest.fixture
def clone(tmp_path, monkeypatch, server):
    """A folder to work in that has the clone's test data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPCOMPRESS_TARGET", server)
    (tmp_path / "tests").symlink_to(ROOT / "tests", target_is_directory=True)


@pytest.mark.parametrize("name", ["README.md", "docs/quickstart.md", "docs/client.md"])
def test_python_of_a_page_runs(clone, server, name, capsys):
    code = blocks(ROOT / name, "python")
    assert code
    scope: dict[str, object] = {"__name__": "page"}
    for block in code:
        exec(compile(block.replace(DEFAULT_TARGET, server), name, "exec"), scope)
    assert capsys.readouterr().out


def test_commands_of_the_quickstart_run(clone, capsys):
    lines = [line for block in blocks(DOCS / "quickstart.md", "bash") for line in block.splitlines()]
    assert len(lines) > 5
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "mpcompress"
        assert run(arguments) == 0, (line, capsys.readouterr().err)
    assert Path("local.mpc").read_bytes() == Path("block6.mpc").read_bytes()
    assert Path("local.npy").read_bytes() == Path("block6.npy").read_bytes()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_settings_in_a_page_are_valid(page):
    for block in blocks(page, "toml"):
        Settings.model_validate(tomllib.loads(block))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_outside_the_site_lead_to_files(name):
    """Those between the pages are checked by the strict build."""
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / link).exists(), link


def test_every_command_and_option_of_the_client_is_in_the_generated_page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    pytest.importorskip("mkdocs")
    from docs_hooks import commands

    page = commands()
    for name in ("compress", "decompress", "codecs", "inspect", "evaluate", "bench", "doctor", "calibrate", "train"):
        assert f"## {name}\n" in page
        assert f"  mpcompress {name}" in page  # an example
    assert page.count("--json") >= page.count("\n## ")


def test_the_wire_page_has_every_message_and_comment(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    pytest.importorskip("grpc_tools")
    from proto_reference import markdown

    page = markdown()
    proto = (ROOT / "proto" / "mpcompress_proto" / "v1" / "compression.proto").read_text(encoding="utf-8")
    for kind, name in re.findall(r"^\s*(message|enum|service) (\w+)", proto, re.MULTILINE):
        assert re.search(rf"^## {kind} (\w+\.)?{name} ", page, re.MULTILINE), name
    assert "How to code an item. What a codec does not know it refuses" in page
