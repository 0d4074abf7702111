"""Programs that hang, crash, flood and outlive their caller."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mpcompress.errors import CodecCrashedError, CodecUnavailableError
from mpcompress.picture.cancel import CodingCancelledError
from mpcompress.picture.process import Limits, run
from mpcompress.picture.scratch import _Directory, open_scratch

LIMITS = Limits(wall_s=120, cpu_s=60, memory_bytes=1 << 30, file_bytes=1 << 24)
FOREVER = "import time\nwhile True: time.sleep(1)\n"


def python(code, **kwargs):
    return run([sys.executable, "-I", "-S", "-c", code], what="the test", **({"limits": LIMITS} | kwargs))


def test_outputs_and_status_come_back():
    ended = python("import os, sys; os.write(1, b'out'); os.write(2, b'err'); sys.exit(3)")
    assert (ended.returncode, ended.output, ended.errors) == (3, "out", "err")
    assert ended.how == "exit status 3: err"


def test_floods_are_drained_and_their_tails_kept():
    ended = python("import os\nfor i in range(2000): os.write(2, b'x' * 8191 + b'\\n')\nos.write(2, b'the end')")
    assert ended.returncode == 0
    assert ended.errors.endswith("the end")
    assert len(ended.errors) <= 2000


def test_a_signal_is_named():
    assert python("import os; os.kill(os.getpid(), 11)").how.startswith("signal SIGSEGV")


def test_the_wall_limit():
    with pytest.raises(CodecCrashedError, match="the test ran past its time limit"):
        python(FOREVER, limits=Limits(wall_s=0.5, cpu_s=60, memory_bytes=1 << 30, file_bytes=1))


def test_the_cpu_limit():
    with pytest.raises(CodecCrashedError, match="more than 1 CPU seconds"):
        python("while True: pass", limits=Limits(wall_s=120, cpu_s=1, memory_bytes=1 << 30, file_bytes=1))


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited on Linux only")
def test_the_memory_limit():
    ended = python("x = bytearray(1 << 31)")
    assert ended.returncode == 1
    assert "MemoryError" in ended.errors


def test_the_file_limit():
    with open_scratch() as scratch:
        target = scratch.put("file", b"")
        code = f"import signal; signal.signal(signal.SIGXFSZ, 1)\nf = open({target!r}, 'wb'); f.write(bytes(1 << 25))"
        ended = python(code, pass_fds=scratch.pass_fds)
        assert ended.returncode == 1
        with pytest.raises(CodecCrashedError, match="bytes"):
            scratch.take("file", 1 << 10)


def test_what_cannot_be_started():
    with pytest.raises(CodecUnavailableError, match="the test: cannot run /no/such/program"):
        run(["/no/such/program"], limits=LIMITS, what="the test")


def test_no_secrets_reach_the_program(monkeypatch):
    monkeypatch.setenv("TOKEN", "secret")
    assert "secret" not in python("import os; print(os.environ)").output


def test_set_before_the_start():
    token = threading.Event()
    token.set()
    with pytest.raises(CodingCancelledError):
        python(FOREVER, cancel=token)


GROUP = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
if child:
    with open(sys.argv[1] + ".tmp", "w") as file:
        file.write(f"[{os.getpid()}, {child}]")
    os.rename(sys.argv[1] + ".tmp", sys.argv[1])
while True: time.sleep(1)
"""


def test_cancel_kills_the_whole_group(tmp_path, await_file, gone):
    started, token = tmp_path / "started", threading.Event()
    pids = []

    def cancel():
        pids.extend(json.loads(await_file(started)))
        token.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CodingCancelledError):
        run(
            [sys.executable, "-I", "-S", "-c", GROUP, str(started)],
            limits=Limits(wall_s=120, cpu_s=60, memory_bytes=1 << 30, file_bytes=1 << 20),
            what="the test",
            cancel=token,
        )
    thread.join()
    assert all(gone(pid) for pid in pids)


def test_a_grandchild_that_holds_the_pipes_open_does_not_hold_us(tmp_path, await_file, gone):
    started = tmp_path / "started"
    code = GROUP.replace("while True: time.sleep(1)", "if not child:\n    while True: time.sleep(1)")
    ended = run([sys.executable, "-I", "-S", "-c", code, str(started)], limits=LIMITS, what="the test")
    assert ended.returncode == 0
    assert all(gone(pid) for pid in json.loads(await_file(started)))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_parents_death_ends_the_program(tmp_path, await_file, gone):
    started = tmp_path / "started"
    one = GROUP.replace("child = os.fork()", "child = os.getpid()")
    caller = (
        "import sys\nfrom mpcompress.picture.process import Limits, run\n"
        f"run([sys.executable, '-I', '-S', '-c', {one!r}, {str(started)!r}], what='the test',"
        " limits=Limits(wall_s=120, cpu_s=60, memory_bytes=1 << 30, file_bytes=1 << 20))"
    )
    with subprocess.Popen([sys.executable, "-c", caller]) as process:
        pids = json.loads(await_file(started))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert all(gone(pid) for pid in pids)


@pytest.mark.parametrize("kind", [open_scratch, _Directory])
def test_scratch_files(kind):
    with kind() as scratch:
        path = scratch.put("input", b"abc" * 100)
        target = scratch.put("output", b"")
        code = f"open({target!r}, 'wb').write(open({path!r}, 'rb').read()[::-1])"
        assert python(code, pass_fds=scratch.pass_fds).returncode == 0
        assert scratch.take("output", 300) == b"cba" * 100
        with pytest.raises(CodecCrashedError, match="300 bytes"):
            scratch.take("output", 299)


def test_a_scratch_directory_is_private_and_goes_with_an_error():
    paths = []

    def fail():
        with _Directory() as scratch:
            path = scratch.put("x", b"")
            paths.append(path)
            assert Path(path).parent.stat().st_mode & 0o77 == 0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not Path(paths[0]).parent.exists()
