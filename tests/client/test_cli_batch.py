"""Folders, patterns, pipes and .pt files through `compress` and `decompress`; what is done is not done again."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import BLOCK6, FINAL, heed_interrupts

from mpcompress_client import CodedUnit
from mpcompress_client.cli import run

CODEC = ("--codec", FINAL)
needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")


@pytest.fixture
def mpcompress(server, capsys, monkeypatch, tmp_path, final):
    """Runs the command line in a folder with `features/`: two files, one more below, and one that is no array."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPCOMPRESS_TARGET", server)
    Path("features/below").mkdir(parents=True)
    for name, h in zip(("a", "b", "below/a"), final, strict=False):
        np.save(f"features/{name}.npy", h)
    Path("features/notes.txt").write_text("no features")

    def command(*arguments: str):
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def piped(*arguments: str, data: bytes, target: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from mpcompress_client.cli import main; main()", *arguments]
    environment = {**os.environ, "MPCOMPRESS_TARGET": target}
    return subprocess.run(command, input=data, capture_output=True, check=False, env=environment)


@pytest.mark.parametrize("local", [(), ("--local",)])
def test_a_folder_there_and_back(mpcompress, client, final, local):
    code, out, err = mpcompress("compress", "features", "-o", "units", *CODEC, "--qp", "30", *local)
    assert (code, err) == (0, "")
    assert out.startswith("3 files in units: ")
    assert sorted(str(path) for path in Path("units").rglob("*.mpc")) == [
        "units/a.mpc",
        "units/b.mpc",
        "units/below/a.mpc",
    ]
    assert CodedUnit.load("units/below/a.mpc") == client.compress(final[2], codec=FINAL, qp=30)
    code, out, err = mpcompress("decompress", "units/", "-o", "again", "--format", "npz", "--json", *local)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert (facts["done"], facts["skipped"], facts["failed"]) == (3, 0, 0)
    np.testing.assert_array_equal(np.load("again/b.npz")["h"], client.decompress(CodedUnit.load("units/b.mpc")))


def test_patterns_and_several_names(mpcompress):
    for number, given in enumerate((["features/**/a.npy"], ["features/a.npy", "features/b.npy"], ["features/?.npy"])):
        code, out, _ = mpcompress("compress", *given, "-o", f"out{number}/", *CODEC, "--json")
        if number:
            assert (code, json.loads(out)["done"]) == (0, 2)
        else:
            assert code == 2  # features/a.npy and features/below/a.npy would become one file
    code, _, err = mpcompress("compress", "features/x*.npy", "-o", "out/", *CODEC)
    assert (code, err.count("\n")) == (2, 1)


def test_one_file_into_a_folder(mpcompress):
    code, _, _ = mpcompress("compress", "features/a.npy", "-o", ".", *CODEC)
    assert code == 0
    assert Path("a.mpc").is_file()


def test_what_fails_is_named_and_the_rest_is_done(mpcompress, final):
    Path("features/broken.npy").write_bytes(b"no array")
    bad = final[0].astype(np.float32)
    bad[5, 6] = np.inf
    np.save("features/bad.npy", bad)
    code, out, err = mpcompress("compress", "features", "-o", "units", *CODEC)
    assert code == 1
    assert "3 files in units, 2 failed" in out
    assert err.count("\n") == 2
    assert "features/broken.npy" in err
    assert "features/bad.npy: " in err
    assert "h[5, 6] is inf" in err
    assert sorted(path.name for path in Path("units").rglob("*.mpc")) == ["a.mpc", "a.mpc", "b.mpc"]


def test_resume_does_what_is_left(mpcompress):
    assert mpcompress("compress", "features", "-o", "units", *CODEC)[0] == 0
    before = Path("units/b.mpc").stat().st_mtime_ns
    Path("units/a.mpc").write_bytes(b"half a file")
    Path("units/below/a.mpc").unlink()

    def again(*arguments: str) -> tuple[int, int]:
        code, out, _ = mpcompress("compress", "features", "-o", "units", *arguments, "--resume", "--json")
        assert code == 0
        facts = json.loads(out)
        return facts["done"], facts["skipped"]

    assert again(*CODEC) == (2, 1)
    assert Path("units/b.mpc").stat().st_mtime_ns == before
    assert again(*CODEC) == (0, 3)
    assert again(*CODEC, "--qp", "24") == (0, 3)  # the default, said aloud
    assert again(*CODEC, "--qp", "30") == (3, 0)
    assert again(*CODEC, "--qp", "30", "--param", "prefix_qp_offset_eighths=-24") == (3, 0)
    assert again(*CODEC, "--qp", "30", "--param", "prefix_qp_offset_eighths=-24") == (0, 3)
    assert again(*CODEC, "--qp", "30", "--param", "prefix_qp_offset_eighths=-24", "--local") == (0, 3)
    assert again(*CODEC, "--qp", "30") == (3, 0)
    assert again(*CODEC, "--token-res", "8x32") == (3, 0)
    assert again(*CODEC, "--param", "target_bpfp=0.2") == (3, 0)
    assert again(*CODEC, "--param", "target_bpfp=0.3") == (3, 0)
    assert again(*CODEC, "--param", "target_bpfp=0.3", "--param", "effort=2") == (3, 0)
    assert again("--codec", BLOCK6) == (3, 0)
    os.utime("features/b.npy", ns=(5, 5))  # older than its unit, and still not the input that it was
    assert again("--codec", BLOCK6) == (1, 2)
    assert mpcompress("decompress", "units", "-o", "again")[0] == 0
    code, out, _ = mpcompress("decompress", "units", "-o", "again", "--resume", "--dtype", "float32", "--json")
    assert (code, json.loads(out)["done"], np.load("again/b.npy").dtype) == (0, 3, np.float32)
    assert mpcompress("decompress", "units", "-o", "again")[0] == 0
    Path("again/a.npy").unlink()
    code, out, _ = mpcompress("decompress", "units", "-o", "again", "--resume")
    assert (code, out) == (0, "1 files in again, 2 done before\n")
    changed = Path("again/b.npy").stat().st_mtime_ns + 10**9
    os.utime("units/b.mpc", ns=(changed, changed))
    code, out, _ = mpcompress("decompress", "units", "-o", "again", "--resume", "--json")
    assert [item["output"] for item in json.loads(out)["items"]] == ["again/b.npy"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("features", "-o", "features/a.npy"), "is a file"),
        (("features", "-o", "no/where/"), "no directory"),
        (("features", "-o", "-"), "one input"),
        (("-", "features", "-o", "x/"), "pipe"),
    ],
)
def test_bad_places(mpcompress, arguments, words):
    code, out, err = mpcompress("compress", *arguments, *CODEC)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_inspect_of_several_units(mpcompress):
    assert mpcompress("compress", "features", "-o", "units", *CODEC)[0] == 0
    code, out, err = mpcompress("inspect", "units")
    assert (code, out.count("\n"), err) == (0, 3, "")
    assert f"units/below/a.mpc: {FINAL}, h float16 (257, 384), " in out
    Path("units/b.mpc").write_bytes(b"half a file")
    code, out, err = mpcompress("inspect", "units/?.mpc", "units/below/a.mpc", "--json")
    facts = json.loads(out)
    assert (code, [item["file"] for item in facts["items"]]) == (1, ["units/a.mpc", "units/below/a.mpc"])
    assert list(facts["errors"]) == ["units/b.mpc"]
    assert mpcompress("inspect", "units")[2] == "mpcompress: units/b.mpc: not a .mpc file\n"


