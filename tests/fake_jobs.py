"""What the worker processes of tests/apis/test_jobs.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import os
import time
from functools import partial
from pathlib import Path

import torch

from mmwsss.errors import InputError, UnreadablePhoto


def build(folder, number):
    """Notes for each item which process did it with how many threads."""
    (Path(folder) / f'built_{number}_{os.getpid()}').write_text('')
    return partial(note, folder, number)


def note(folder, number, item):
    text = f'{number} {os.getpid()} {torch.get_num_threads()}'
    (Path(folder) / f'item_{item}').write_text(text)


def build_doubling(folder, number):
    (Path(folder) / f'built_{number}_{os.getpid()}').write_text('')
    return double


def double(item):
    item.append(2 * item[0])


def build_slow(folder, number):
    return partial(note_slowly, folder, number)


def note_slowly(folder, number, item):
    time.sleep(0.2)
    note(folder, number, item)


def build_refusing(folder, number):
    return partial(refuse, folder, number)


def refuse(folder, number, item):
    if item == 3:
        raise InputError('item 3 is bad; take it out')
    note(folder, number, item)


def build_unreadable(folder, number):
    return partial(read, folder, number)


def read(folder, number, item):
    if item in (3, 5):
        raise UnreadablePhoto(f'item {item} has no pixels; replace it')
    note(folder, number, item)


def build_nothing(folder, number):
    # As the registries of MMEngine do it: another type around the sentence.
    try:
        raise InputError('the network cannot be built; correct it')
    except InputError as error:
        raise KeyError('a registry') from error


def build_defect(folder, number):
    raise ZeroDivisionError('a defect')


def build_suicide(folder, number):
    return kill_myself


def kill_myself(item):
    os.kill(os.getpid(), 9)
