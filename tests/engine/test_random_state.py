"""Random numbers that go on after a checkpoint, and seeds."""

import random

import numpy as np
import pytest
import torch

from mmwsss.engine.random_state import (
    iteration_seed,
    random_state,
    seed_everything,
    set_random_state,
)

pytestmark = pytest.mark.mm


def draw():
    """Of every kind; one normal number leaves half of a pair behind."""
    torch_numbers = [*torch.rand(2).tolist(), *torch.randn(3).tolist()]
    return [
        *(random.random(), random.gauss(0, 1), random.getrandbits(70)),
        *(np.random.rand(), np.random.normal(), int(np.random.randint(1 << 30))),
        *torch_numbers,
    ]


def test_numbers_go_on_from_a_file(tmp_path):
    seed_everything(5)
    # The second of a pair of normal numbers is part of the state.
    random.gauss(0, 1)
    np.random.normal()
    torch.save(random_state(), tmp_path / 'state.pth')
    expected = [draw(), draw()]
    seed_everything(6)
    assert draw() != expected[0]
    # Plain values: read without running any code.
    set_random_state(torch.load(tmp_path / 'state.pth', weights_only=True))
    assert [draw(), draw()] == expected


def test_taking_the_state_draws_nothing():
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    random_state()
    assert draw() == expected


@pytest.mark.parametrize('seed', [0, 7, (1 << 32) + 7, (1 << 63) - 1])
def test_a_seed_begins_all_three_as_their_own_generators_do(seed):
    seed_everything(seed)
    generator = torch.Generator().manual_seed(seed)
    assert random.random() == random.Random(seed).random()
    # NumPy takes 32 bits.
    assert np.random.rand() == np.random.RandomState(seed & 0xFFFFFFFF).rand()
    assert torch.equal(torch.rand(4), torch.rand(4, generator=generator))


def test_seeds_of_iterations_differ_and_have_63_bits():
    seeds = {
        iteration_seed(seed, rank, iteration)
        for seed in (0, 1, 11)
        for rank in range(12)
        for iteration in range(200)
    }
    assert len(seeds) == 3 * 12 * 200
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert max(seeds) > 1 << 62
    # Of no counter that another run, rank or iteration shares, 1/11/1 and 11/1/1 say.
    assert iteration_seed(1, 11, 1) != iteration_seed(11, 1, 1)
    # The same in every process: printf 3/0/100 | b2sum -l 64
    assert iteration_seed(3, 0, 100) == 0xBBC1ED3225B5FD1E >> 1


class FakeGPU:
    """As much of torch.cuda as has a state."""

    def __init__(self, monkeypatch, *, in_use):
        self.state = torch.arange(16, dtype=torch.uint8)
        monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: in_use)
        monkeypatch.setattr(torch.cuda, 'get_rng_state', lambda: self.state.clone())
        monkeypatch.setattr(torch.cuda, 'set_rng_state', self.set)

    def set(self, state):
        assert state.device.type == 'cpu'
        self.state = state


def test_a_gpu_that_is_in_use_has_a_state_of_its_own(monkeypatch):
    gpu = FakeGPU(monkeypatch, in_use=True)
    state, gpu.state = random_state(), torch.zeros(16, dtype=torch.uint8)
    set_random_state(state)
    assert gpu.state.tolist() == list(range(16))
    # Of a run on a CPU: nothing is known of the GPU, which stays as it is.
    del state['cuda']
    gpu.state = torch.full((16,), 3, dtype=torch.uint8)
    set_random_state(state)
    assert gpu.state.tolist() == 16 * [3]


def test_a_gpu_that_is_not_in_use_is_left_alone(monkeypatch):
    """Asking one for its state would start it, which takes memory."""
    FakeGPU(monkeypatch, in_use=True)
    state = random_state()
    gpu = FakeGPU(monkeypatch, in_use=False)
    assert 'cuda' not in random_state()
    gpu.state = None
    set_random_state(state)
    assert gpu.state is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_numbers_of_a_gpu_go_on():
    seed_everything(5)
    torch.rand(3, device='cuda')
    state = random_state()
    expected = torch.randn(5, device='cuda')
    # As a checkpoint that was read onto the GPU.
    state['torch'], state['cuda'] = state['torch'].cuda(), state['cuda'].cuda()
    seed_everything(6)
    assert not torch.equal(torch.randn(5, device='cuda'), expected)
    set_random_state(state)
    assert torch.equal(torch.randn(5, device='cuda'), expected)
