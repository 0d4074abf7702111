"""Messages as large as they get take no page fault for each of their pages."""

import platform
import subprocess
import sys

import pytest

# A message and gRPC's copy of it, freed when they have left, as often as a minute's stream does.
PROGRAM = """
import resource
from mpcompress_client.heap import keep_messages_on_the_heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        message = b"1" * ((1 << 20) - 100)
        copy = bytearray(message)
        del message, copy
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
keep_messages_on_the_heap()
faults()
print(without, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_messages_come_from_the_heap():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    without, kept = map(int, run.stdout.split())
    assert kept < 200
    assert without > 10 * kept
