"""Checkpoints that hold a training whole and are whole themselves."""

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import all_gather_object, get_rank, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook

from mmwsss.checkpoints import CONFIG_TEXTS, as_plain, is_data
from mmwsss.errors import InputError, Terminated
from mmwsss.models.labelers.history import (
    PredictionHistory,
    find_histories,
    merged_histories,
)
from mmwsss.registry import HOOKS

from .checkpoint_files import BACKEND, remove_abandoned, write_pointer
from .random_state import (
    iteration_seed,
    random_state,
    seed_everything,
    set_random_state,
)
from .train_loop import ResumableTrainLoop

# Their order and metadata count, so they are changed in place.
_STATE_DICTS = ('state_dict', 'ema_state_dict')
# Files that go when a checkpoint is written, told in it.
_REPLACED = 'replaced_ckpts'


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's, for a training that goes on as if nothing had happened.

    * A checkpoint is written under another name, synced and renamed, with its SHA-256
      beside it (``iter_300.pth.sha256``, for ``sha256sum --check``); so is
      ``last_checkpoint``. What it replaces is removed after that and not before.
    * It holds the random states of all processes and, with
      ``mmwsss.ResumableTrainLoop``, the position in the stream of samples.
    * It holds tensors and plain values alone, so that it can be read without running
      anything; ``mmwsss.checkpoints`` reads it.
    * In several processes each holds a part of a ``PredictionHistory``; all of them
      hand their parts over first.
    * A validation leaves the random numbers of the training alone.
    * After SIGTERM the iteration is ended and saved, and the training stops with
      ``Terminated`` (exit code 143); with ``mmwsss.ResumableTrainLoop`` alone.

    Arguments and names of files are MMEngine's. Storage other than the disk
    (``out_dir`` with a scheme, ``backend_args``) is written as MMEngine does.
    """

    # Random state of the training while a validation draws from its own.
    _held: dict | None = None
    _on_disk = False
    _states: list[dict] | None = None
    _resumed_states: list[dict] | None = None
    # Iterations that the last checkpoint is after.
    _saved: int | None = None

    # -------------------------------------------------------------------------- save
    def before_train(self, runner) -> None:
        """Find the folder and tidy it up."""
        folder = str(self.out_dir or runner.work_dir)
        ours = self.backend_args in (None, dict(backend=BACKEND))
        self._on_disk = ours and self.file_client_args is None and '://' not in folder
        if self._on_disk:
            self.backend_args = dict(backend=BACKEND)
        super().before_train(runner)
        gathered = getattr(runner.optim_wrapper, '_accumulative_counts', 1)
        if not self.by_epoch and self.interval % gathered:
            runner.logger.warning(
                'checkpoints every %d iterations hold no gradients of the %d that are '
                'added up, so a resumed run differs; take a multiple as interval',
                *(self.interval, gathered),
            )
        if self._on_disk and is_main_process():
            remove_abandoned(Path(self.out_dir))
        if self._on_disk and self.max_keep_ckpts > 0:
            # One more for a moment: the oldest goes when the newest is there.
            self.keep_ckpt_ids = deque(self.keep_ckpt_ids)
            self._remove_oldest(runner)
        if self._on_disk:
            self._remove_replaced(runner)
        last = runner.message_hub.runtime_info.get('last_ckpt')
        if runner._resume and last:
            # A validation that it begins with is written into it, if it was the best.
            self.last_ckpt = str(Path(self.out_dir, Path(last).name))

    def _save_checkpoint(self, runner) -> None:
        with merged_histories(_saved_histories(runner)):
            super()._save_checkpoint(runner)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if self.save_best:
            with merged_histories(_saved_histories(runner)), self._removing_last():
                super()._save_best_checkpoint(runner, metrics)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        self._states = all_gather_object(self._held or random_state())
        self._saved = None
        try:
            if self._on_disk:
                self._save_whole(runner, step, meta)
            else:
                super()._save_checkpoint_with_step(runner, step, meta)
        finally:
            self._states = None
        self._saved = meta['iter']

    def _save_whole(self, runner, step: int, meta: dict) -> None:
        keep = self.max_keep_ckpts > 0
        if keep and step not in self.keep_ckpt_ids:
            self.keep_ckpt_ids.append(step)
            # With the one that goes: if that does not happen, a resumed run does it.
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        runner.message_hub.update_info(_REPLACED, self.file_backend.to_be_removed)
        path = Path(self.out_dir, self.filename_tmpl.format(step))
        self.last_ckpt = str(path)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            path.name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            write_pointer(Path(runner.work_dir, 'last_checkpoint'), self.last_ckpt)
        if keep:
            self._remove_oldest(runner)

    def _remove_oldest(self, runner) -> None:
        while len(self.keep_ckpt_ids) > self.max_keep_ckpts:
            old = Path(
                self.out_dir, self.filename_tmpl.format(self.keep_ckpt_ids.popleft())
            )
            if is_main_process() and old.is_file():
                self.file_backend.remove(old)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))

    def _remove_replaced(self, runner) -> None:
        """What a run that was killed after its last save would have removed."""
        info = runner.message_hub.runtime_info
        kept = {str(v) for k, v in info.items() if k.startswith('best_ckpt')}
        for name in info.get(_REPLACED, ()):
            if is_main_process() and name not in kept and Path(name).is_file():
                self.file_backend.remove(name)

    @contextmanager
    def _removing_last(self) -> Iterator[None]:
        if not self._on_disk:
            yield
            return
        with self.file_backend.removing_last():
            yield

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Add what a resumed run needs, and leave what can be read safely."""
        if self._states is not None:
            checkpoint['random_states'] = self._states
            loop = runner.train_loop
            if isinstance(loop, ResumableTrainLoop):
                checkpoint['position'] = loop.position(checkpoint['meta']['iter'])
                # One is written before the validation, one more if that was the best.
                checkpoint['validated'] = self._held is not None
        for name, part in checkpoint.items():
            if name in _STATE_DICTS:
                for key, value in part.items():
                    part[key] = as_plain(value, f'{name}.{key}')
            else:
                checkpoint[name] = as_plain(part, name)
        for *path, last in CONFIG_TEXTS:
            holder = checkpoint
            for key in path:
                holder = holder.get(key, {})
            if last in holder and not is_data(holder[last]):
                # Of no use to a reader that does not run it.
                holder[last] = ''

    # ----------------------------------------------------------------------- SIGTERM
    def after_train_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Save as MMEngine does, and save and stop where SIGTERM came."""
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        loop, done = runner.train_loop, runner.iter + 1
        if not isinstance(loop, ResumableTrainLoop) or not loop.termination.due():
            return
        # In between there are gradients that a checkpoint does not hold.
        if done % getattr(runner.optim_wrapper, '_accumulative_counts', 1):
            return
        if self._saved != done and not self.by_epoch:
            with merged_histories(_saved_histories(runner)):
                self._save_checkpoint_with_step(
                    runner, done, dict(epoch=runner.epoch, iter=done)
                )
        self._stop(runner)

    def after_val_iter(
        self, runner, batch_idx: int, data_batch=None, outputs=None
    ) -> None:
        """Stop where SIGTERM came, if what is validated is saved.

        Otherwise, and in several processes, the validation is ended first.
        """
        loop = runner.train_loop if self._held is not None else None
        if not isinstance(loop, ResumableTrainLoop) or get_world_size() > 1:
            return
        if loop.termination.asked and self._saved == runner.iter:
            self._stop(runner)

    def _stop(self, runner) -> None:
        runner.logger.info(
            'SIGTERM: stopped after %d iterations, saved in %s; the same command with '
            '--resume goes on from there',
            *(self._saved, self.last_ckpt),
        )
        raise Terminated

    # ------------------------------------------------------------------------ resume
    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Take over where samples and random numbers were."""
        if not runner._resume:
            return
        position, iteration = checkpoint.get('position'), checkpoint['meta']['iter']
        self._resumed_states = checkpoint.get('random_states')
        if isinstance(runner.train_loop, ResumableTrainLoop):
            runner.train_loop.start_at(
                iteration, position, validated=checkpoint.get('validated', True)
            )
            now = runner.train_loop.position(iteration)
            _tell_what_changed(runner, position, now)

    def before_train_epoch(self, runner) -> None:
        """Draw on where the checkpoint was written."""
        states, self._resumed_states = self._resumed_states, None
        if states is None:
            return
        if len(states) == get_world_size():
            set_random_state(states[get_rank()])
        else:
            # Otherwise two processes would draw the same, or nothing would fit.
            seed_everything(iteration_seed(runner.seed, get_rank(), runner.iter))

    def before_val(self, runner) -> None:
        """Note the random numbers of the training."""
        self._held = random_state()

    def after_val(self, runner) -> None:
        """Go on with them."""
        if self._held is not None:
            set_random_state(self._held)
            self._held = None


