"""Checkpoints of a model whose history is shared out, without real processes."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook, LoggerHook
from torch import nn

from mmwsss.engine import CheckpointHook, checkpoint_hook
from mmwsss.engine.checkpoint_hook import check_checkpoint_hook
from mmwsss.engine.hooks import (
    ProgressHook,
    ReliabilityGatedPseudoLabelHook,
    check_hooks,
)
from mmwsss.errors import InputError
from mmwsss.models.labelers import PredictionHistory, ReliabilityGate
from mmwsss.registry import HOOKS

pytestmark = pytest.mark.mm


class Notes(PredictionHistory):
    """Writes down when it is put together and taken apart."""

    def __init__(self, events, name):
        super().__init__(grid_size=2)
        self.events, self.name = events, name

    @contextmanager
    def merged(self, *, everywhere=False):
        assert not everywhere
        self.events.append(f'merge {self.name}')
        try:
            yield
        finally:
            self.events.append(f'part {self.name}')


def noted_runner(events, monkeypatch, *, world_size=2):
    monkeypatch.setattr(checkpoint_hook, 'get_world_size', lambda: world_size)
    monkeypatch.setattr(
        MMEngineCheckpointHook,
        '_save_checkpoint',
        lambda self, runner: events.append('save'),
    )
    monkeypatch.setattr(
        MMEngineCheckpointHook,
        '_save_best_checkpoint',
        lambda self, runner, metrics: events.append(f'best {metrics}'),
    )
    average = EMAHook()
    average.ema_model = nn.Sequential(Notes(events, 'copy'))
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(Notes(events, 'own')))
    return SimpleNamespace(model=model, hooks=[LoggerHook(), average])


TOGETHER, APART = ['merge own', 'merge copy'], ['part copy', 'part own']


def test_histories_are_put_together_before_each_checkpoint_and_then_dropped(
    monkeypatch,
):
    events = []
    runner = noted_runner(events, monkeypatch)
    CheckpointHook()._save_checkpoint(runner)
    assert events == [*TOGETHER, 'save', *APART]
    events.clear()
    CheckpointHook(save_best='mIoU')._save_best_checkpoint(runner, 7)
    assert events == [*TOGETHER, 'best 7', *APART]
    events.clear()
    # Nothing would be saved, so nothing is exchanged.
    CheckpointHook()._save_best_checkpoint(runner, 7)
    assert events == []
    CheckpointHook()._save_checkpoint(noted_runner(events, monkeypatch, world_size=1))
    assert events == ['save']


def test_an_averaged_copy_is_saved_with_the_history_of_the_model(monkeypatch):
    runner = noted_runner([], monkeypatch)
    own, copied = runner.model[1][0].bank, runner.hooks[1].ema_model[0].bank
    own.fill_(7)
    CheckpointHook()._save_checkpoint(runner)
    assert copied.eq(7).all()
    own.fill_(8)
    assert copied.eq(7).all()


def test_histories_come_apart_when_saving_fails(monkeypatch):
    events = []
    runner = noted_runner(events, monkeypatch)

    def full_disk(self, runner):
        raise OSError('no space left')

    monkeypatch.setattr(MMEngineCheckpointHook, '_save_checkpoint', full_disk)
    with pytest.raises(OSError, match='no space left'):
        CheckpointHook()._save_checkpoint(runner)
    assert events == [*TOGETHER, *APART]


def test_it_is_built_from_a_config_as_mmengines():
    hook = HOOKS.build(
        dict(type='mmwsss.CheckpointHook', by_epoch=False, interval=5, save_best='mIoU')
    )
    assert isinstance(hook, MMEngineCheckpointHook)
    assert (hook.interval, hook.by_epoch, hook.save_best) == (5, False, ['mIoU'])
    assert hook.priority == MMEngineCheckpointHook.priority


class Gated(nn.Module):
    def __init__(self, *, history):
        super().__init__()
        self.progress = 0.0
        config = dict(type='mmwsss.PredictionHistory') if history else None
        self.gate = ReliabilityGate(num_classes=3, history=config)


def start(checkpoint, *, history=True):
    hooks = [ProgressHook(), ReliabilityGatedPseudoLabelHook(), *checkpoint]
    return SimpleNamespace(model=Gated(history=history), hooks=hooks)


def test_several_processes_with_a_hook_that_cannot_save_are_refused(monkeypatch):
    plain = [MMEngineCheckpointHook()]
    check_hooks(start(plain))
    monkeypatch.setattr(checkpoint_hook, 'get_world_size', lambda: 2)
    # Also by the hook that shares the history out, which every trainer calls.
    for check in (
        check_hooks,
        check_checkpoint_hook,
        ReliabilityGatedPseudoLabelHook().before_run,
    ):
        with pytest.raises(InputError, match=r"checkpoint\.type to 'mmwsss\.Check"):
            check(start(plain))
        with pytest.raises(InputError, match=r'processes'):
            check(start([CheckpointHook(), *plain]))
    for checkpoint in ([CheckpointHook()], []):
        check_hooks(start(checkpoint))
    check_hooks(start(plain, history=False))
