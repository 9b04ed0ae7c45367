"""Hooks: they own time, the model owns tensors."""

import hashlib

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper

from mmwsss.registry import HOOKS


@HOOKS.register_module()
class ProgressHook(Hook):
    """Tells the model how far training is: ``model.progress`` in [0, 1].

    Derived from the iteration, so it is right after a resume without any state.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the progress of the iteration that begins."""
        model = runner.model
        model = model.module if is_model_wrapper(model) else model
        model.progress = runner.iter / runner.max_iters


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds torch from (seed, rank, iteration) before every iteration.

    MMEngine's checkpoints hold no random state, so dropout would differ after a
    resume. A state that is a function of the iteration needs no saving: a resumed
    run draws what the uninterrupted one would have drawn.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Seed every generator of torch; on CUDA this waits for nothing."""
        torch.manual_seed(iteration_seed(runner.seed, get_rank(), runner.iter))


def iteration_seed(seed: int, rank: int, iteration: int) -> int:
    """A 63-bit seed that differs between runs, ranks and iterations."""
    text = f'{seed}/{rank}/{iteration}'.encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), 'big') >> 1
