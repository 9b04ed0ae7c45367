"""Processes that talk through gloo, for the tests that start some."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def process_group(rank: int, folder: str, *, world_size: int = 2) -> Iterator[None]:
    """A process as one of several, in a context.

    Keep no DistributedDataParallel beyond it: one that is freed after the group waits,
    with Python's lock in its hand, for a thread of gloo that may wait for that lock.
    """
    dist.init_process_group(
        'gloo',
        init_method=f'file://{folder}/store',
        rank=rank,
        world_size=world_size,
    )
    yield
    gc.collect()
    # Nobody hangs up while another still talks.
    dist.barrier()
    dist.destroy_process_group()
