"""How the C library keeps memory that was freed."""

import ctypes
import os
import platform

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_LARGEST = 2**31 - 1
_OWN_CHOICE = ('MALLOC_MMAP_MAX_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')


def keep_freed_memory() -> bool:
    """Let this process use freed memory again instead of giving it back and asking.

    A training step on a CPU frees and allocates the same tensors of tens of MB again
    and again. glibc takes memory of that size from the system each time, which maps
    and zeroes every page at its first use; docs/benchmark.md says what that costs.
    Afterwards up to 2 GB that were freed last stay with the process. Results do not
    change.

    Returns:
        Whether it is so now; False without glibc, or where the environment has set
        how its malloc behaves.
    """
    tuned = 'glibc.malloc.' in os.environ.get('GLIBC_TUNABLES', '')
    if tuned or any(name in os.environ for name in _OWN_CHOICE):
        return False
    if platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _LARGEST))
