"""The real command in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from mpc_test_codecs import BUG
from raw_wire import compress_messages, features

from mpcompress_proto.v1 import compression_pb2 as pb
from mpcompress_proto.v1 import compression_pb2_grpc as pb_grpc

HERE = Path(__file__).parent
CONFIG = """
plugins = ["mpc_test_codecs"]
[[codecs]]
id = "store"
family = "test_bytes"
isolation = "process"
"""


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "mpcompress_server", *words]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HERE)}


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(*words), capture_output=True, text=True, timeout=120, env=_environment())


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "server.toml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def server(tmp_path, config):
    """A server process that serves; its log lines come on stderr, as JSON."""
    port_file = tmp_path / "port"
    words = ("serve", "--config", str(config), "--listen", "127.0.0.1:0", "--port-file", str(port_file))
    process = subprocess.Popen(
        _command(*words, "--log-format", "json"), stderr=subprocess.PIPE, text=True, env=_environment()
    )
    process.port_file = port_file
    process.log = []
    for line in process.stderr:
        process.log.append(json.loads(line))
        if process.log[-1]["event"] == "ready":
            break
    yield process
    process.kill()
    process.wait()
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(server, number):
    address = server.port_file.read_text().strip()
    assert address == server.log[-1]["address"]
    with grpc.insecure_channel(address) as channel:
        stub = pb_grpc.CompressionServiceStub(channel)
        assert [info.codec_id for info in stub.ListCodecs(pb.ListCodecsRequest()).codecs] == ["store"]
        call = stub.Compress(iter([*compress_messages(1, features(4)), pb.CompressRequest(header={"item_id": 2})]))
        answers = {response.item_id: response for response in call}
        list(stub.Compress(iter(compress_messages(3, features(4, BUG)))))
        assert answers[1].result.inline_payload == features(4).tobytes()
        assert answers[2].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    server.send_signal(number)
    lines = [json.loads(line) for line in server.stderr]
    assert server.wait(30) == 0
    assert [line["event"] for line in lines] == ["item failed", "item failed", "stopping", "stopped"]
    assert all(line["request_id"] for line in lines if line["event"] == "item failed")
    (bug,) = [line for line in lines if line["level"] == "error"]
    assert "ZeroDivisionError" in json.dumps(bug["exception"])
    assert "locals" not in json.dumps(bug["exception"]).replace('"locals": null', "")
    assert not server.port_file.exists()


def test_workers_die_with_their_server(server):
    psutil = pytest.importorskip("psutil")
    (worker,) = psutil.Process(server.pid).children()
    server.kill()
    server.wait()
    worker.wait(30)


def test_a_taken_port_is_one_clear_line(server, config):
    address = server.port_file.read_text().strip()
    result = _run("serve", "--config", str(config), "--listen", address, "--port-file", str(server.port_file))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"mpcompress-server: cannot listen on {address}")
    assert "Traceback" not in result.stderr
    assert server.port_file.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lisen = 'x'", "lisen: unknown key"),
        ("[[codecs]]\nid = 'a'\nfamily = 'nope'", "codecs[0].family: codec a: unknown family 'nope'"),
        ("plugins = ['no_such_module']", "plugins[0]: cannot import 'no_such_module'"),
    ],
)
def test_bad_settings_are_one_clear_line(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    result = _run("serve", "--config", str(path), "--listen", "127.0.0.1:0")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_bad_usage_exits_with_2():
    assert _run("serve", "--log-format", "xml").returncode == 2
    assert _run("serve", "--listen", "nowhere").returncode == 2


def test_help_has_examples():
    result = _run("serve", "--help")
    assert result.returncode == 0
    assert "mpcompress-server serve --listen 0.0.0.0:50051" in result.stdout
    assert _run("--version").returncode == 0
