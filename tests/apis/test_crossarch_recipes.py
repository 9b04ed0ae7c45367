"""CrossArch's recipes: who is trained on what, and who chooses thresholds."""

import copy
import json
import os
import subprocess
import sys
from functools import cache

import pytest
import tiny_run
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmwsss.models  # noqa: F401
from mmwsss.apis.recipe import load_recipe, run_configs, stages_of
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ROOT = tiny_run.ROOT
RECIPES = sorted((ROOT / 'configs/recipes').glob('crossarch_*.py'))
NAMES = [path.stem for path in RECIPES]
SYNTH = [name for name in NAMES if name.startswith('crossarch_synth')]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@cache
def load(name):
    return load_recipe(ROOT / f'configs/recipes/{name}.py', root=ROOT)


@cache
def first_runs(name):
    """Row -> folder, configs by name and stages by name, of the first seed."""
    recipe = load(name)
    found = {}
    for run, (row, seed) in recipe.runs().items():
        if seed != recipe.seeds[0]:
            continue
        configs = run_configs(recipe, run)
        stages = stages_of(recipe, run, root=ROOT, configs=configs)
        named = {path.stem: config for path, config in configs.items()}
        found[row] = recipe.work_dir / run, named, {s.name: s for s in stages}
    return found


def word_after(stage, option):
    return stage.command[stage.command.index(option) + 1]


