"""Runs the fuzz targets under atheris, one process each, and prints how often each was called (`make fuzz`).

    python tests/fuzz/fuzz.py --seconds 60 [TARGET ...]

A crash, a hang of 20 s, more than 2 GiB of memory or an exception outside a target's contract ends with status 1,
and the input that did it is kept in fuzz-findings/.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
FINDINGS = Path("fuzz-findings")
HANG_S = 20


def run_target(name: str, arguments: list[str]) -> None:
    """In a child: hands the process over to libFuzzer."""
    import atheris

    with atheris.instrument_imports(include=["mpcompress", "mpcompress_proto"]):
        from fuzz_targets import TARGETS
        from seeds import seeds
    # Loads codecs and compiles kernels, which would be a hang in the eyes of libFuzzer.
    for seed in seeds()[name]:
        TARGETS[name](seed)
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """The command line; returns the exit status."""
    if len(sys.argv) > 2 and sys.argv[1] == "--child":
        run_target(sys.argv[2], sys.argv[3:])
    from fuzz_targets import TARGETS
    from seeds import seeds

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    options = parser.parse_args()
    FINDINGS.mkdir(exist_ok=True)
    failed = False
    corpus = seeds()
    for name in options.targets or TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            for index, seed in enumerate(corpus[name]):
                (Path(folder) / str(index)).write_bytes(seed)
            limits = [
                f"-max_total_time={options.seconds}",
                f"-timeout={HANG_S}",
                "-rss_limit_mb=2048",
                "-print_final_stats=1",
            ]
            command = [
                sys.executable,
                __file__,
                "--child",
                name,
                *limits,
                f"-artifact_prefix={FINDINGS}/{name}-",
                folder,
            ]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        log = result.stdout + result.stderr
        executions = re.search(r"stat::number_of_executed_units: *(\d+)", log)
        print(f"{name}: {executions[1] if executions else '?'} executions, {'FAILED' if result.returncode else 'ok'}")
        if result.returncode:
            failed = True
            print(log[-3000:])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
