import ctypes
import platform
import subprocess
import sys

import pytest

from mmwsss.apis import host_memory

# Faults of the pages of 64 MB that are taken, written and freed three times, after the
# first time.
FAULTS = """
import ctypes, resource, sys
from mmwsss.apis.host_memory import keep_freed_memory
if 'keep' in sys.argv:
    print(keep_freed_memory())
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size = 64 * 2**20
for time in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    place = libc.malloc(size)
    ctypes.memset(place, 1, size)
    libc.free(place)
    if time:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def printed(*arguments, **environment):
    result = subprocess.run(
        [sys.executable, '-c', FAULTS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={'PYTHONPATH': ':'.join(sys.path), **environment},
    )
    return result.stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='for glibc alone')
def test_freed_memory_is_used_again():
    assert min(map(int, printed())) > 1000  # else there is nothing to win
    said, *faults = printed('keep')
    assert said == 'True'
    assert max(map(int, faults)) < 10


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('MALLOC_MMAP_MAX_', '100'),
        ('GLIBC_TUNABLES', 'glibc.malloc.trim_threshold=4096'),
    ],
)
def test_the_choice_of_the_environment_stands(name, value, monkeypatch):
    monkeypatch.setattr(ctypes, 'CDLL', None)  # would fail
    monkeypatch.setenv(name, value)
    assert host_memory.keep_freed_memory() is False


def test_other_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, 'CDLL', None)
    monkeypatch.setattr(platform, 'libc_ver', lambda: ('', ''))
    assert host_memory.keep_freed_memory() is False
