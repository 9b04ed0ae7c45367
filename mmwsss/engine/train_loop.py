"""A training loop that goes on at the exact sample without looking at past ones."""

import logging
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

import torch
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop
from mmengine.runner.base_loop import BaseLoop
from mmengine.runner.utils import calc_dynamic_intervals
from torch.utils.data import BatchSampler, DataLoader, Sampler

from mmwsss.errors import InputError
from mmwsss.registry import LOOPS

from .termination import Termination, prepare_workers


@LOOPS.register_module()
class ResumableTrainLoop(IterBasedTrainLoop):
    """MMEngine's iteration-based loop, resumed in no time.

    MMEngine draws every past batch again, photos and all. Here the sampler is set to
    the position that the checkpoint names: at once for samplers with a ``skip`` (all
    of this package), and by drawing past indices alone for any other. The position
    counts samples of all processes together, so that a run may go on with another
    number of them or another batch size.

    Use it with ``mmwsss.CheckpointHook``, which saves the position and the random
    states, and saves and stops after SIGTERM; without the hook the position is
    iterations x batch size x processes.

    Args:
        runner: MMEngine's.
        dataloader: Config or loader.
        max_iters: Iterations of the whole training.
        val_begin: First iteration that may be followed by a validation.
        val_interval: Iterations between validations.
        dynamic_intervals: Pairs of an iteration and the interval that begins there.
    """

    def __init__(
        self,
        runner,
        dataloader: DataLoader | dict,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        # Not the parent's: in upstream it starts workers, which would load photos
        # from the beginning before a checkpoint could say where to begin.
        BaseLoop.__init__(self, runner, dataloader)
        if max_iters != int(max_iters):
            raise InputError(f'max_iters must be a whole number, got {max_iters}')
        self._max_iters, self._max_epochs = int(max_iters), 1
        self._iter = self._epoch = 0
        self.val_begin, self.val_interval = val_begin, val_interval
        self.stop_training = False
        self.dynamic_milestones, self.dynamic_intervals = calc_dynamic_intervals(
            val_interval, dynamic_intervals
        )
        metainfo = getattr(self.dataloader.dataset, 'metainfo', None)
        if metainfo is not None:
            self.runner.visualizer.dataset_meta = metainfo
        # Samples of all processes before the first iteration of this run.
        self._first_iter, self._first_sample = 0, 0
        self._validated = True
        self.termination = Termination()

    # ---------------------------------------------------------------------- position
    @property
    def batch_size(self) -> int:
        """Samples of an iteration in this process."""
        return self.dataloader.batch_size or self.dataloader.batch_sampler.batch_size

    def position(self, iterations: int) -> dict[str, int | None]:
        """Where the stream of samples is after so many iterations, for a checkpoint."""
        batch, world_size = self.batch_size, get_world_size()
        done = iterations - self._first_iter
        return {
            'samples': self._first_sample + done * batch * world_size,
            'batch_size': batch,
            'world_size': world_size,
            # A training without a seed in its config has drawn one.
            'seed': getattr(self.dataloader.sampler, 'seed', None),
        }

    def start_at(
        self, iterations: int, position: dict | None, *, validated: bool = True
    ) -> None:
        """Go on after so many iterations.

        Args:
            iterations: Done before.
            position: Of the stream of samples then.
            validated: Whether a validation due after them is done too; otherwise the
                run begins with it, and nothing is missing from scores and best ones.
        """
        self._validated = validated
        world_size = get_world_size()
        whole_batch = self.batch_size * world_size
        samples = position['samples'] if position else iterations * whole_batch
        self._first_iter = iterations
        # Each process begins with a sample of its own.
        self._first_sample = -(-samples // world_size) * world_size
        if position and position['seed'] is not None:
            self.dataloader.sampler.seed = position['seed']

    # -------------------------------------------------------------------------- run
    def run(self) -> torch.nn.Module:
        """Train."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._iter != self._first_iter:
            # Resumed without mmwsss.CheckpointHook.
            self.start_at(self._iter, None)
        prepare_workers(self.dataloader)
        prepare_workers(getattr(self.runner.val_loop, 'dataloader', None))
        # Closed at the end, so that workers do not wait for the garbage collection.
        with (
            self.termination,
            closing(self._batches()) as self.dataloader_iterator,
        ):
            if not self._validated:
                self._validate_if_due()
            while self._iter < self._max_iters and not self.stop_training:
                self.runner.model.train()
                self.run_iter(next(self.dataloader_iterator))
                self._validate_if_due()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _validate_if_due(self) -> None:
        self._decide_current_val_interval()
        due = self._iter % self.val_interval == 0 or self._iter == self._max_iters
        if due and self._iter >= self.val_begin and self.runner.val_loop is not None:
            self.runner.val_loop.run()

    def _batches(self) -> Iterator:
        """Batches from the position on, without an end."""
        loader = self.dataloader
        done = self._first_sample // get_world_size()
        epoch, to_drop = move_sampler(loader, done, batch_size=self.batch_size)
        empty_passes = 0
        while empty_passes < 2:
            # A loader that begins draws a number, a resumed one at another moment.
            with torch.random.fork_rng(devices=[]):
                batches = iter(loader)
            empty_passes += 1
            for batch in batches:
                empty_passes = 0
                if to_drop:
                    to_drop -= 1
                else:
                    yield batch
            epoch += 1
            _set_epoch(loader.sampler, epoch)
        raise InputError(
            f'the training set gives no batch: it has {len(loader.dataset)} samples '
            f'for batches of {self.batch_size}; take smaller ones or drop_last=False'
        )


def move_sampler(
    loader: DataLoader, num_samples: int, *, batch_size: int
) -> tuple[int, int]:
    """Make a loader begin after ``num_samples`` samples, without loading them.

    Args:
        loader: Not iterated yet.
        num_samples: Of this process, counted from the start of the training.
        batch_size: Of this process.

    Returns:
        The epoch that the sampler is in, 0 for endless ones; and the batches that the
        caller has to drop, since only the loader's own batch sampler could.
    """
    if not num_samples:
        return 0, 0
    if type(loader.batch_sampler) is not BatchSampler:
        print_log(
            f'{type(loader.batch_sampler).__name__} cannot begin in the middle, so '
            'past batches are loaded and dropped',
            logger='current',
            level=logging.WARNING,
        )
        return 0, num_samples // batch_size
    if hasattr(loader.sampler, 'skip'):
        loader.sampler.skip(num_samples)
        return 0, 0
    continued = _ContinuedSampler(loader.sampler)
    loader.batch_sampler.sampler = continued
    return continued.drop(num_samples // batch_size, loader.batch_sampler), 0


class _ContinuedSampler(Sampler):
    """A sampler whose first pass is already under way."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self._under_way: Iterator | None = None

    def drop(self, number: int, batches: BatchSampler) -> int:
        """Draw and forget the indices of so many batches; the epoch they end in."""
        epoch, indices, in_epoch = 0, iter(self.sampler), 0
        while number:
            drawn = sum(1 for _ in islice(indices, batches.batch_size))
            if drawn == batches.batch_size or (drawn and not batches.drop_last):
                number, in_epoch = number - 1, in_epoch + 1
                continue
            if not in_epoch:
                # The loop finds the same and says so.
                break
            epoch, in_epoch = epoch + 1, 0
            _set_epoch(self.sampler, epoch)
            indices = iter(self.sampler)
        self._under_way = indices
        return epoch

    def __iter__(self) -> Iterator:
        under_way, self._under_way = self._under_way, None
        return iter(self.sampler) if under_way is None else under_way

    def __len__(self) -> int:
        return len(self.sampler)


def _set_epoch(sampler: Sampler, epoch: int) -> None:
    if hasattr(sampler, 'set_epoch'):
        sampler.set_epoch(epoch)
