"""The configs of CrossArch: a student's config knows the teacher that was trained."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmwsss.models  # noqa: F401
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ROOT = Path(__file__).resolve().parents[1]
NAMES = ('crossarch_synth', 'crossarch_smoke', 'crossarch_r50_vits_voc')


def load(name):
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    init_default_scope(config.default_scope)
    return config


@pytest.mark.parametrize('name', NAMES)
def test_the_teacher_is_the_one_of_its_own_config(name):
    student, teacher = load(name), load(f'{name}_teacher')
    assert student.teacher_checkpoint == f'work_dirs/{name}_teacher'
    known, trained = (
        {k: v for k, v in branch.items() if k not in ('weights', 'backbone')}
        for branch in (student.model.teacher, teacher.model.student)
    )
    assert known == trained
    # Its weights come from the training, not from the backbone's file.
    backbone = dict(teacher.model.student.backbone)
    dropped = set(backbone) - set(student.model.teacher.backbone)
    assert dropped <= {'init_cfg', 'frozen_stages'}
    assert student.model.teacher.backbone == {
        k: v for k, v in backbone.items() if k not in dropped
    }
    assert 'teacher' not in teacher.model
    for key in ('train_dataloader', 'val_dataloader'):
        assert student[key].dataset == teacher[key].dataset


@pytest.mark.parametrize('name', ['crossarch_synth', 'crossarch_smoke'])
def test_network_builds_and_speaks(name, tmp_path):
    torch.manual_seed(0)
    teacher = MODELS.build(load(f'{name}_teacher').model)
    torch.save({'state_dict': teacher.state_dict()}, tmp_path / 'teacher.pth')
    config = load(name)
    config.model.teacher_checkpoint = str(tmp_path / 'teacher.pth')
    config.model.test_scales = (1.0,)
    model = MODELS.build(config.model).eval()
    assert model.default_kind == 'proj'
    assert teacher.default_kind == 'direct'
    photo = torch.randint(0, 256, (3, 48, 80), dtype=torch.uint8)
    for kind, found in model.all_cams(photo, torch.ones(1)).items():
        assert found.cams.shape == (1, 48, 80), kind
    expected = teacher.eval().cams(photo, torch.ones(1)).cams
    if name == 'crossarch_synth':
        found = model.cams(photo, torch.ones(1), kind='teacher').cams
        torch.testing.assert_close(found, expected)


def test_controls_of_the_drawn_benchmark():
    for change, parts in (
        ({'model.teacher': None}, {'student'}),
        ({'model.teacher_checkpoint': 'untrained'}, {'student', 'projection'}),
        (
            {'model.paradigm': 'co_training', 'model.teacher_checkpoint': None},
            {'student', 'projection', 'teacher'},
        ),
    ):
        config = load('crossarch_synth')
        config.merge_from_dict(change)
        model = MODELS.build(config.model)
        assert {n.split('.')[0] for n, _ in model.named_parameters()} == parts