def test_resume_trusts_no_unit_that_it_does_not_know(mpcompress):
    arguments = ("compress", "features/a.npy", "-o", "a.mpc", *CODEC)
    assert mpcompress(*arguments)[0] == 0
    assert sorted(path.name for path in Path().iterdir()) == ["a.mpc", "features"]
    assert "done before" not in mpcompress(*arguments, "--resume")[1]
    assert mpcompress(*arguments, "--resume")[1] == "a.mpc: done before\n"
    Path(".mpcompress-resume.jsonl").write_text('{"output": "a.mpc"}\nhalf a li')
    assert "done before" not in mpcompress(*arguments, "--resume")[1]


def test_no_server_ends_a_batch_at_once(mpcompress):
    code, out, err = mpcompress("compress", "features", "-o", "units", *CODEC, "--target", "127.0.0.1:1")
    assert (code, out, err.count("\n")) == (1, "", 1)
    code, out, err = mpcompress("compress", "features", "-o", "units", "--codec", "nobody")
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_an_interrupted_batch_goes_on_where_it_ended(mpcompress, server, final):
    Path("many").mkdir()
    for number in range(200):
        np.save(f"many/{number:03}.npy", final[number % 4])
    command = [sys.executable, "-c", "from mpcompress_client.cli import main; main()"]
    command += ["compress", "many", "-o", "units", *CODEC, "--target", server]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    )
    while process.poll() is None and not list(Path().glob("units/*.mpc")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    done = len(list(Path("units").glob("*.mpc")))
    if process.returncode == 130:  # else the machine did all 200 before the signal came
        assert (out, err.strip()) == ("", "mpcompress: interrupted")
        assert 0 < done < 200
    assert [path.name for path in Path("units").iterdir() if path.suffix != ".mpc"] == [".mpcompress-resume.jsonl"]
    code, out, _ = mpcompress("compress", "many", "-o", "units", *CODEC, "--resume", "--json")
    facts = json.loads(out)
    assert (code, facts["done"], facts["skipped"]) == (0, 200 - done, done)


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_pipes(server, client, final, tmp_path, suffix):
    from mpcompress_client.cli.files import file_bytes

    data = file_bytes(final[0], f".{suffix}", "x")
    coded = piped("compress", "-", "-o", "-", *CODEC, data=data, target=server)
    assert coded.returncode == 0, coded.stderr
    unit = client.compress(final[0], codec=FINAL)
    assert coded.stdout == unit.to_bytes()
    assert b"bpfp" in coded.stderr
    again = piped("decompress", "-", "-o", "-", "--format", suffix, data=coded.stdout, target=server)
    assert again.returncode == 0, again.stderr
    assert again.stdout == file_bytes(client.decompress(unit), f".{suffix}", "x")
    facts = piped("inspect", "-", "--json", data=coded.stdout, target=server)
    assert json.loads(facts.stdout)["file_bytes"] == len(coded.stdout)


def test_inspect_tells_the_size_of_the_file_whatever_its_layout(mpcompress):
    # In layout 1; today's file of this unit is shorter.
    data = bytes.fromhex(
        "4d50c1079000ec0123456789abcdef05b44635f5bf2c1b1639f71480dac75b4de849"
        "2281028003074205088003100c000102030405060708090a0b0c0d0e0f"
    )
    assert len(CodedUnit.from_bytes(data).to_bytes()) < len(data)
    Path("x.mpc").write_bytes(data)
    code, out, _ = mpcompress("inspect", "x.mpc", "--json")
    assert code == 0
    of_pipe = json.loads(piped("inspect", "-", "--json", data=data, target="127.0.0.1:1").stdout)
    assert json.loads(out)["file_bytes"] == of_pipe["file_bytes"] == len(data)
    assert json.loads(out)["bpfp"] == of_pipe["bpfp"] == 8 * len(data) / (257 * 384)
    assert of_pipe["format_version"] == 1


@pytest.mark.parametrize("data", [b"", b"no features at all"])
def test_pipes_with_nothing_of_use(server, data):
    for command in (("compress", "-", "-o", "-", *CODEC), ("decompress", "-", "-o", "-"), ("inspect", "-")):
        done = piped(*command, data=data, target=server)
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
        assert b"pipe" in done.stderr or b"standard input" in done.stderr


# ----------------------------------------------------------------------------------------------------- .pt files


@needs_torch
def test_pt_files(mpcompress, client, final):
    import torch

    h = torch.from_numpy(final[0])
    torch.save(h, "one.pt")
    torch.save({"h": h.requires_grad_()}, "named.pth")
    for name in ("one.pt", "named.pth"):
        assert mpcompress("compress", name, "-o", "x.mpc", *CODEC)[0] == 0
        assert CodedUnit.load("x.mpc") == client.compress(final[0], codec=FINAL)
    torch.save(h.detach().to(torch.bfloat16), "bf16.pt")
    assert mpcompress("compress", "bf16.pt", "-o", "x.mpc", *CODEC)[0] == 0
    assert client.decompress("x.mpc").dtype.name == "bfloat16"


@needs_torch
def test_calibrating_on_pt_files(mpcompress, final):
    import torch

    torch.save({"h": torch.from_numpy(np.tile(final[:, :65, :32], (4, 1, 1)).astype(np.float32))}, "h.pt")
    code, out, err = mpcompress("calibrate", "h.pt", "-o", "c.safetensors", "--prefix-tokens", "1", "--grid", "8", "8")
    assert code == 0, err
    assert "codec klt-c from 14 tensors" in out  # and two held out


class Trap:
    """What a hostile file would run."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@needs_torch
def test_pt_files_run_no_code(mpcompress):
    import torch

    torch.save(Trap(), "trap.pt")
    torch.save({"h": torch.zeros(3, 4).to_sparse()}, "sparse.pt")
    torch.save({"epoch": 3}, "numbers.pt")
    Path("garbage.pt").write_bytes(b"garbage")
    for name in ("trap", "sparse", "numbers", "garbage"):
        code, out, err = mpcompress("compress", f"{name}.pt", "-o", "x.mpc", *CODEC)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert f"{name}.pt" in err
    assert not Path("trapped").exists()


def test_pt_files_without_torch(mpcompress, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    Path("x.pt").write_bytes(b"")
    code, out, err = mpcompress("compress", "x.pt", "-o", "x.mpc", *CODEC)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "mpcompress[codecs]" in err


def test_evaluate_reads_the_pipe_once_for_all_its_points(server, final):
    data = io.BytesIO()
    np.save(data, final[0])
    points = ("--qps", "18,30", "--json")
    done = piped("evaluate", "-", "--codec", FINAL, *points, data=data.getvalue(), target=server)
    assert done.returncode == 0, done.stderr
    assert [row["qp"] for row in json.loads(done.stdout)["rows"]] == [18, 30]
    load = ("--concurrency", "1", "--seconds", "0.1", "--json")
    done = piped("bench", "-", "--codec", FINAL, *load, data=data.getvalue(), target=server)
    assert json.loads(done.stdout)["features"] == "files"
