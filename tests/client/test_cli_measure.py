"""`evaluate`, `bench` and `doctor`: figures that agree with the library's, exit codes that mean something."""

from __future__ import annotations

import csv
import json
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import BLOCK6, FINAL

from mpcompress.metrics import cosine, nmse
from mpcompress_client.cli import run
from mpcompress_client.cli.load import Load, process_cpu_s, run_load
from mpcompress_client.errors import DeadlineError

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def mpcompress(server, capsys, monkeypatch, tmp_path, final):
    """Runs the command line in a folder with three feature files, against the real server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPCOMPRESS_TARGET", server)
    monkeypatch.setenv("COLUMNS", "160")
    Path("features").mkdir()
    for name, h in zip("abc", final, strict=False):
        np.save(f"features/{name}.npy", h)

    def command(*arguments: str):
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


# ------------------------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("local", [(), ("--local",)])
def test_evaluate_agrees_with_the_codec(mpcompress, client, final, local):
    code, out, err = mpcompress("evaluate", "features", "--codec", FINAL, "--qps", "18,30.5", "--json", *local)
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["files"] == 3
    for row, qp in zip(facts["rows"], (18, 30.5), strict=True):
        units = [client.compress(h, codec=FINAL, qp=qp) for h in final[:3]]
        found = [client.decompress(unit) for unit in units]
        assert (row["codec"], row["qp"], row["n"]) == (FINAL, qp, 3)
        assert row["bpfp"] == pytest.approx(np.mean([unit.bpfp for unit in units]))
        assert row["nmse"] == pytest.approx(np.mean([nmse(h, x) for h, x in zip(final, found, strict=False)]))
        assert row["cosine"] == pytest.approx(np.mean([cosine(h, x) for h, x in zip(final, found, strict=False)]))
        rates, errors = [unit.bpfp for unit in units], [nmse(h, x) for h, x in zip(final, found, strict=False)]
        assert (row["bpfp_deviation"], row["worst_bpfp"]) == pytest.approx((np.std(rates), max(rates)))
        assert (row["nmse_deviation"], row["worst_nmse"]) == pytest.approx((np.std(errors), max(errors)))
        assert row["worst_file"] == f"features/{'abc'[int(np.argmax(errors))]}.npy"
        distances = [unit.report.domain_distance for unit in units]
        assert row["domain_distance"] == pytest.approx(np.mean(distances))
        assert row["worst_domain_distance"] == pytest.approx(max(distances))
        assert (row["warned"], row["warnings"]) == (0, [])
        cls = np.mean([cosine(h[:1], x[:1]) for h, x in zip(final, found, strict=False)])
        assert row["prefix_cosine"] == pytest.approx(cls)
    assert facts["rows"][0]["bpfp"] > facts["rows"][1]["bpfp"]


def test_evaluate_for_people(mpcompress):
    pytest.importorskip("matplotlib")
    code, out, err = mpcompress(
        "evaluate", "features", "--codec", FINAL, "--codec", BLOCK6, "--limit", "2", "--plot", "rate.png"
    )
    assert code == 0
    assert err.startswith(f"warning: {BLOCK6}: ")  # calibrated for another layer
    assert err.count("\n") == 1
    for words in (FINAL, BLOCK6, "bpfp", "NMSE", "means over 2 files", "24", "spread over them", "warned"):
        assert words in out
    assert Path("rate.png").read_bytes().startswith(b"\x89PNG")


def test_evaluate_counts_files_unlike_the_calibration(mpcompress, final):
    np.save("features/b.npy", np.roll(final[1], 1, axis=1))
    code, out, _ = mpcompress("evaluate", "features", "--codec", FINAL, "--json")
    (row,) = json.loads(out)["rows"]
    assert code == 0
    assert row["warned"] == len(row["warnings"]) == 1
    assert row["worst_domain_distance"] > row["domain_distance"]
    code, out, err = mpcompress("evaluate", "features", "--codec", FINAL)
    assert (code, err.count("warning")) == (0, 1)
    assert "spread over them" in out
    assert "largest NMSE: features/b.npy" in out


def test_evaluate_names_the_file_that_fails(mpcompress):
    np.save("features/b.npy", np.full((257, 384), np.nan, np.float32))
    code, out, err = mpcompress("evaluate", "features", "--codec", FINAL)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "features/b.npy" in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("features", "--codec", "nobody"), 1, "nobody"),
        (("features", "--codec", FINAL, "--target", NOWHERE), 1, "cannot reach"),
        (("features", "--codec", FINAL, "--plot", "rate.xyz"), 1, "xyz"),
        (("nowhere", "--codec", FINAL), 2, "nowhere"),
        (("features", "--codec", FINAL, "--qps", "18,high"), 2, "high"),
        (("features", "--codec", FINAL, "--qps", "18", "--qp", "18"), 2, "--qp"),
    ],
)
def test_evaluate_says_what_is_wrong(mpcompress, arguments, code, words):
    if "--plot" in arguments:
        pytest.importorskip("matplotlib")
    found, out, err = mpcompress("evaluate", *arguments)
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert words in err


def test_plots_without_matplotlib(mpcompress, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = mpcompress("evaluate", "features", "--codec", FINAL, "--plot", "rate.png")
    assert code == 1
    assert "mpcompress[demo]" in err


# ---------------------------------------------------------------------------------------------------------- bench


def test_bench_closed_and_open_loops(mpcompress):
    arguments = ("--concurrency", "1,3", "--rate", "20", "--seconds", "0.3", "--do", "both", "--csv", "bench.csv")
    code, out, err = mpcompress("bench", "features", "--codec", FINAL, *arguments, "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["features"] == "files"
    assert facts["item_bytes"] == 257 * 384 * 2
    assert [(row["concurrency"], row["rate"]) for row in facts["rows"]] == [(1, None), (3, None), (None, 20)]
    for row in facts["rows"]:
        assert row["items"] > 0
        assert row["errors"] == 0
        assert row["items_per_s"] == pytest.approx(row["items"] / row["wall_s"])
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert facts["rows"][2]["items"] == 6
    with Path("bench.csv").open() as file:
        assert [int(row["items"]) for row in csv.DictReader(file)] == [row["items"] for row in facts["rows"]]


@pytest.mark.parametrize("operation", ["compress", "decompress"])
def test_bench_here_with_noise(mpcompress, operation):
    arguments = ("--codec", FINAL, "--local", "--concurrency", "2", "--seconds", "0.2", "--do", operation)
    code, out, err = mpcompress("bench", *arguments, "--target", NOWHERE)
    assert (code, err) == (0, "")
    for words in (operation, FINAL, "noise", "2 at once", "p99", "CPU here"):
        assert words in out


@pytest.mark.parametrize(
    "arguments",
    [("--concurrency", "0"), ("--concurrency", "1,x"), ("--rate", "fast"), ("--server-pid", str(2**22 + 1))],
)
def test_bench_bad_usage(mpcompress, arguments):
    code, out, err = mpcompress("bench", "--codec", FINAL, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_an_open_loop_counts_from_when_an_item_was_due(monkeypatch):
    """One worker, held by its first item until the last is due: the others' latencies hold their time in the queue."""
    monkeypatch.setattr("mpcompress_client.cli.load._MOST_WORKERS", 1)
    all_due = threading.Event()
    passed_s = 0.0

    def tick(seconds: float) -> None:
        nonlocal passed_s
        passed_s += seconds
        if passed_s > 0.19:
            all_due.set()

    samples = run_load(Load(rate=50, seconds=0.2), lambda: all_due.wait() and None, tick, None)
    assert len(samples.latencies_s) == 10
    for number, latency_s in enumerate(samples.latencies_s):
        assert latency_s > 0.19 - number / 50


