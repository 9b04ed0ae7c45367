"""Recipes: their configs, their runs with stand-ins for the heavy tools, the table."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import fake_run
import pytest
import tiny_run
from mmengine.config import Config
from mmengine.registry import init_default_scope

import mmwsss.engine
import mmwsss.models  # noqa: F401
from mmwsss.apis import stages
from mmwsss.apis.cli import find_sentence
from mmwsss.apis.evaluate import EvaluationOptions, evaluate_run
from mmwsss.apis.recipe import (
    DEFAULT_COLUMNS,
    load_recipe,
    run_configs,
    run_name,
    write_configs,
)
from mmwsss.apis.recipe_runs import run_all, run_one
from mmwsss.apis.recipe_summary import format_table
from mmwsss.apis.recipe_summary import summarize as summarize_recipe
from mmwsss.errors import InputError
from mmwsss.registry import HOOKS, MODELS

pytestmark = pytest.mark.mm

BASE = dict(
    model=dict(type='Net', labeler=dict(type='Plain', low=0.1), head=dict(width=8)),
    custom_hooks=[dict(type='First')],
    randomness=dict(seed=99, deterministic=True),
)
PARTS = dict(
    gate=dict(
        model=dict(labeler=dict(_delete_=True, type='Gated', high=0.9)),
        add_hooks=[dict(type='GateHook', log=2)],
    ),
    wide=dict(model=dict(head=dict(width=16, depth=1))),
    deep=dict(
        model=dict(head=dict(depth=2), schedules={'decode.loss': [[0.1, 0.0]]}),
        add_hooks=[dict(type='DeepHook')],
    ),
)
ROWS = {'base': [], '+ gate': ['gate'], '+ all': ['gate', 'wide', 'deep']}


def write_recipe(folder, *, base=BASE, leave_out=None, **changes):
    """A recipe over a small config, both in the folder."""
    config = tiny_run.write_config(folder / 'base.py', base)
    content = dict(
        config=str(config),
        work_dir=str(folder / 'work'),
        parts=PARTS,
        rows=ROWS,
        seeds=[0, 7],
    )
    content = {**content, **changes}
    content.pop(leave_out, None)
    return tiny_run.write_config(folder / 'recipe.py', content)


def load(path, root=tiny_run.ROOT):
    return load_recipe(path, root=root)


def summarize(recipe):
    return summarize_recipe(recipe, root=tiny_run.ROOT)['rows']


def write_run_config(recipe, run):
    configs = run_configs(recipe, run)
    write_configs(configs)
    return next(iter(configs))


def merged(recipe, run):
    return Config.fromfile(write_run_config(recipe, run)).to_dict()


# ------------------------------------------------------------------------ the recipe
def test_runs_go_seed_by_seed(tmp_path):
    recipe = load(write_recipe(tmp_path))
    assert list(recipe.runs()) == [
        *('base/seed_0', 'gate/seed_0', 'all/seed_0'),
        *('base/seed_7', 'gate/seed_7', 'all/seed_7'),
    ]
    assert recipe.runs()['all/seed_7'] == ('+ all', 7)
    assert run_name('+ Teacher (full)', 3) == 'teacher_full/seed_3'


def test_a_seed_named_twice_is_one_run(tmp_path):
    recipe = load(write_recipe(tmp_path, seeds=[4, 4, 1]))
    assert recipe.seeds == (4, 1)


def test_a_missing_recipe_or_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r'recipe .*nowhere\.py does not exist'):
        load(tmp_path / 'nowhere.py')
    recipe = write_recipe(tmp_path, config=str(tmp_path / 'absent.py'))
    with pytest.raises(InputError, match=r'recipe\.py starts from .*absent\.py'):
        load(recipe)


@pytest.mark.parametrize('key', ['config', 'work_dir'])
def test_a_missing_key_is_named(tmp_path, key):
    with pytest.raises(InputError, match=f'does not set {key}$'):
        load(write_recipe(tmp_path, leave_out=key))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(rows={'a': ['gate'], 'b': ['gat']}), r"row 'b' .* part 'gat'.*deep"),
        (dict(rows={'+ gate': [], 'Gate!': ['gate']}), 'differ in signs only'),
        # Their folder would be /seed_0.
        (dict(rows={'base': [], '+': ['gate']}), 'no letter'),
        (dict(rows={}), 'no runs'),
        (dict(seeds=[]), 'no runs'),
    ],
)
def test_wrong_rows_and_seeds_are_one_sentence(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        load(write_recipe(tmp_path, **changes))


# ----------------------------------------------------------------- the config of a run
def test_config_of_a_row_has_its_parts_and_its_seed(tmp_path):
    recipe = load(write_recipe(tmp_path))
    assert merged(recipe, 'base/seed_7') == {
        **BASE,
        'randomness': dict(seed=7, deterministic=True),
    }
    assert merged(recipe, 'all/seed_0') == dict(
        model=dict(
            type='Net',
            labeler=dict(type='Gated', high=0.9),
            head=dict(width=16, depth=2),
            schedules={'decode.loss': [[0.1, 0.0]]},
        ),
        custom_hooks=[
            dict(type='First'),
            dict(type='GateHook', log=2),
            dict(type='DeepHook'),
        ],
        randomness=dict(seed=0, deterministic=True),
    )
    assert write_run_config(recipe, 'gate/seed_7') == (
        tmp_path / 'work' / 'gate' / 'seed_7' / 'config.py'
    )


def test_later_parts_win(tmp_path):
    rows = {'one': ['wide', 'deep'], 'two': ['deep', 'wide']}
    recipe = load(write_recipe(tmp_path, rows=rows))
    depths = [merged(recipe, f'{r}/seed_0')['model']['head']['depth'] for r in rows]
    assert depths == [2, 1]


def test_common_changes_reach_every_row_before_its_parts(tmp_path):
    common = dict(
        model=dict(head=dict(width=4, bias=True)), add_hooks=[dict(type='Common')]
    )
    recipe = load(write_recipe(tmp_path, common=common))
    base = merged(recipe, 'base/seed_0')
    assert base['model']['head'] == dict(width=4, bias=True)
    assert base['custom_hooks'] == [dict(type='First'), dict(type='Common')]
    everything = merged(recipe, 'all/seed_0')
    assert everything['model']['head'] == dict(width=16, bias=True, depth=2)
    hooks = [hook['type'] for hook in everything['custom_hooks']]
    assert hooks == ['First', 'Common', 'GateHook', 'DeepHook']


def test_configs_written_one_after_the_other_do_not_mix(tmp_path):
    together = load(write_recipe(tmp_path))
    for run in [*together.runs(), *reversed(together.runs())]:
        alone = load(tmp_path / 'recipe.py')
        assert merged(together, run) == merged(alone, run), run


def test_hooks_are_added_to_a_config_without_any(tmp_path):
    base = {key: value for key, value in BASE.items() if key != 'custom_hooks'}
    recipe = load(write_recipe(tmp_path, base=base))
    hooks = merged(recipe, 'gate/seed_0')['custom_hooks']
    assert hooks == [dict(type='GateHook', log=2)]
    assert not merged(recipe, 'base/seed_0')['custom_hooks']


def test_an_unchanged_config_is_not_written_again(tmp_path):
    recipe = load(write_recipe(tmp_path))
    path = write_run_config(recipe, 'gate/seed_0')
    os.utime(path, (1, 1))
    write_run_config(recipe, 'gate/seed_0')
    assert path.stat().st_mtime == 1
    path.write_text('half a fi')
    assert merged(recipe, 'gate/seed_0')['model']['labeler']['type'] == 'Gated'


def test_a_name_that_is_too_long_is_one_sentence(tmp_path):
    with pytest.raises(OSError, match='name too long') as caught:
        load(write_recipe(tmp_path, config='a' * 300))
    assert re.search(r'a{300} is too long for a file', find_sentence(caught.value))


@pytest.mark.parametrize(
    'changes',
    [
        dict(rows={1: []}),
        dict(parts={None: {}}),
        dict(stages=[dict(name=['a'], command=['b.py'])]),
        dict(stages=[dict(name='a', command=[0])]),
    ],
)
def test_names_of_another_kind_are_one_sentence(tmp_path, changes):
    with pytest.raises(InputError, match=r'recipe\.py'):
        load(write_recipe(tmp_path, **changes))


@pytest.mark.parametrize(
    'common', [{'model': False}, {'add_hooks': 3}, {'randomness': 'none'}]
)
def test_changes_that_fit_nothing_are_one_sentence(tmp_path, common):
    recipe = load(write_recipe(tmp_path, common=common))
    with pytest.raises(InputError, match=r'cannot be merged into .*correct that'):
        write_run_config(recipe, 'gate/seed_0')
    assert not (tmp_path / 'work').exists()


def test_an_unknown_run_is_refused(tmp_path):
    recipe = load(write_recipe(tmp_path))
    for run in ('gate/seed_3', 'gate', ''):
        with pytest.raises(InputError, match=r"is none of the runs .*'gate/seed_7'"):
            write_run_config(recipe, run)
    assert not (tmp_path / 'work').exists()


def shipped_row(row, monkeypatch, tmp_path):
    """Config and model of a row of clipdino_ablation_msrc."""
    monkeypatch.chdir(tiny_run.ROOT)
    path = tmp_path / 'recipe.py'
    source = tiny_run.ROOT / 'configs' / 'recipes' / 'clipdino_ablation_msrc.py'
    path.write_text(f'{source.read_text()}\nwork_dir = {str(tmp_path)!r}\n')
    recipe = load(path)
    config = Config.fromfile(write_run_config(recipe, run_name(row, 1)))
    init_default_scope(config.default_scope)
    for encoder in config.model.backbone.encoders.values():
        encoder.weights = None
    return config, MODELS.build(config.model)


def test_row_of_the_shipped_recipe_with_all_losses_builds(monkeypatch, tmp_path):
    config, model = shipped_row('+ cross-view', monkeypatch, tmp_path)
    assert model.teacher_head is not None
    assert model.labeler.gate.history is not None
    assert model.decode_head.loss_boundary is not None
    # A schedule of a loss that the model does not have would stop the training.
    assert set(config.model.loss_schedules) >= {
        *('decode.loss_balanced_ce', 'decode.loss_boundary'),
        *('decode.loss_cross', 'teacher.loss_consistency'),
    }
    hooks = [HOOKS.build(hook) for hook in config.custom_hooks]
    names = [type(hook).__name__ for hook in hooks]
    for name in ('ProgressHook', 'ReliabilityGatedPseudoLabelHook', 'TeacherHook'):
        assert names.count(name) == 1, names


def test_the_refinement_of_the_table_is_that_of_the_config(monkeypatch, tmp_path):
    _, model = shipped_row('+ weights', monkeypatch, tmp_path)
    config = Config.fromfile(tiny_run.ROOT / 'configs/dual_frozen_msrc_refine.py')
    assert model.labeler.gate.weights == config.model.labeler.gate.weights
    _, before = shipped_row('+ teacher', monkeypatch, tmp_path)
    assert before.labeler.gate.weights == (0.30, 0.35, 0.35)


# -------------------------------------------------------------------------- the table
def write_metrics(folder, **numbers):
    folder.mkdir(parents=True)
    content = [
        {'key': key.replace('__', '/'), 'miou': value, 'images': 3}
        for key, value in numbers.items()
    ]
    (folder / 'metrics.json').write_text(json.dumps({'format': 1, 'numbers': content}))


def test_table_against_numbers_by_hand(tmp_path):
    rows = {'base': [], '+ gate': ['gate'], '+ wide': ['wide'], '+ deep': ['deep']}
    recipe = load(write_recipe(tmp_path, rows=rows, seeds=[0, 1, 2]))
    work = tmp_path / 'work'
    for seed, value in enumerate((50.0, 52.0, 57.0)):
        write_metrics(
            work / f'base/seed_{seed}' / 'evaluation',
            val__segmentor=value,
            train__labels=70.0,
            train__other=1.0,
        )
    write_metrics(
        work / 'gate/seed_1' / 'evaluation', val__segmentor=51.5, train__labels=None
    )
    # Trained, not scored yet.
    (work / 'wide/seed_0').mkdir(parents=True)
    for seed, value in ((0, 60.0), (2, 61.0)):
        write_metrics(work / f'deep/seed_{seed}' / 'evaluation', val__segmentor=value)
    table = summarize(recipe)
    assert table == json.loads((work / 'summary.json').read_text())['rows']
    own = {row: columns['Segmentor, val'] for row, columns in table.items()}
    assert own['base']['values'] == {'0': 50, '1': 52, '2': 57}
    assert own['base']['mean'] == pytest.approx(53)
    assert own['base']['spread'] == pytest.approx(13**0.5)  # (9 + 1 + 16) / 2
    assert own['+ gate'] == dict(values={'1': 51.5}, mean=51.5, spread=None)
    assert own['+ wide'] == dict(values={}, mean=None, spread=None)
    assert own['+ deep']['spread'] == pytest.approx(0.5**0.5)
    assert table['base']['Pseudo-labels, train']['spread'] == 0
    assert table['+ gate']['Pseudo-labels, train']['values'] == {}
    assert format_table(table) == (
        '| row | seeds | Segmentor, val | Pseudo-labels, train | Refined, train '
        '| Raw CAMs, train | change, val |\n'
        '|---|---|---|---|---|---|---|\n'
        '| base | 3 | 53.00 ± 3.61 | 70.00 ± 0.00 |  |  |  |\n'
        '| + gate | 1 | 51.50 |  |  |  | -0.50 |\n'
        '| + wide | 0 |  |  |  |  |  |\n'
        '| + deep | 2 | 60.50 ± 0.71 |  |  |  | +7.00 ± 4.24 |\n'
    )
    assert (work / 'summary.md').read_text().startswith(format_table(table) + '\n| ')


def test_table_without_a_first_row_or_anything_tells_no_change(tmp_path):
    recipe = load(write_recipe(tmp_path))
    lines = format_table(summarize(recipe)).splitlines()
    assert len(lines) == 2 + len(ROWS)
    assert lines[2] == '| base | 0 |  |  |  |  |  |'
    write_metrics(tmp_path / 'work/gate/seed_0/evaluation', val__segmentor=40.0)
    lines = format_table(summarize(recipe)).splitlines()
    assert lines[3] == '| + gate | 1 | 40.00 |  |  |  |  |'


def test_table_reads_what_evaluation_writes(tmp_path):
    recipe = load(write_recipe(tmp_path, seeds=[0]))
    photos = fake_run.draw_photos(tmp_path / 'photos')
    config = fake_run.write_run(tmp_path / 'run', photos, noise=0.2)
    metrics = evaluate_run(
        config,
        tmp_path / 'run',
        tmp_path / 'work/base/seed_0/evaluation',
        options=EvaluationOptions(num_pictures=0),
        device='cpu',
    )
    base = summarize(recipe)['base']
    expected = {n['key']: n['miou'] for n in metrics['numbers']}
    assert set(base) == set(DEFAULT_COLUMNS)
    for heading, (_, keys) in DEFAULT_COLUMNS.items():
        assert base[heading]['values'] == {'0': expected[keys.split('.')[1]]}


# --------------------------------------------------------------------------- the runs
# Writes what it was called with to a file beside its config, as often as it is called.
TRAIN = """
import pathlib, sys
config = pathlib.Path(sys.argv[1])
with (config.parent / 'trained').open('a') as stream:
    stream.write(' '.join(sys.argv[2:]) + '\\n')
