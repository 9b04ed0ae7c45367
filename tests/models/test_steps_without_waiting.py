"""What a training step asks of the host: never to wait, and nothing for each image."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from no_waiting import NoWaiting

from mmwsss.apis.benchmark import training_cases
from mmwsss.apis.benchmark.case import Setting
from mmwsss.functional import cam, local_affinity

pytestmark = pytest.mark.mm

# The segmentor lays each image's labels on its sample: views, nothing for a device.
VIEWS = ('aten::select.int', 'aten::unsqueeze')
NAMED = {case.name: case for case in training_cases.CASES}
CASES = {
    'segmentor': NAMED['step_clipdino_tiny'],
    'SIPE': NAMED['step_sipe_mobileone'],
    'AE-SIPE': NAMED['step_aesipe_mobileone'],
    'CrossArch': training_cases.TrainingStep(
        name='step_crossarch',
        what='',
        config='crossarch_synth.py',
        options={'model.teacher_checkpoint': 'untrained'},
        batch_size=2,
        side=48,
        present=1,
    ),
}


class Watched(NoWaiting):
    """Counts the operations by name, of which none may wait."""

    def __init__(self):
        super().__init__()
        self.number = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.name() not in VIEWS:
            self.number[function.name()] += 1
        return super().__torch_dispatch__(function, types, args, kwargs)


@pytest.fixture
def like_cuda(monkeypatch):
    """Take the ways that are there for a device that the host does not wait for."""
    monkeypatch.setattr(cam, '_runs_ahead', lambda tensor: True)
    at_once = local_affinity._refine_at_once
    monkeypatch.setattr(local_affinity, '_refine_in_cache', at_once)


def operations_of_a_step(case, batch_size, folder):
    """Losses and gradients of a batch; no operation may wait for the device."""
    small = replace(case, batch_size=batch_size, side=min(case.side, 64))
    setting = Setting(device='cpu', cores=1, seed=0, folder=folder)
    model, _, inputs, samples = small.make(setting)
    batch = dict(inputs=inputs, data_samples=samples)
    batch = model.data_preprocessor(batch, training=True)
    with Watched() as watched:
        losses = model(**batch, mode='loss')
        total = sum(value for name, value in losses.items() if 'loss' in name)
        total.backward()
        if getattr(model, 'teacher_head', None) is not None:
            model.update_teacher(0.999)
    assert torch.isfinite(total)
    return watched.number


@pytest.mark.parametrize('name', CASES)
def test_step_waits_for_nothing_and_has_no_loop_over_images(name, like_cuda, tmp_path):
    few = operations_of_a_step(CASES[name], 2, tmp_path)
    more = operations_of_a_step(CASES[name], 4, tmp_path)
    assert sum(few.values()) > 100
    assert few == more