def _tell_what_changed(runner, before: dict | None, now: dict) -> None:
    """One line for a run that goes on with other processes or batches."""
    sizes = ('world_size', 'batch_size')
    if before is None or all(before[name] == now[name] for name in sizes):
        return
    runner.logger.log(
        logging.WARNING,
        'resumed with %d x %d samples an iteration (processes x batch), which was '
        '%d x %d: the stream of samples goes on after the first %d, learning rate and '
        'iterations stay as the config says%s',
        *(now[name] for name in sizes),
        *(before[name] for name in sizes),
        before['samples'],
        ''
        if before['world_size'] == now['world_size']
        else ', and each process draws new random numbers',
    )


def _saved_histories(runner) -> list[PredictionHistory]:
    """Those of the model, and of the averaged copy that MMEngine saves with it."""
    if get_world_size() == 1:
        return []
    own = find_histories(runner.model)
    found = list(own)
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            copied = find_histories(hook.ema_model)
            # A copy follows the model's buffers, which the parts of a history are not.
            for source, copy in zip(own, copied, strict=True):
                copy.bank.copy_(source.bank)
            found += copied
    return found


def check_checkpoint_hook(runner) -> None:
    """Refuse a distributed training whose history could not be saved.

    Raises:
        InputError: Names the line to change.
    """
    if get_world_size() == 1 or not find_histories(runner.model):
        return
    for hook in runner.hooks:
        plain = isinstance(hook, MMEngineCheckpointHook)
        if plain and not isinstance(hook, CheckpointHook):
            raise InputError(
                'in several processes each holds a part of the history of predictions, '
                f"which MMEngine's {type(hook).__name__} cannot save; set "
                "default_hooks.checkpoint.type to 'mmwsss.CheckpointHook'"
            )
