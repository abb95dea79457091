"""Memory of the host: what a tensor leaves is kept for the next one.

glibc gives freed blocks of many megabytes back to the kernel, and the next tensor of that size takes a page fault for
each 4 KiB, zeroed anew: a twentieth of the CPU time of a small model's round. Kept, the process stays as large as it
was at its peak; where models run on a GPU, the host needs its memory for others.
"""

import ctypes
import os
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_* of malloc.h
_KEPT = 2**31 - 1  # bytes, the most that mallopt takes
_KEPT_BEFORE = 32 << 20  # the most that glibc before 2.35 does


@cache
def keep_freed_memory() -> None:
    """From now on in this process, where malloc is glibc's and the environment does not say otherwise."""
    libc = ctypes.CDLL(None)
    said = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if hasattr(libc, "mallopt") and not said:
        libc.mallopt(_MMAP_THRESHOLD, _KEPT) or libc.mallopt(_MMAP_THRESHOLD, _KEPT_BEFORE)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
