"""Checkpoints of models that keep a part of their state in each process."""

from mmengine.dist import get_world_size
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook

from mmwsss.errors import InputError
from mmwsss.models.labelers.history import (
    PredictionHistory,
    find_histories,
    merged_histories,
)
from mmwsss.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """MMEngine's, for models with a ``PredictionHistory`` in several processes too.

    The runner makes a checkpoint in the first process only, while each of them holds
    a part of the history. Here all of them hand their parts over first. Arguments and
    files are MMEngine's; in one process there is no difference.
    """

    def _save_checkpoint(self, runner) -> None:
        with merged_histories(_saved_histories(runner)):
            super()._save_checkpoint(runner)

    def _save_best_checkpoint(self, runner, metrics) -> None:
        if self.save_best:
            with merged_histories(_saved_histories(runner)):
                super()._save_best_checkpoint(runner, metrics)


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
