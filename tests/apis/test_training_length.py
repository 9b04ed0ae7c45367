"""Shorter and longer trainings, with schedules and intervals that follow."""

import pytest
from mmengine.config import Config

from mmwsss.apis.training_length import with_max_iters
from mmwsss.command.found import find_config
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm


def schedule(config):
    return [(s.type, s.get('begin'), s.end) for s in config.param_scheduler]


def test_schedules_are_stretched_and_intervals_fit():
    config = Config.fromfile(find_config('dual_frozen_msrc_refine'))
    found = with_max_iters(config, 100)
    assert (config.train_cfg.max_iters, found.train_cfg.max_iters) == (400, 100)
    assert found.train_cfg.val_interval == 100
    # 50 of 400 steps of warm-up are 12 of 100.
    assert schedule(found) == [('LinearLR', 0, 12), ('PolyLR', 12, 100)]
    assert schedule(config) == [('LinearLR', 0, 50), ('PolyLR', 50, 400)]
    assert found.default_hooks.checkpoint.interval == 100
    assert found.default_hooks.logger.interval == 50

    longer = with_max_iters(config, 800)
    # Validation at the end alone stays at the end.
    assert longer.train_cfg.val_interval == 800
    assert schedule(longer)[-1] == ('PolyLR', 100, 800)
    assert longer.default_hooks.checkpoint.interval == 250
    often = with_max_iters(Config.fromfile(find_config('clipdino_refine_voc')), 40000)
    assert often.train_cfg.val_interval == 8000


@pytest.mark.parametrize(
    ('name', 'length', 'wanted'),
    [
        # 0.6 steps of warm-up would be none, and a LinearLR of one step never ends.
        ('clipdino_refine_voc', 1000, [('LinearLR', 0, 50), ('PolyLR', 0, 1000)]),
        ('clipdino_refine_voc', 100, [('LinearLR', 0, 10), ('PolyLR', 0, 100)]),
        ('clipdino_refine_voc', 1, [('PolyLR', 0, 1)]),
        ('dual_frozen_msrc', 8, [('PolyLR', 1, 8)]),
        ('clipdino_refine_voc', 160000, [('LinearLR', 0, 100), ('PolyLR', 0, 160000)]),
    ],
)
def test_a_warm_up_is_not_cut_to_nothing(name, length, wanted):
    found = with_max_iters(Config.fromfile(find_config(name)), length)
    assert schedule(found) == wanted


def test_trainings_by_epoch_and_no_training_are_refused():
    config = Config.fromfile(find_config('sipe_msrc'))
    with pytest.raises(InputError, match='1 or more, got 0'):
        with_max_iters(config, 0)
    config.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
    with pytest.raises(InputError, match='counts epochs'):
        with_max_iters(config, 5)
