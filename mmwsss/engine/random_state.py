"""The random numbers of a process, as plain values that a checkpoint can hold."""

import hashlib
import random

import numpy as np
import torch


def random_state() -> dict[str, object]:
    """State of Python, NumPy, torch and, where it is in use, this process's GPU."""
    name, keys, *rest = np.random.get_state()
    state = {
        'python': random.getstate(),
        'numpy': (name, keys.tolist(), *rest),
        'torch': torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, object]) -> None:
    """Draw from here on what was drawn after ``random_state``."""
    version, keys, gauss = state['python']
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    # A checkpoint may have been read onto a GPU.
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state['cuda'].cpu())


def seed_everything(seed: int) -> None:
    """Begin all random numbers of this process at a seed of up to 63 bits."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def iteration_seed(seed: int, rank: int, iteration: int) -> int:
    """A 63-bit seed that differs between runs, ranks and iterations."""
    text = f'{seed}/{rank}/{iteration}'.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big') >> 1
