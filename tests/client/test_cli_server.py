"""Commands against a real server with mutual TLS and tokens: its options, their variables, and what they refuse."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme
from conftest import FINAL
from own_server import own_server

from mpcompress_client.cli import run

TOKEN = "a-token-of-this-test"
CONFIG = f"""
[tls]
cert = "server.pem"
key = "server.key"
client_ca = "ca.pem"

[auth]
tokens = "tokens.txt"

[[codecs]]
id = "{FINAL}"
"""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A server that wants a certificate and a token, under another name than its address; its clients' options."""
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, identity in (("server", "codecs.example.org"), ("device", "device")):
        issued = authority.issue_cert(identity)
        (folder / f"{name}.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
    (folder / "tokens.txt").write_text(f"test:{TOKEN}:*\n")
    (folder / "token").write_text(f"{TOKEN}\n")
    options = {
        "--tls-ca": str(folder / "ca.pem"),
        "--tls-cert": str(folder / "device.pem"),
        "--tls-key": str(folder / "device.key"),
        "--tls-name": "codecs.example.org",
        "--token-file": str(folder / "token"),
    }
    with own_server(folder, CONFIG) as target:
        yield target, options


@pytest.fixture
def mpcompress(capsys, monkeypatch, tmp_path):
    """Runs the command line in an empty folder, with no variable of ours set."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MPCOMPRESS_")]:
        monkeypatch.delenv(name)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def words(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


def test_every_command_that_talks_to_a_server(mpcompress, secured, final):
    target, options = secured
    np.save("h.npy", final[0])
    here = ["--target", target, *words(options)]
    for command in (
        ["codecs"],
        ["compress", "h.npy", "-o", "h.mpc", "--codec", FINAL],
        ["decompress", "h.mpc", "-o", "again.npy"],
        ["evaluate", "h.npy", "--codec", FINAL],
        ["bench", "--codec", FINAL, "--concurrency", "1", "--seconds", "0.1"],
        ["doctor"],
    ):
        code, out, err = mpcompress(*command, *here, "--json")
        assert code == 0, err
        json.loads(out)
    assert np.load("again.npy").shape == (257, 384)


def test_the_same_from_variables(mpcompress, secured, monkeypatch):
    target, options = secured
    monkeypatch.setenv("MPCOMPRESS_TARGET", target)
    for name, value in options.items():
        monkeypatch.setenv("MPCOMPRESS_" + name.strip("-").replace("-", "_").upper(), value)
    assert mpcompress("codecs")[0] == 0
    # An option wins over its variable.
    Path("other").write_text("another-token-of-this-test")
    code, _, err = mpcompress("codecs", "--token-file", "other")
    assert (code, "token" in err) == (1, True)


def test_local_fetches_from_the_server_that_the_options_name(mpcompress, secured, final, monkeypatch):
    target, options = secured
    np.save("h.npy", final[0])
    monkeypatch.setenv("MPCOMPRESS_CACHE_DIR", "cache")
    code, _, err = mpcompress(
        "compress", "h.npy", "-o", "h.mpc", "--codec", "nobody", "--local", "--target", target, *words(options)
    )
    assert (code, f"{target} has no codec 'nobody'" in err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tls-ca", "nowhere.pem"), "there is no file 'nowhere.pem'"),
        (("--tls-cert", __file__, "--tls-key", __file__), "need --tls-ca"),
        (("--tls-name", "x"), "need --tls-ca"),
        (("--tls-ca", "system", "--tls-cert", __file__), "both --tls-cert and --tls-key"),
        (("--token-file", "nowhere"), "nowhere"),
    ],
)
def test_bad_usage(mpcompress, arguments, words):
    code, out, err = mpcompress("codecs", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_token_in_plain_text_is_refused(mpcompress):
    Path("token").write_text(TOKEN)
    code, _, err = mpcompress("codecs", "--target", "codecs.example.org:50051", "--token-file", "token")
    assert (code, "in plain text: use TLS" in err, TOKEN in err) == (1, True, False)
