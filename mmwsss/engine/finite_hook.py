"""Stops a training whose loss is no number any more."""

from pathlib import Path

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import Hook

from mmwsss.errors import InputError
from mmwsss.registry import HOOKS


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops at a loss that is NaN or infinite, with a good checkpoint left.

    A step notes the first such iteration on the device and waits for nothing; it is
    looked at every ``interval`` iterations and before a checkpoint is written, so that
    no checkpoint is made of what went wrong. All trainings of ``mmwsss train`` have it.

    Args:
        interval: Iterations between looks.
    """

    def __init__(self, *, interval: int = 50) -> None:
        if interval < 1:
            raise ValueError(f'interval must be 1 or more, got {interval}')
        self.interval = interval
        # The first iteration without a finite loss; a tensor once there is a loss.
        self._first: torch.Tensor | None = None
        # When the pointer of an earlier run in this folder was written, None without.
        self._older: int | None = None

    def before_train(self, runner) -> None:
        """Note the checkpoints of an earlier run that this one does not go on from."""
        self._older = None if runner._resume else _written(runner)

    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Note whether the loss is a number; now and then, look."""
        loss = (outputs or {}).get('loss')
        if not isinstance(loss, torch.Tensor):
            return
        if self._first is None:
            self._first = loss.new_full((), _NEVER, dtype=torch.int64)
        now = torch.where(loss.detach().isfinite().all(), _NEVER, runner.iter + 1)
        self._first = torch.minimum(self._first, now)
        if self.every_n_train_iters(runner, self.interval):
            self._stop(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Look before anything is written; only the first process gets here."""
        self._stop(runner, together=False)

    def _stop(self, runner, *, together: bool = True) -> None:
        if self._first is None:
            return
        first = self._first.clone()
        if together:
            # One process may see it an iteration before the others.
            all_reduce(first, 'min')
        if int(first) == _NEVER:
            return
        good = 'there is no checkpoint from before'
        if _written(runner) not in (None, self._older):
            good = f'the last good checkpoint is {_pointer(runner).read_text().strip()}'
        raise InputError(
            f'the loss of iteration {int(first)} is not finite; {good}: lower the '
            'learning rate, or look at the losses before it in the log'
        )


def _pointer(runner) -> Path:
    return Path(runner.work_dir) / 'last_checkpoint'


def _written(runner) -> int | None:
    pointer = _pointer(runner)
    return pointer.stat().st_mtime_ns if pointer.is_file() else None


_NEVER = 2**62
