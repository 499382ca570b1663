# SPDX-License-Identifier: Apache-2.0
"""The memory of a step on a CPU, kept from one step to the next."""

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # glibc's malloc.h.


def keep_freed_memory() -> bool:
    """Has the C library keep what a step frees for the next one; false where it cannot.

    XLA takes the temporary memory of a program (3 GB for a step of `base`) anew at every run. glibc
    gets pieces of that size from the system and returns them when they are freed, so every step
    pays for each page again: a quarter of the time of a block of stage 3, forward and backward.
    Without mappings, trimming or arenas that cannot grow, the pages stay with the process. Threads
    then share one heap: call it where arrays are large and few, as in training on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # Not glibc.
        return False
    return all(
        mallopt(option, value)
        for option, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    )
