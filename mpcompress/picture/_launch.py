"""Puts limits on itself and becomes another program.

    python -I -S _launch.py PARENT CPU_S MEMORY_BYTES FILE_BYTES COMMAND...

A script of its own, because code between fork and exec in a threaded Python process can deadlock. It starts in about
10 ms and imports nothing of this project.
"""

import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG = 1
_REFUSED = 125


def _limit(which: int, value: int, slack: int = 0) -> None:
    """Lowers a limit; a stricter one that is already there stays."""
    _, hard = resource.getrlimit(which)
    ceiling = value + slack if hard == resource.RLIM_INFINITY else min(hard, value + slack)
    resource.setrlimit(which, (min(value, ceiling), ceiling))


def main() -> None:
    """Reads the command line, never returns."""
    parent, cpu_s, memory_bytes, file_bytes = (int(word) for word in sys.argv[1:5])
    command = sys.argv[5:]
    if sys.platform == "linux":
        import ctypes

        # The kernel kills this process when the thread that started it ends, however that comes about.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_REFUSED)
    # SIGXCPU at the limit says why; SIGKILL two seconds later ends those that ignore it.
    _limit(resource.RLIMIT_CPU, cpu_s, slack=2)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        _limit(resource.RLIMIT_AS, memory_bytes)
    try:
        os.execv(command[0], command)  # noqa: S606 - an argument list, no shell: that is the point
    except OSError as error:
        os.write(2, f"cannot run {command[0]}: {error.strerror}\n".encode())
        os._exit(_REFUSED)


if __name__ == "__main__":
    main()
