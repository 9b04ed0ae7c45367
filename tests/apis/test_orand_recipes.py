"""ORANDNet's recipes: every stage finds what it reads, and the configs agree."""

import re

import pytest
import tiny_run
from mmengine.config import DictAction
from mmengine.registry import init_default_scope

import mmwsss.models  # noqa: F401
from mmwsss.apis.recipe import load_recipe, run_configs, stages_of
from mmwsss.apis.stages import in_order
from mmwsss.registry import MODELS

pytestmark = pytest.mark.mm

ROOT = tiny_run.ROOT
RECIPES = sorted((ROOT / 'configs/recipes').glob('orand_*.py'))
NAMES = [path.stem for path in RECIPES]


@pytest.fixture(params=RECIPES, ids=NAMES)
def recipe(request, monkeypatch):
    monkeypatch.chdir(ROOT)
    return load_recipe(request.param, root=ROOT)


def first_run(recipe):
    """Folder, configs by name, and stages by name of the first seed."""
    run = next(iter(recipe.runs()))
    configs = run_configs(recipe, run)
    stages = stages_of(recipe, run, root=ROOT, configs=configs)
    named = {path.stem: config for path, config in configs.items()}
    return recipe.work_dir / run, named, {stage.name: stage for stage in stages}


def test_the_four_recipes_of_the_issue_are_there():
    asked = {'orand_r50_vit_voc', 'orand_amn_mct_voc', 'orand_msrc', 'orand_synth'}
    assert asked <= set(NAMES)


def test_a_stage_reads_what_a_stage_that_it_needs_has_made(recipe):
    folder, configs, stages = first_run(recipe)
    needs = in_order(list(stages.values()))
    before = {}
    for name in needs:
        before[name] = set(needs[name]).union(*(before[n] for n in needs[name]))
    for name, stage in stages.items():
        made = [path for n in before[name] for path in stages[n].outputs]
        own = [*stage.outputs, *stage.stale]
        for found in re.findall(rf'{folder}/[\w./]+', ' '.join(stage.command)):
            if found.removeprefix(f'{folder}/').removesuffix('.py') in configs:
                continue
            known = [
                path
                for path in [*own, *made]
                if found.startswith(str(path))
                or str(path).startswith(f'{found}/')
                # The picture beside the JSON.
                or found == str(path.with_suffix('.png'))
                or str(path).startswith(found.removesuffix('/SegmentationClass') + '/')
            ]
            assert known, f'{name} reads {found}'


def test_columns_are_files_of_stages(recipe):
    folder, _, stages = first_run(recipe)
    outputs = {str(path) for stage in stages.values() for path in stage.outputs}
    for heading, (file, _) in recipe.columns.items():
        assert file.replace('{run}', str(folder)) in outputs, heading
    figures = ' '.join(recipe.columns)
    for word in ('first', 'second', 'mean', 'or', 'and', 'orandnet'):
        for policy in ('best', 'equal recall'):
            assert f'CAMs {word} {policy}, precision' in figures
        assert f'labels {word}_crf, mIoU' in figures


def test_configs_and_values_agree(recipe):
    folder, configs, stages = first_run(recipe)
    values = recipe.values
    offsets = [float(values[f'{name}_offset']) for name in ('first', 'second')]
    assert list(configs['orandnet'].model.offsets) == offsets
    for command in (stages['CAMs or'].command, stages['CAMs and'].command):
        at = command.index('--offset')
        assert [float(word) for word in command[at + 1 : at + 3]] == offsets
    assert '--offset' not in stages['CAMs mean'].command
    for name in ('first', 'second'):
        assert configs[name].model.num_classes == int(values['num_classes']) - 1
    head = configs['segmentor'].model.decode_head
    assert head.num_classes == int(values['num_classes'])
    last = configs['segmentor'].train_cfg.max_iters
    assert values['checkpoint'] == f'iter_{last}.pth'
    pipeline = configs['orandnet'].train_dataloader.dataset.pipeline
    (reader,) = (s for s in pipeline if s.type == 'mmwsss.LoadCAMStores')
    assert reader.cam_roots == [f'{folder}/cams/{name}' for name in ('first', 'second')]
    roots = {c.train_dataloader.dataset.data_root for c in configs.values()}
    assert roots == {values['data']}


def options_of(stage):
    """What follows --cfg-options, as the command line reads it."""
    words = stage.command[stage.command.index('--cfg-options') + 1 :]
    pairs = (word.split('=', 1) for word in words)
    return {key: DictAction._parse_iterable(value) for key, value in pairs}


def test_segmentors_differ_in_labels_and_schedule_alone(recipe):
    folder, configs, stages = first_run(recipe)
    trained = {n: s for n, s in stages.items() if n.startswith('train segmentor ')}
    assert len(trained) == 8
    for name, stage in trained.items():
        options = options_of(stage)
        labels, schedule = name.removeprefix('train segmentor ').split()
        config = configs['segmentor'].copy()
        before = config.train_dataloader.dataset.pipeline[1]
        assert before.type == 'mmwsss.LoadPseudoLabels'
        config.merge_from_dict(options)
        assert config.train_dataloader.dataset.pipeline[1].label_root == (
            f'{folder}/labels/{labels}/SegmentationClass'
        )
        init_default_scope('mmseg')
        scheduled = MODELS.build(config.model.data_preprocessor)
        scales = [scheduled.scale_at(t) for t in (0, 0.3, 0.6)]
        assert scales == ([1, 1, 1] if schedule == 'full_size' else [0.5, 0.75, 1])
        assert set(options) <= {
            'train_dataloader.dataset.pipeline.1.label_root',
            'model.data_preprocessor.scales',
        }


def test_labels_are_made_at_thresholds_that_scores_give(recipe):
    folder, _, stages = first_run(recipe)
    for name, stage in stages.items():
        if name.startswith('labels ') and not name.endswith('_irn'):
            assert any(word.startswith(f'best:{folder}/') for word in stage.command)
        if name in ('IR labels mean', 'IR labels orandnet'):
            at = stage.command.index('--ir')
            rules = stage.command[at + 1 : at + 3]
            assert [rule.split(':')[0] for rule in rules] == ['best*2', 'best*0.333']


@pytest.mark.parametrize('name', ['orand_amn_mct_msrc', 'orand_amn_mct_voc'])
def test_amn_gets_the_ir_labels_that_it_learned_from(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(ROOT / f'configs/recipes/{name}.py', root=ROOT)
    _, configs, stages = first_run(recipe)
    learned = configs['first'].train_dataloader.dataset.pipeline[1].label_root
    command = stages['CAMs first'].command
    assert command[command.index('--ir-labels') + 1] == learned
    assert configs['first'].model.type == 'mmwsss.AMN'
    assert configs['second'].model.type == 'mmwsss.MCTformer'


def test_the_scheduled_configs_add_nothing_but_the_schedule():
    from mmengine.config import Config

    for data in ('msrc', 'synth'):
        path = ROOT / f'configs/deeplabv3_mobileone_{data}.py'
        plain = Config.fromfile(path)
        scheduled = Config.fromfile(path.with_stem(f'{path.stem}_scale'))
        own = scheduled.model.pop('data_preprocessor')
        before = plain.model.pop('data_preprocessor')
        assert own.pop('type') == 'mmwsss.ScaleScheduledDataPreProcessor'
        assert before.pop('type') == 'SegDataPreProcessor'
        added = {key for key in own if own[key] != before.get(key)}
        assert added == {'scales', 'curve', 'divisor'}
        assert scheduled.pop('scales') == own.scales
        assert scheduled.to_dict() == plain.to_dict()
