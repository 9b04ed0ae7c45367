from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmwsss.engine.hooks import (
    ProgressHook,
    ReliabilityGatedPseudoLabelHook,
    TeacherHook,
    check_hooks,
    find_gate,
    training_labels,
)
from mmwsss.errors import InputError
from mmwsss.models.labelers import ReliabilityGate


def runner_at(iteration, model, *, max_iters=100):
    return SimpleNamespace(iter=iteration, max_iters=max_iters, model=model)


@pytest.mark.parametrize(
    ('iteration', 'phase', 'gate'),
    [
        (0, 'explore', 0.5),
        (39, 'explore', 0.5),
        (40, 'repair', 0.5),
        (50, 'repair', 0.65),  # half of the cosine
        (60, 'consolidate', 0.8),
        (99, 'consolidate', 0.8),
    ],
)
def test_phases_follow_the_progress(iteration, phase, gate):
    hook = ReliabilityGatedPseudoLabelHook(
        repair_start=0.4, consolidate_start=0.6, gate_start=0.5, gate_end=0.8
    )
    model = nn.Sequential(ReliabilityGate(num_classes=3))
    hook.before_train_iter(runner_at(iteration, model), 0)
    assert model[0].phase == phase
    assert model[0].base_gate == pytest.approx(gate)


def test_wrong_order_of_the_phases_is_named():
    with pytest.raises(ValueError, match='repair_start'):
        ReliabilityGatedPseudoLabelHook(repair_start=0.7, consolidate_start=0.6)


def test_a_model_without_gate_or_teacher_is_refused():
    with pytest.raises(InputError, match='ReliabilityGatedLabeler'):
        find_gate(nn.Linear(1, 1))
    with pytest.raises(InputError, match='loss_teacher'):
        TeacherHook().before_run(SimpleNamespace(model=nn.Linear(1, 1)))


class ModelOfAllParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.progress = 0.0
        self.gate = ReliabilityGate(num_classes=3)
        self.teacher_head = nn.Linear(1, 1)


ALL_HOOKS = (ProgressHook, ReliabilityGatedPseudoLabelHook, TeacherHook)


@pytest.mark.parametrize('forgotten', ALL_HOOKS)
def test_a_forgotten_hook_is_named_before_the_training(forgotten):
    hooks = [kind() for kind in ALL_HOOKS]
    model = ModelOfAllParts()
    check_hooks(SimpleNamespace(model=model, hooks=hooks))
    hooks = [hook for hook in hooks if not isinstance(hook, forgotten)]
    with pytest.raises(InputError, match=f'needs {forgotten.__name__},.*custom_hooks'):
        check_hooks(SimpleNamespace(model=model, hooks=hooks))


def test_a_model_without_parts_of_ours_needs_no_hook():
    model = nn.Linear(1, 1)
    model.teacher_head = None
    check_hooks(SimpleNamespace(model=model, hooks=[]))


def test_teacher_is_a_plain_mean_at_first_and_then_forgets():
    momenta = []
    model = SimpleNamespace(update_teacher=momenta.append)
    hook = TeacherHook(momentum=0.9)
    for iteration in (0, 1, 4, 99):
        hook.after_train_iter(SimpleNamespace(iter=iteration, model=model), 0)
    assert momenta == [0.0, 0.5, pytest.approx(0.8), 0.9]


class Photos:
    """As much of a data set as the hook reads."""

    def __init__(self, entries):
        self.entries = entries

    def __len__(self):
        return len(self.entries)

    def get_data_info(self, index):
        return self.entries[index]


def test_labels_of_all_training_photos_also_of_joined_sets():
    first = Photos([dict(img_id='a', image_label=torch.tensor([1, 0]))])
    second = Photos([dict(img_path='x/b.jpg', image_label=torch.tensor([1, 1]))])
    joined = SimpleNamespace(datasets=[first, second])
    ids, labels = training_labels(joined)
    assert ids == ['a', 'b']
    assert labels.tolist() == [[1, 0], [1, 1]]
    assert training_labels(SimpleNamespace(dataset=joined))[0] == ids


def test_a_data_set_without_image_labels_is_refused():
    with pytest.raises(InputError, match='history=None'):
        training_labels(Photos([dict(img_path='a.jpg')]))