work_dir = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
work_dir.mkdir(exist_ok=True)
print('training', config)
if (config.parents[2] / 'broken').exists() and 'gate' in str(config.parent):
    sys.exit('cannot train')
(work_dir / 'last_checkpoint').write_text('iter_8.pth')
"""
EVALUATE = """
import json, pathlib, sys
config, work_dir = map(pathlib.Path, sys.argv[1:3])
assert (work_dir / 'last_checkpoint').is_file()
out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])
out.mkdir(exist_ok=True)
with (config.parent / 'scored').open('a') as stream:
    stream.write('once\\n')
numbers = [{'key': 'val/segmentor', 'miou': 10.0 + 2 * ('gate' in str(config.parent))}]
(out / 'metrics.json').write_text(json.dumps({'numbers': numbers}))
"""
# Stands for run_recipe.py RECIPE --run RUN where the run itself does not matter.
RUN = """
import os, pathlib, sys, time
recipe, option, run = sys.argv[1:]
assert option == '--run'
folder = pathlib.Path(recipe).parent
with (folder / 'called').open('a') as stream:
    stream.write(f'{run} {os.environ["OMP_NUM_THREADS"]}\\n')
print('a message of', run)
if (folder / 'slow').exists():
    time.sleep(30)
sys.exit(run in (folder / 'failing').read_text().split())
"""


def make_root(folder, **scripts):
    """A checkout of which only some tools exist."""
    tools = folder / 'root' / 'tools'
    tools.mkdir(parents=True)
    for name, text in scripts.items():
        (tools / f'{name}.py').write_text(text)
    return folder / 'root'


def test_a_run_is_trained_and_scored_once(tmp_path):
    root = make_root(tmp_path, train=TRAIN, evaluate=EVALUATE)
    recipe = load(write_recipe(tmp_path), root)
    folder = tmp_path / 'work/gate/seed_7'
    for _ in range(2):
        run_one(recipe, 'gate/seed_7', root=root)
    assert (folder / 'trained').read_text() == f'--work-dir {folder / "run"}\n'
    assert (folder / 'scored').read_text() == 'once\n'
    # Another config is another run.
    changed = load(write_recipe(tmp_path, common=dict(more=1)), root)
    run_one(changed, 'gate/seed_7', root=root)
    assert (folder / 'trained').read_text().count('\n') == 2
    assert (folder / 'scored').read_text().count('\n') == 2


def test_an_interrupted_training_is_resumed(tmp_path):
    root = make_root(tmp_path, train=TRAIN, evaluate=EVALUATE)
    recipe = load(write_recipe(tmp_path), root)
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/broken').write_text('')
    with pytest.raises(InputError, match='"train" failed'):
        run_one(recipe, 'gate/seed_0', root=root)
    (tmp_path / 'work/broken').unlink()
    run_one(recipe, 'gate/seed_0', root=root)
    calls = (tmp_path / 'work/gate/seed_0/trained').read_text().splitlines()
    assert [call.endswith('--resume') for call in calls] == [False, True]


def test_a_failed_run_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    recipe = load(write_recipe(tmp_path))
    root = make_root(tmp_path, run_recipe=RUN)
    monkeypatch.setattr('mmwsss.apis.recipe_runs.available_cores', lambda: 8)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    (tmp_path / 'failing').write_text('gate/seed_0 all/seed_7')
    with pytest.raises(InputError) as caught:
        run_all(recipe, root=root, jobs=3)
    log = tmp_path / 'work/gate/seed_0/log.txt'
    sentence = str(caught.value)
    assert sentence.startswith('2 of 6 runs failed, the first is gate/seed_0;')
    assert f'messages are in {log};' in sentence
    assert log.read_text() == 'a message of gate/seed_0\n'
    called = (tmp_path / 'called').read_text().split()
    assert sorted(called[::2]) == sorted(recipe.runs())
    # Eight cores for three runs.
    assert set(called[1::2]) == {'2'}
    lines = capsys.readouterr().out.splitlines()
    assert [line[:6] for line in lines] == [f'[{n}/6] '[:6] for n in range(1, 7)]
    assert sum(line.endswith(f'FAILED, see {log}') for line in lines) == 1
    assert sum(line.endswith(': done') for line in lines) == 4
    # Nothing fails any more; the log keeps what was said before.
    (tmp_path / 'failing').write_text('')
    # A number of threads that the user has set is kept.
    monkeypatch.setenv('OMP_NUM_THREADS', '5')
    run_all(recipe, root=root, jobs=9)
    called = (tmp_path / 'called').read_text().split()
    assert called[13::2] == ['5'] * 6
    assert log.read_text().count('a message of gate/seed_0') == 2


def test_jobs_below_one_are_refused(tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(InputError, match='--jobs must be 1 or more, got 0'):
        run_all(load(recipe), root=tmp_path, jobs=0)


# --------------------------------------------------------------------------- the tool
def command(root, recipe, *options):
    return [sys.executable, str(root / 'tools/run_recipe.py'), str(recipe), *options]


def run_tool(root, recipe, *options):
    return subprocess.run(
        command(root, recipe, *options),
        env=tiny_run.environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.fixture
def stub_root(tmp_path):
    """The real run_recipe.py beside a training and a scoring that take no time."""
    root = make_root(tmp_path, train=TRAIN, evaluate=EVALUATE)
    shutil.copy(tiny_run.ROOT / 'tools/run_recipe.py', root / 'tools')
    return root


def test_tool_runs_everything_goes_on_and_tells_the_table(tmp_path, stub_root):
    recipe = write_recipe(tmp_path, rows={'base': [], '+ gate': ['gate']}, seeds=[5])
    work = tmp_path / 'work'
    named = run_tool(stub_root, recipe, '--dry-run')
    assert named.stdout.splitlines() == [
        'base/seed_5',
        '  train: would run (never run)',
        '  score: would run (never run)',
        'gate/seed_5',
        '  train: would run (never run)',
        '  score: would run (never run)',
        'stages that would run: 4',
    ]
    assert not work.exists()
    work.mkdir()
    (work / 'broken').write_text('')
    failed = run_tool(stub_root, recipe)
    assert failed.returncode == 1
    errors = [x for x in failed.stderr.splitlines() if x.startswith('error: ')]
    assert len(errors) == 1
    assert str(work / 'gate/seed_5/log.txt') in errors[0]
    assert 'Traceback' not in failed.stderr
    log = (work / 'gate/seed_5/log.txt').read_text()
    assert 'cannot train' in log
    assert '"train" failed with exit code 1' in log
    assert (work / 'base/seed_5/evaluation/metrics.json').is_file()
    (work / 'broken').unlink()
    table = (
        '| base | 1 | 10.00 |  |  |  |  |\n| + gate | 1 | 12.00 |  |  |  | +2.00 |\n'
    )
    done = run_tool(stub_root, recipe)
    assert done.returncode == 0, done.stderr
    assert table in done.stdout
    # The first run was left alone, the second went on.
    assert (work / 'base/seed_5/trained').read_text().count('\n') == 1
    assert '[1/2] train: already done' in (work / 'base/seed_5/log.txt').read_text()
    assert (work / 'gate/seed_5/trained').read_text().count('--resume') == 1
    (work / 'summary.md').unlink()
    assert table in run_tool(stub_root, recipe, '--table').stdout
    assert (work / 'gate/seed_5/trained').read_text().count('\n') == 2


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('recipe.py', ['--run', 'gate/seed_9'], "'gate/seed_9' is none of the runs"),
        ('recipe.py', ['--only', 'gate/seed_7'], 'stages are train, score; for that'),
        ('recipe.py', ['--from', 'walk'], 'no stage "walk"; its stages are train, sco'),
        ('recipe.py', ['--jobs', '-1'], '--jobs must be 1 or more, got -1'),
        ('absent.py', [], 'absent.py does not exist'),
    ],
)
def test_mistakes_on_the_command_line_are_one_sentence(
    tmp_path, stub_root, name, options, message
):
    recipe = write_recipe(tmp_path).with_name(name)
    result = run_tool(stub_root, recipe, *options)
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
    assert message in result.stderr
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('how', ['ctrl_c', 'sigterm'])
def test_stopped_no_further_run_begins(tmp_path, how):
    """The parts of the real tool that wait for the runs."""
    recipe = write_recipe(tmp_path)
    root = make_root(tmp_path, run_recipe=RUN, train='', evaluate='')
    (tmp_path / 'slow').write_text('')
    (tmp_path / 'failing').write_text('')
    driver = (
        'from pathlib import Path\n'
        'from mmwsss.apis.recipe import load_recipe\n'
        'from mmwsss.apis.recipe_runs import run_all\n'
        'from mmwsss.apis.cli import run_tool\n'
        f'root = Path({str(root)!r})\n'
        f'recipe = load_recipe(Path({str(recipe)!r}), root=root)\n'
        'run_tool(lambda: run_all(recipe, root=root, jobs=2))\n'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', driver],
        env=tiny_run.environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    called = tmp_path / 'called'
    for _ in range(12000):
        if called.exists() and called.read_text().count('\n') == 2:
            break
        time.sleep(0.05)
    if how == 'ctrl_c':
        os.killpg(process.pid, signal.SIGINT)
    else:
        # To the tool alone, as a batch system may do; its runs have to end with it.
        process.terminate()
    _, message = process.communicate(timeout=600)
    assert process.returncode == (130 if how == 'ctrl_c' else 143)
    assert message.decode().strip().endswith('stopped')
    assert called.read_text().count('\n') == 2


def tiny_recipe(tmp_path):
    """Two rows of the tiny training with everything that real configs have."""
    content = tiny_run.config(tiny_run.draw(tmp_path / 'data', num_photos=4))
    content['train_cfg']['max_iters'] = 2
    content['train_eval_dataloader'] = tiny_run.eval_loader(content)
    content['val_dataloader'] = tiny_run.eval_loader(content)
    content['val_cfg'] = dict(type='ValLoop')
    content['val_evaluator'] = dict(type='IoUMetric', iou_metrics=['mIoU'])
    gated = tiny_run.gated_config(tmp_path / 'data')
    gate = dict(
        model=dict(labeler=dict(_delete_=True, **gated['model']['labeler'])),
        add_hooks=gated['custom_hooks'][-2:-1],
    )
    return write_recipe(
        tmp_path,
        base=content,
        parts=dict(gate=gate),
        rows={'base': [], '+ gate': ['gate']},
        seeds=[1],
    )


@pytest.mark.slow
def test_a_real_recipe_from_end_to_end(tmp_path):
    recipe = tiny_recipe(tmp_path)
    done = run_tool(tiny_run.ROOT, recipe, '--jobs', '2')
    logs = [p.read_text()[-2000:] for p in tmp_path.glob('work/*/*/log.txt')]
    assert done.returncode == 0, (done.stderr, logs)
    table = json.loads((tmp_path / 'work/summary.json').read_text())['rows']
    assert list(table) == ['base', '+ gate']
    for row in table.values():
        for numbers in row.values():
            assert len(numbers['values']) == 1
            assert 0 <= numbers['mean'] <= 100
    assert (tmp_path / 'work/summary.md').read_text() in done.stdout
    begun = stages.read_json(tmp_path / 'work/gate/seed_1/stages.json')
    again = run_tool(tiny_run.ROOT, recipe)
    # Two runs at once end in any order, so their lines may change places.
    assert told(again.stdout) == told(done.stdout)
    assert stages.read_json(tmp_path / 'work/gate/seed_1/stages.json') == begun


def told(stdout):
    """The lines without the counters of the runs, in alphabetical order."""
    return sorted(re.sub(r'^\[\d+/\d+\] ', '', line) for line in stdout.splitlines())
