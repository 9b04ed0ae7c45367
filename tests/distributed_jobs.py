"""What the processes of tests/apis/test_jobs.py and test_benchmark.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.distributed as dist

from mmwsss.apis.benchmark.case import Case
from mmwsss.apis.jobs import decided_by_first_rank, joined, my_share, wait_for_all
from mmwsss.errors import InputError

ITEMS = list('abcdefg')


def run_rank(rank: int, world_size: int, folder: str, refused: bool) -> None:
    """Let the first rank decide, share the work, write down what came of it."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR='localhost', MASTER_PORT='0')
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world_size
    )

    def decide() -> list[str]:
        Path(folder, f'decided_{rank}').touch()
        if refused:
            raise InputError('the folder is full; make room')
        return ITEMS

    try:
        items = decided_by_first_rank(decide)
        mine = [f'{item}{rank}' for item in my_share(items)]
        found = {'mine': mine, 'all': joined(mine)}
    except InputError as error:
        found = {'refused': str(error)}
    Path(folder, f'rank_{rank}.json').write_text(json.dumps(found))
    wait_for_all()
    dist.destroy_process_group()


@dataclass(frozen=True, kw_only=True)
class Killed(Case):
    """Takes its process with it, as the system does where memory is short."""

    name: str = 'killed'
    what: str = 'a test'
    group: ClassVar[str] = 'tests'

    def make(self, setting):
        return ()

    def fast(self, inputs):
        os._exit(1)