def test_recipes_of_the_issue_are_there():
    assert {'crossarch_synth', 'crossarch_smoke', 'crossarch_voc'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_rows_are_networks_that_have_their_maps(name):
    for row, (folder, configs, stages) in first_runs(name).items():
        config = copy.deepcopy(configs['config'])
        for branch in ('student', 'teacher'):
            if config.model.get(branch):
                config.model[branch].pop('weights', None)
        init_default_scope(config.default_scope)
        model = MODELS.build(config.model)
        kinds = {
            word_after(stage, '--kind')
            for stage in stages.values()
            if stage.command[1].endswith('make_cams.py')
        }
        assert kinds <= set(model.kinds), row
        # Photos without the object must be able to have a map.
        assert model.gate is None, row
        if model.teacher_branch is not None and model.paradigm == 'teacher_student':
            assert model.teacher_checkpoint in (f'{folder}/teacher', 'untrained'), row
            assert word_after(stages['train teacher'], '--work-dir') == (
                f'{folder}/teacher'
            )
        first = stages['train teacher'].command[2].rpartition('/')[2]
        first = configs[first.removesuffix('.py')]
        roots = {
            c[f'{split}_dataloader'].dataset.data_root
            for c in (config, first)
            for split in ('train', 'train_eval', 'test')
        }
        assert len(roots) == 1, row
        if 'draw' in stages:
            assert roots == {stages['draw'].command[2]}, row
        assert config.train_cfg.max_iters == config.param_scheduler[0].end, row


@pytest.mark.parametrize('name', NAMES)
def test_a_row_called_teacher_is_what_the_others_learn_from(name):
    recipe = load(name)
    rows = [row for row in recipe.rows if row.split(',')[0] == 'teacher']
    found = first_runs(name)
    for row in rows:
        _, configs, _ = found[row]
        own, taught = configs['config'], configs['teacher']
        assert own.model.student.to_dict() == taught.model.student.to_dict()
        assert not own.model.get('teacher')
        assert own.train_cfg.max_iters == taught.train_cfg.max_iters
        for key in ('param_scheduler', 'train_dataloader'):
            assert own[key] == taught[key], key
        assert own.optim_wrapper.optimizer == taught.optim_wrapper.optimizer
    # Where there are none, rows of another recipe stand for it.
    others = ('modes', 'motion', 'shortcut', 'hard')
    assert rows or name in {f'crossarch_synth_{word}' for word in others}


@pytest.mark.parametrize('name', NAMES)
def test_thresholds_are_not_chosen_on_what_is_scored(name):
    recipe = load(name)
    for row, (_, _, stages) in first_runs(name).items():
        checked = 0
        for stage in stages.values():
            if '--val-list' not in stage.command:
                continue
            checked += 1
            chosen, scored = (word_after(stage, o) for o in ('--val-list', '--list'))
            apart = ('val', 'test') if name in SYNTH else ('train', 'val')
            for path, split in zip((chosen, scored), apart, strict=True):
                assert path.rpartition('/')[2].startswith(split), (row, stage.name)
            # Its CAMs are there: of the list, or of the whole split.
            made = [
                word_after(s, '--list')
                for s in stages.values()
                if '--out' in s.command and word_after(s, '--out') == stage.command[2]
            ]
            for path, split in zip((chosen, scored), apart, strict=True):
                whole = f'{path.rpartition("/")[0]}/{split}.txt'
                assert path in made or whole in made, (row, stage.name)
        assert checked
        for heading, (_, keys) in recipe.columns.items():
            assert ('oracle' in heading) == ('.oracle.' in keys)


def test_what_is_learned_together_has_no_frozen_teacher():
    found = first_runs('crossarch_synth_modes')
    models = {row: configs['config'].model for row, (_, configs, _) in found.items()}
    for row, model in models.items():
        assert (model.paradigm == 'co_training') == row.startswith('co-training')
    asked = {(m.loss_kt.mode, m.loss_kt.metric) for m in models.values()}
    modes = {'global', 'channel', 'spatial', 'spatial_map', 'gram', 'logits'}
    assert {mode for mode, _ in asked} == modes
    weights = {m.loss_kt.loss_weight for m in models.values()}
    assert weights == {0.1, 0.3, 1.0, 3.0}
    assert next(iter(found)) in load('crossarch_synth').rows


def test_steps_after_loading_are_those_of_the_configs():
    for name, config in (('shortcut', 'pasted'), ('bias', 'boxed')):
        _, configs, _ = next(iter(first_runs(f'crossarch_synth_{name}').values()))
        steps = configs[config].train_dataloader.dataset.pipeline
        plain = configs['teacher'].train_dataloader.dataset.pipeline
        assert steps[1].type == 'mmwsss.PasteRegions'
        assert [steps[0], *steps[2:]] == plain
    # Boxes are cut out of the photos of the same training.
    assert steps[1].data_root == configs[config].train_dataloader.dataset.data_root


def test_what_a_hasty_classifier_finds_is_what_its_run_is_trained_with():
    for row, (_, configs, stages) in first_runs('crossarch_synth_shortcut').items():
        found = stages['find shortcuts']
        weights, regions = (word_after(found, o) for o in ('--weights', '--regions'))
        taught = stages['train teacher'].command[2].rpartition('/')[2]
        read = set()
        for name in ('config', taught.removesuffix('.py')):
            loader = configs[name].train_dataloader
            pasted = loader.dataset.pipeline[1].get('data_root')
            read.add((loader.sampler.get('weights'), pasted))
        # Teacher and student have the same.
        assert len(read) == 1, row
        assert read < {(weights, regions), (weights, None), (None, regions)}, row


def test_what_it_finds_is_there_when_it_is_read_and_stays():
    for folder, configs, stages in first_runs('crossarch_synth_shortcut').values():
        found, maps = stages['find shortcuts'], stages['CAMs hasty']
        hasty, stored = str(folder / 'hasty.py'), word_after(maps, '--out')
        assert found.command[2:4] == [hasty, stored]
        assert maps.command[2:4] == [hasty, str(folder / 'hasty')]
        roots = {c.train_dataloader.dataset.data_root for c in configs.values()}
        assert len(roots) == 1
        names = list(stages)
        after = names[names.index('find shortcuts') + 1 :]
        assert {'train teacher', 'train'} <= set(after)
        kept = [*found.outputs, *maps.outputs]
        removed = [path for name in after for path in stages[name].stale]
        assert not any(out.is_relative_to(path) for out in kept for path in removed)


@pytest.mark.slow
def test_a_row_of_the_drawn_benchmark_from_start_to_table(tmp_path):
    """All stages as shipped, with few photos and two iterations."""
    for name in ('configs', 'tools'):
        (tmp_path / name).symlink_to(ROOT / name)
    recipe = tmp_path / 'recipe.py'
    recipe.write_text(
        "_base_ = 'configs/recipes/crossarch_synth.py'\n"
        'small = dict(_base_.stages[0])\n'
        "small['command'] = [*small['command'], '--num-pos', '6', '--num-neg', '6', "
        "'--cells', '2', '2', '2', '2']\n"
        'stages = [small, *_base_.stages[1:]]\n'
        "seeds = [3]\nrows = {'_delete_': True, 'student with transfer': ['tiny']}\n"
        "quick = {'train_cfg.max_iters': 2, 'param_scheduler.0.total_steps': 2, "
        "'param_scheduler.0.end': 2, 'train_dataloader.batch_size': 4}\n"
        "parts = dict(tiny={**quick, 'model.test_scales': (1.0,)})\n"
        'configs = dict(teacher=dict(changes=quick))\n'
        "work_dir = 'work'\n"
    )
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, ROOT / 'tools/run_recipe.py', recipe],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / 'work/summary.json').read_text())
    (row,) = summary['rows'].values()
    for heading, numbers in row.items():
        assert set(numbers['values']) == {'3'}, heading
    states = {
        s['state'] for s in summary['stages']['student_with_transfer/seed_3'].values()
    }
    assert states == {'done'}
    config = Config.fromfile(tmp_path / 'work/student_with_transfer/seed_3/config.py')
    assert config.randomness.seed == 3
    again = subprocess.run(
        [sys.executable, ROOT / 'tools/run_recipe.py', recipe, '--dry-run'],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 'stages that would run: 0' in again.stdout, again.stdout + again.stderr
