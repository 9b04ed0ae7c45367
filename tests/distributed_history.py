"""What the processes of tests/models/test_history.py run.

A spawned process imports this file by name, which it cannot do with a test file.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from no_waiting import NoWaiting
from process_group import process_group
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mmwsss.errors import InputError
from mmwsss.models.labelers.history import PredictionHistory

# In one step 'a' is with several processes, 'c' twice with one, and 'new' is not in
# the history.
STEPS = [
    ['a', 'b', 'a', 'c', 'a', 'new'],
    ['c', 'c', 'new', 'a', 'c', 'b'],
    ['b', 'd', 'd', 'new', 'b', 'e'],
]
IDS = list('abcde')
IMAGE_LABELS = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [0, 1, 0], [1, 1, 1]])
WHOLE = torch.tensor([[[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]])


def sample(image_id, **meta):
    return SimpleNamespace(metainfo={'img_id': image_id, **meta})


def visits():
    """(data_samples, label, affine) of each step, for the joint batch."""
    generator = torch.Generator().manual_seed(0)
    for ids in STEPS:
        label = torch.randint(0, 4, (len(ids), 6, 5), generator=generator)
        label = label.masked_fill(label == 3, 255)
        scale = torch.rand(len(ids), 2, generator=generator) * 0.6 + 0.3
        offset = torch.rand(len(ids), 2, generator=generator) * 0.3
        affine = torch.stack([scale, offset, torch.ones(len(ids), 2)], dim=-1)
        yield [sample(i) for i in ids], label, affine


def make_history():
    history = PredictionHistory(grid_size=8, decay=0.8)
    history.prepare(IDS, IMAGE_LABELS)
    return history


def run_visits(history, part=slice(None)):
    for samples, label, affine in visits():
        history.update(samples[part], label[part], affine[part])
    return history


def read_and_update(history, part=slice(None)):
    """What training steps read, one after the other."""
    found = []
    for samples, label, affine in visits():
        classes = torch.ones(len(samples[part]), 3)
        found.append(history.read(samples[part], classes, (5, 4), affine[part]))
        history.update(samples[part], label[part], affine[part])
    return found


def read_photo(history, image_id):
    return history.read([sample(image_id)], torch.ones(1, 3), (6, 7), WHOLE)


def many_photos():
    """Ids and image labels, enough of them to be shared out evenly."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(200, 6, generator=generator) < 0.3
    return [str(number) for number in range(200)], labels


def held_bytes(history):
    tensors = (history.bank, history.slots)
    return sum(t.numel() * t.element_size() for t in tensors)


class Learner(nn.Module):
    """A trained weight, a history, and a buffer that processes share."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(1)
        self.history = PredictionHistory(grid_size=8, decay=0.8)

    def forward(self, samples, label, affine):
        found = self.history.read(samples, torch.ones(len(samples), 3), (5, 4), affine)
        self.history.update(samples, label, affine)
        return self.norm(found.mean((1, 2, 3))[:, None] * self.weight).square().sum()


def train_wrapped(part):
    """The history of a model in a wrapper that broadcasts the buffers of rank 0."""
    model = Learner()
    wrapped = DistributedDataParallel(model, broadcast_buffers=True)
    model.history.prepare(IDS, IMAGE_LABELS)
    for samples, label, affine in visits():
        wrapped(samples[part], label[part], affine[part]).backward()
    return merged_state(model.history)


def merged_state(history):
    with history.merged(everywhere=True):
        return {name: value.clone() for name, value in history.state_dict().items()}


def check_doors(history, rank):
    """What one process alone may do, and what is refused instead of waiting."""
    with pytest.raises(InputError, match=r'mmwsss\.CheckpointHook'):
        history.state_dict()
    history.eval()
    with pytest.raises(RuntimeError, match='merged'):
        read_photo(history, 'a')
    with history.merged():
        if rank == 0:
            assert read_photo(history, 'a').any()
            assert history.state_dict()['bank'].any()
        else:
            with pytest.raises(InputError, match=r'mmwsss\.CheckpointHook'):
                history.state_dict()
    with pytest.raises(InputError, match=r'mmwsss\.CheckpointHook'):
        history.state_dict()
    found = []
    with history.merged(everywhere=True):
        # Each another number of photos, so that nobody may wait for another.
        for image_id in IDS[rank:]:
            found.append(read_photo(history, image_id))
    history.train()
    return found


def resume(state, part, *, prepare_first):
    history = PredictionHistory(grid_size=8, decay=0.8)
    if prepare_first:
        history.prepare(IDS, IMAGE_LABELS)
    assert not any(history.load_state_dict(state))
    if not prepare_first:
        # Whole until then, so that one process may read it.
        assert read_photo(history.eval(), 'a').any()
        history.train().prepare(IDS, IMAGE_LABELS)
    with pytest.raises(InputError, match=r'mmwsss\.CheckpointHook'):
        history.state_dict()
    run_visits(history, part)
    return merged_state(history)


def run_rank(rank, world_size, folder):
    torch.set_num_threads(1)
    with process_group(rank, folder, world_size=world_size):
        size = len(STEPS[0]) // world_size
        part = slice(rank * size, (rank + 1) * size)
        history = make_history()
        blank = history.state_dict()
        with NoWaiting():
            reads = read_and_update(history, part)
        state = merged_state(history)
        large = PredictionHistory()
        large.prepare(*many_photos())
        moved = copy.deepcopy(history).to('meta')
        assert moved.bank.is_meta
        assert moved.slots.is_meta
        result = dict(
            blank=blank,
            reads=reads,
            state=state,
            # Twice: coming together has changed nothing.
            again=merged_state(history),
            # As of a model whose weights are averaged.
            copied=merged_state(copy.deepcopy(history)),
            alone=check_doors(history, rank),
            bytes=held_bytes(large),
            wrapped=train_wrapped(part),
            resumed=[
                resume(state, part, prepare_first=first) for first in (True, False)
            ],
        )
        torch.save(result, f'{folder}/rank{rank}.pt')