def test_errors_of_items_are_counted_and_crashes_raised():
    def late() -> None:
        raise DeadlineError("too late")

    def broken() -> None:
        raise ZeroDivisionError

    samples = run_load(Load(rate=50, seconds=0.1), late, lambda _: None, None)
    assert samples.errors == {"DeadlineError": 5}
    with pytest.raises(ZeroDivisionError):
        run_load(Load(concurrency=2, seconds=60), broken, lambda _: None, None)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="CPU time of other processes is read from /proc")
def test_cpu_time_of_a_process():
    before = process_cpu_s(os.getpid())
    assert before is not None
    assert before > 0
    assert process_cpu_s(2**22 + 1) is None


# --------------------------------------------------------------------------------------------------------- doctor


def test_doctor_of_a_healthy_place(mpcompress, server):
    code, out, err = mpcompress("doctor", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert facts["ok"] is True
    found = {(finding["area"], finding["name"]): finding for finding in facts["findings"]}
    assert found["packages", "grpcio"]["state"] == "ok"
    assert FINAL in found["codecs", "on this device"]["detail"]
    assert "reachable" in found["server", server]["detail"]
    assert found["server", BLOCK6]["state"] == "ok"
    code, out, _ = mpcompress("doctor")
    for words in ("packages", "engines", "devices", FINAL, server):
        assert words in out


def test_doctor_says_what_to_do(mpcompress, monkeypatch):
    code, out, _ = mpcompress("doctor", "--target", NOWHERE)
    assert code == 1
    assert "FAILED" in out
    assert "mpcompress-server serve" in out
    from mpcompress_client.cli import checks

    real = checks._version
    monkeypatch.setattr(checks, "_version", lambda name: "" if name in ("numba", "torch", "av") else real(name))
    code, out, _ = mpcompress("doctor")
    assert code == 0
    assert "pip install 'mpcompress[edge]'" in out
    assert "pip install 'mpcompress[vvc]'" in out


def test_every_command_has_examples(mpcompress):
    from mpcompress_client.cli import cli

    for name in cli.commands:
        code, out, _ = mpcompress(name, "--help")
        assert code == 0
        assert "Example" in out, name
        assert f"mpcompress {name}" in out, name
        assert "\b" not in out
        assert "--json" in out, name
