"""What the two processes of tests/models/test_history.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

from types import SimpleNamespace

import torch
import torch.distributed as dist

from mmwsss.models.labelers.history import PredictionHistory

# In one step 'a' is in both halves, 'c' twice in one, and 'new' is not in the history.
STEPS = [['a', 'b', 'a', 'c'], ['c', 'c', 'new', 'a'], ['b', 'd', 'd', 'new']]
IMAGE_LABELS = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0]])


def sample(image_id, **meta):
    return SimpleNamespace(metainfo={'img_id': image_id, **meta})


def visits():
    """(data_samples, label, affine) of each step, for the joint batch."""
    generator = torch.Generator().manual_seed(0)
    for ids in STEPS:
        label = torch.randint(0, 4, (4, 6, 5), generator=generator)
        label[label == 3] = 255
        scale = torch.rand(4, 2, generator=generator) * 0.6 + 0.3
        offset = torch.rand(4, 2, generator=generator) * 0.3
        affine = torch.stack([scale, offset, torch.ones(4, 2)], dim=-1)
        yield [sample(i) for i in ids], label, affine


def make_history():
    history = PredictionHistory(grid_size=8, decay=0.8)
    history.prepare(['a', 'b', 'c', 'd'], IMAGE_LABELS)
    return history


def run_visits(history, part=slice(None)):
    for samples, label, affine in visits():
        history.update(samples[part], label[part], affine[part])
    return history


def run_rank(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2
    )
    part = slice(0, 2) if rank == 0 else slice(2, 4)
    history = run_visits(make_history(), part)
    torch.save(history.state_dict(), f'{folder}/rank{rank}.pt')
    dist.destroy_process_group()
