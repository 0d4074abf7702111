"""The command line as its users meet it: results, one line per error, documented exit codes, no half-written file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import BLOCK6, FINAL, heed_interrupts

from mpcompress_client import CodedUnit, CompressionClient
from mpcompress_client.cli import cli, run


class Outcome:
    """Exit code and output of one command."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def mpcompress(server, capsys, monkeypatch, tmp_path, final):
    """Runs the command line in an empty folder with `in.npy`, against the real server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPCOMPRESS_TARGET", server)
    np.save("in.npy", final[0])

    def command(*arguments: str) -> Outcome:
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


def test_there_and_back(mpcompress, client, final):
    done = mpcompress("compress", "in.npy", "-o", "out.mpc", "--codec", FINAL, "--qp", "24.125")
    assert (done.code, done.err) == (0, "")
    assert "out.mpc" in done.out
    assert "bpfp" in done.out
    unit = CodedUnit.load("out.mpc")
    assert unit == client.compress(final[0], codec=FINAL, qp=24.125)
    done = mpcompress("decompress", "out.mpc", "-o", "rec.npy")
    assert (done.code, done.err) == (0, "")
    np.testing.assert_array_equal(np.load("rec.npy"), client.decompress(unit))


def test_local_gives_the_same_bytes(mpcompress):
    arguments = ("--codec", FINAL, "--qp", "30", "--token-res", "8x32")
    mpcompress("compress", "in.npy", "-o", "server.mpc", *arguments)
    # No server at this address: --local must not need one.
    local = mpcompress("compress", "in.npy", "-o", "local.mpc", *arguments, "--local", "--target", "127.0.0.1:1")
    assert local.code == 0
    assert Path("server.mpc").read_bytes() == Path("local.mpc").read_bytes()
    mpcompress("decompress", "server.mpc", "-o", "server.npy")
    assert mpcompress("decompress", "local.mpc", "-o", "local.npy", "--local", "--target", "127.0.0.1:1").code == 0
    assert Path("server.npy").read_bytes() == Path("local.npy").read_bytes()


def test_json(mpcompress):
    done = mpcompress("compress", "in.npy", "-o", "out.mpc", "--codec", FINAL, "--json")
    size = Path("out.mpc").stat().st_size
    assert done.json["bytes"] == size
    assert done.json["raw_bytes"] == 257 * 384 * 2
    assert done.json["bpfp"] == 8 * size / (257 * 384)
    assert done.json["pstate"]["qp_eighths"] == 192
    facts = mpcompress("inspect", "out.mpc", "--json").json
    assert facts["codec"] == FINAL
    assert facts["tensors"] == [{"name": "h", "dtype": "float16", "shape": [257, 384]}]
    assert facts["file_bytes"] == size
    assert facts["file_bytes"] - facts["payload_bytes"] <= 32
    assert len(bytes.fromhex(facts["fingerprint"])) == 8
    done = mpcompress("decompress", "out.mpc", "-o", "rec.safetensors", "--dtype", "bfloat16", "--json")
    assert done.json["tensors"] == [{"name": "h_hat", "dtype": "bfloat16", "shape": [257, 384]}]
    listed = {info["id"]: info for info in mpcompress("codecs", "--json").json}
    assert set(listed) == {BLOCK6, FINAL}
    assert listed[FINAL]["token_res"] == [16, 16]
    local = {info["id"]: info for info in mpcompress("codecs", "--local", "--json").json}
    assert local[FINAL] == listed[FINAL]


def test_inspect_and_codecs_for_people(mpcompress):
    mpcompress("compress", "in.npy", "-o", "out.mpc", "--codec", FINAL)
    shown = mpcompress(
        "inspect",
        "out.mpc",
    ).out
    for words in (FINAL, "float16", "(257, 384)", "qp_eighths 192", "bpfp", "exact"):
        assert words in shown
    shown = mpcompress("codecs").out
    for words in (BLOCK6, FINAL, "0..48", "1 + 16x16", "384"):
        assert words in shown


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_other_files(mpcompress, suffix, final):
    from mpcompress_client.cli.files import write_arrays

    write_arrays(Path(f"x{suffix}"), final[0])
    write_arrays(Path(f"two{suffix}"), {"h": final[0], "ctx": final[1]})
    assert mpcompress("compress", f"x{suffix}", "-o", "x.mpc", "--codec", FINAL).code == 0
    assert mpcompress("compress", "in.npy", "-o", "in.mpc", "--codec", FINAL).code == 0
    assert Path("x.mpc").read_bytes() == Path("in.mpc").read_bytes()
    assert mpcompress("decompress", "x.mpc", "-o", f"rec{suffix}").code == 0
    refused = mpcompress("compress", f"two{suffix}", "-o", "y.mpc", "--codec", FINAL)
    assert refused.code == 1
    assert "'ctx'" in refused.err


def test_family_parameters(mpcompress):
    name = "prefix_qp_offset_eighths"
    done = mpcompress("compress", "in.npy", "-o", "o.mpc", "--codec", FINAL, "--param", f"{name}=-24", "--json")
    assert done.json["pstate"][name] == -24


def test_warnings_go_to_stderr(mpcompress, block6):
    np.save("foreign.npy", block6[0].astype(np.float32) * 50)
    done = mpcompress("compress", "foreign.npy", "-o", "o.mpc", "--codec", FINAL)
    assert done.code == 0
    assert done.err.startswith("warning: ")


CODEC = ("--codec", FINAL)
USAGE = {
    "nothing": (),
    "unknown command": ("expand",),
    "unknown option": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--quality", "9"),
    "no input": ("compress",),
    "no output": ("compress", "in.npy", *CODEC),
    "no codec": ("compress", "in.npy", "-o", "x.mpc"),
    "no such file": ("compress", "nobody.npy", "-o", "x.mpc", *CODEC),
    "no such unit": ("inspect", "nobody.mpc"),
    "a folder": ("inspect", "."),
    "output in no folder": ("compress", "in.npy", "-o", "nowhere/x.mpc", *CODEC),
    "several into a file": ("compress", "in.npy", "in.npy", "-o", "in.npy", *CODEC),
    "output is the input": ("compress", "in.npy", "-o", "in.npy", *CODEC),
    "qp is a word": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--qp", "high"),
    "qp is no eighth": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--qp", "24.1"),
    "qp is nan": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--qp", "nan"),
    "grid": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--token-res", "16"),
    "grid of zero": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--token-res", "0x256"),
    "prefix": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--prefix-tokens", "-1"),
    "param": ("compress", "in.npy", "-o", "x.mpc", *CODEC, "--param", "effort"),
    "timeout": ("codecs", "--timeout", "0"),
    "dtype": ("decompress", "in.npy", "-o", "x.npy", "--dtype", "float64"),
    "codec without local": ("decompress", "in.npy", "-o", "x.npy", "--codec", "c.safetensors"),
    "nothing to calibrate": ("calibrate", "-o", "c.safetensors"),
    "half a grid": ("calibrate", "in.npy", "-o", "c.safetensors", "--grid", "16"),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage_is_one_line_and_exit_2(mpcompress, name):
    done = mpcompress(*USAGE[name])
    assert done.code == 2
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert done.err.startswith("mpcompress")
    assert sorted(os.listdir()) == ["in.npy"]  # noqa: PTH208 - the folder as it is


FAILURES = {
    "unknown codec": (("compress", "in.npy", "-o", "x.mpc", "--codec", "nobody"), "nobody"),
    "unknown codec here": (("compress", "in.npy", "-o", "x.mpc", "--codec", "nobody", "--local"), "nobody"),
    "unknown parameter": (("compress", "in.npy", "-o", "x.mpc", *CODEC, "--param", "nonsense=1"), "nonsense"),
    "qp out of range": (("compress", "in.npy", "-o", "x.mpc", *CODEC, "--qp", "60"), "qp"),
    "grid that does not fit": (("compress", "in.npy", "-o", "x.mpc", *CODEC, "--token-res", "15x16"), "token_res"),
    "no server": (("codecs", "--target", "127.0.0.1:1"), "mpcompress-server serve"),
    "no time": (("compress", "in.npy", "-o", "x.mpc", *CODEC, "--timeout", "0.000001"), "time"),
    "no unit": (("inspect", "in.npy"), "in.npy: not a .mpc file"),
    "no unit to decompress": (("decompress", "in.npy", "-o", "x.npy"), "in.npy: not a .mpc file"),
    "unknown output": (("decompress", "in.npy", "-o", "x.png"), "x.png"),
    "too little to calibrate": (("calibrate", "in.npy", "-o", "c.safetensors"), "at least 16"),
    "no calibration grid": (("calibrate", "in.npy", "-o", "c.safetensors", "--id", "Bad Id"), "Bad Id"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_goes_wrong_is_one_line_and_exit_1(mpcompress, name):
    arguments, words = FAILURES[name]
    done = mpcompress(*arguments)
    assert done.code == 1
    assert done.out == ""
    assert done.err.count("\n") == 1
    assert words in done.err
    assert sorted(os.listdir()) == ["in.npy"]  # noqa: PTH208 - the folder as it is


def test_a_failure_leaves_the_old_output(mpcompress):
    Path("x.mpc").write_bytes(b"old")
    assert mpcompress("compress", "in.npy", "-o", "x.mpc", "--codec", "nobody").code == 1
    assert Path("x.mpc").read_bytes() == b"old"


def test_a_damaged_unit(mpcompress):
    mpcompress("compress", "in.npy", "-o", "x.mpc", *CODEC)
    data = bytearray(Path("x.mpc").read_bytes())
    data[-3] ^= 1
    Path("x.mpc").write_bytes(data)
    for command in (("inspect", "x.mpc"), ("decompress", "x.mpc", "-o", "x.npy"), ("inspect", "x.mpc", "--json")):
        done = mpcompress(*command)
        assert (done.code, done.out) == (1, "")
        assert "x.mpc: the .mpc file is damaged" in done.err


def test_bad_tensors(mpcompress, final):
    h = final[0].astype(np.float32)
    h[1, 2] = np.nan
    np.save("nan.npy", h)
    np.save("double.npy", h.astype(np.float64))
    np.save("empty.npy", h[:0])
    for name, words in (("nan", "h[1, 2] is nan"), ("double", "float64"), ("empty", "empty")):
        done = mpcompress("compress", f"{name}.npy", "-o", "x.mpc", *CODEC)
        assert done.code == 1
        assert words in done.err


def test_calibrate_then_code_on_this_device_and_on_a_server(mpcompress, block6, final, tmp_path, monkeypatch):
    monkeypatch.setattr("mpcompress.calibrate.FILTER_STEPS", 3)
    for number, h in enumerate([*block6, *block6[:, :, ::-1], *final, *final[:, :, ::-1]]):
        np.save(tmp_path / f"h{number}.npy", h[:65, :32])
    files = ["h?.npy", "h10.npy", "h11.npy", "h12.npy", "h13.npy", "h14.npy", "h15.npy"]
    arguments = ("-o", "mine.safetensors", "--prefix-tokens", "1", "--grid", "8", "8")
    done = mpcompress("calibrate", *files, *arguments)
    assert done.code == 0, done.err
    assert "klt-mine" in done.out
    assert Path("mine.md").read_text().startswith("# klt-mine")
    naming = ("--id", "my-codec", "--description", "for a test")
    assert mpcompress("calibrate", *files, *arguments, *naming, "--json").json["filter_from_qp_eighths"] is None
    again = mpcompress("calibrate", *files, *arguments, *naming, "--filter", "--json")
    assert again.json["filter_from_qp_eighths"] == 200
    assert again.json["codec_id"] == "my-codec"
    assert len(again.json["points"]) > 1
    done = mpcompress("compress", "h0.npy", "-o", "h0.mpc", "--codec", "mine.safetensors", "--local", "--qp", "36")
    assert done.code == 0, done.err
    assert CodedUnit.load("h0.mpc").codec_id == "my-codec"
    assert CodedUnit.load("h0.mpc").header.bitstream_version == 5
    assert mpcompress("decompress", "h0.mpc", "-o", "r.npy", "--local", "--codec", "mine.safetensors").code == 0
    assert np.load("r.npy").shape == (65, 32)
    unknown = mpcompress("decompress", "h0.mpc", "-o", "r.npy", "--local")
    assert "name its file with --codec" in unknown.err
    refused = mpcompress("decompress", "h0.mpc", "-o", "r.npy")
    assert (refused.code, "no codec" in refused.err) == (1, True)


@pytest.mark.parametrize("name", cli.commands)
def test_help_of_every_command(mpcompress, name):
    done = mpcompress(name, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: mpcompress {name} " in done.out
    assert "\\b" not in done.out
    assert f"\n    mpcompress {name} " in done.out or f"\n    mpcompress {name}\n" in done.out  # an example
    assert "--json" in done.out


def test_help_and_version(mpcompress):
    assert "Exit codes" in mpcompress("--help").out
    assert mpcompress("--version").out.startswith("mpcompress, version ")


def test_debug_shows_the_traceback(mpcompress):
    from mpcompress_client import CorruptUnitError

    with pytest.raises(CorruptUnitError):
        mpcompress("--debug", "inspect", "in.npy")


# --------------------------------------------------------------------------------------- as a process of its own


def test_the_installed_command(server, tmp_path, final):
    np.save(tmp_path / "in.npy", final[0])
    script = Path(sys.executable).with_name("mpcompress")
    command = [str(script), "compress", "in.npy", "-o", "out.mpc", *CODEC, "--target", server]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    bad = subprocess.run([str(script), "inspect", "in.npy"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr == "mpcompress: in.npy: not a .mpc file\n"
    with CompressionClient(server) as client:
        assert client.compress(final[0], codec=FINAL) == CodedUnit.load(tmp_path / "out.mpc")


def test_a_reader_that_has_gone_is_no_traceback(server):
    command = [sys.executable, "-c", "from mpcompress_client.cli import main; main()", "codecs", "--json"]
    read, write = os.pipe()
    os.close(read)
    process = subprocess.Popen([*command, "--target", server], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == ""


def test_interrupted(scripted):
    """Ctrl-C while the server is silent: exit 130, one line."""

    def silent(request, context):
        process.send_signal(signal.SIGINT)
        ended.wait(60)
        yield from ()

    ended = threading.Event()
    target = scripted(list_codecs=silent)
    command = [sys.executable, "-c", "from mpcompress_client.cli import main; main()", "codecs", "--target", target]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    out, err = process.communicate(timeout=60)
    ended.set()
    assert process.returncode == 130
    assert out == ""
    assert err.strip() == "mpcompress: interrupted"
