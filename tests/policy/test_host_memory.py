"""A block that was freed is used again as it lies, without page faults."""

import os
import platform
import subprocess
import sys

import pytest

BLOCK = 64 << 20
SECOND_BLOCK = f"""
import resource
from sail.policy.host_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
block = bytearray({BLOCK})
del block
before = faults()
block = bytearray({BLOCK})
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_a_freed_block_is_taken_again_unless_the_environment_says_how_malloc_works() -> None:
    pages = BLOCK // 4096
    assert _faults({}) < pages / 10
    assert _faults({"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}) > pages / 2


def _faults(malloc: dict[str, str]) -> int:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", SECOND_BLOCK]
    return int(subprocess.run(command, env=environment | malloc, capture_output=True, text=True, check=True).stdout)
