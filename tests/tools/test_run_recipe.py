"""Whole recipes of stand-in tools: stopped, killed, changed, told as summary."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_run
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmwsss.apis.recipe import load_recipe, run_configs, stages_of
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm

# What all stand-ins share. Each refuses to work beside another one on the same, and
# half-way through it waits to be killed where the file 'hold' says so.
TOOL = """
import hashlib, json, os, pathlib, sys, time
work = pathlib.Path(os.environ['FAKE_WORK'])
name = sys.argv[1]
paths = [pathlib.Path(word) for word in sys.argv[2:] if word != '--resume']
resumed = '--resume' in sys.argv
busy = work / f'busy_{hashlib.sha256(str(paths[-1]).encode()).hexdigest()}'

def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()[0] != 'Z'

if busy.exists() and alive(int(busy.read_text())):
    sys.exit('two at once')
busy.write_text(str(os.getpid()))
with (work / 'calls').open('a') as stream:
    stream.write(f'{name} {resumed}\\n')

def half_way():
    hold = work / 'hold'
    if hold.exists() and hold.read_text() == name:
        (work / 'held').write_text(str(os.getpid()))
        while True:
            time.sleep(0.02)

def digest(path):
    files = sorted(path.rglob('*.txt')) if path.is_dir() else [path]
    return hashlib.sha256(b''.join(f.read_bytes() for f in files)).hexdigest()

def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix('.tmp').write_text(text)
    path.with_suffix('.tmp').replace(path)
"""
# Like a training: goes on from its state, or must find nothing.
GROW = (
    TOOL
    + """
source, out = paths
state = out / 'state'
if not resumed and out.exists():
    sys.exit('remains of another start')
step, value = json.loads(state.read_text()) if state.exists() else (0, digest(source))
while step < 4:
    if step == 2:
        half_way()
    value = hashlib.sha256(value.encode()).hexdigest()
    step += 1
    write(state, json.dumps([step, value]))
write(out / 'final.txt', value)
busy.unlink()
"""
)
# Like the tools that write one file a photo: what is there is left alone.
MAKE = (
    TOOL
    + """
source, out = paths
for number in range(4):
    path = out / f'{number}.txt'
    if not path.exists():
        write(path, f'{number} {digest(source)}')
    if number == 1:
        half_way()
busy.unlink()
"""
)
SCORE = (
    TOOL
    + """
*sources, out = paths
half_way()
number = int(digest(sources[0])[:4], 16) / 655.35
write(out, json.dumps({'miou': number, 'of': [digest(p) for p in sources]}))
busy.unlink()
"""
)
STAGES = [
    dict(
        name='grow',
        command=['tools/grow.py', 'grow', '{config}', '{run}/grown'],
        outputs='{run}/grown/final.txt',
        resume='--resume',
        stale='{run}/grown',
    ),
    dict(
        name='make',
        command=['tools/make.py', 'make', '{run}/grown/final.txt', '{run}/made'],
        outputs='{run}/made',
        stale='{run}/made',
    ),
    dict(
        name='score',
        command=['tools/score.py', 'score', '{run}/made', '{run}/score.json'],
        outputs='{run}/score.json',
    ),
    dict(
        name='label',
        needs='make',
        command=['tools/make.py', 'label', '{run}/made', '{run}/labels'],
        outputs='{run}/labels',
        stale='{run}/labels',
    ),
    dict(
        name='sum',
        needs=['score', 'label'],
        command=['tools/score.py', 'sum', '{run}/labels', '{other}', '{run}/sum.json'],
        outputs='{run}/sum.json',
    ),
]
NAMES = [stage['name'] for stage in STAGES]


class Place:
    """A checkout with stand-in tools, and a recipe of one or more runs."""

    def __init__(self, folder, **changes):
        self.folder = folder
        tools = folder / 'tools'
        tools.mkdir(parents=True)
        for name, text in (('grow', GROW), ('make', MAKE), ('score', SCORE)):
            (tools / f'{name}.py').write_text(text)
        shutil.copy(tiny_run.ROOT / 'tools/run_recipe.py', tools)
        (folder / 'base.py').write_text('depth = 3\n')
        self.write_config('width = 1\n')
        (folder / 'other.py').write_text('x = 1\n')
        self.write(**changes)
        self.work = folder / 'work'
        self.work.mkdir()

    def write_config(self, text):
        (self.folder / 'config.py').write_text(f"_base_ = './base.py'\n{text}")

    def write(self, **changes):
        content = dict(
            config=str(self.folder / 'config.py'),
            configs=dict(other=dict(config=str(self.folder / 'other.py'))),
            work_dir=str(self.folder / 'work'),
            stages=STAGES,
            columns={
                'made': ('{run}/score.json', 'miou'),
                'summed': ('{run}/sum.json', 'miou'),
            },
        )
        content = {k: v for k, v in {**content, **changes}.items() if v is not None}
        self.recipe = tiny_run.write_config(self.folder / 'recipe.py', content)

    def start(self, *options):
        return subprocess.Popen(
            [sys.executable, 'tools/run_recipe.py', 'recipe.py', *options],
            cwd=self.folder,
            env={**tiny_run.environment(), 'FAKE_WORK': str(self.work)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *options, code=0):
        process = self.start(*options)
        out, err = process.communicate(timeout=600)
        log = ''.join(path.read_text() for path in self.work.rglob('log.txt'))
        assert process.returncode == code, (out, err, log)
        return out if code == 0 else err

    def calls(self):
        """Stages called since the last time that this was asked."""
        path = self.work / 'calls'
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.split()[0] for line in lines]

    def results(self):
        """Bytes of all that the stages have left behind."""
        known = ('log.txt', 'stages.json', '.stages.lock', 'config.py', 'other.py')
        return {
            path.relative_to(self.work).as_posix(): path.read_bytes()
            for run in sorted(self.work.glob('**/seed_*'))
            for path in sorted(run.rglob('*'))
            if path.is_file() and path.name not in known
        }


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp('uninterrupted'))
    place.run()
    assert place.calls() == NAMES
    return place.results()


def has_ended(pid):
    stat = Path(f'/proc/{pid}/stat')
    return not stat.exists() or stat.read_text().rpartition(')')[2].split()[0] == 'Z'


def wait_for(condition, *arguments):
    for _ in range(12000):
        if condition(*arguments):
            return
        time.sleep(0.05)
    raise AssertionError('waited in vain')


def held_at(place, process):
    """Process number of the stage that waits half-way."""
    held = place.work / 'held'
    wait_for(lambda: process.poll() is not None or (held.exists() and held.read_text()))
    assert process.poll() is None, process.communicate()
    number = int(held.read_text())
    held.unlink()
    return number


@pytest.mark.parametrize('how', ['kill', 'kill stage', 'terminate', 'ctrl c'])
def test_killed_at_every_stage_it_ends_with_the_same_files(
    tmp_path, uninterrupted, how
):
    place = Place(tmp_path / 'place')
    # The tool with all runs, and one run alone.
    options = () if how in ('kill', 'terminate') else ('--run', 'seed_0')
    for name in NAMES:
        (place.work / 'hold').write_text(name)
        process = place.start(*options)
        stage = held_at(place, process)
        if how == 'kill':
            process.kill()
        elif how == 'kill stage':
            os.kill(stage, signal.SIGKILL)
        elif how == 'terminate':
            process.terminate()
        else:
            # To all that was started, as a terminal does.
            os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=600)
        codes = {'kill': -9, 'kill stage': 1, 'terminate': 143, 'ctrl c': 130}
        assert process.returncode == codes[how]
        wait_for(has_ended, stage)
        states = json.loads((place.work / 'seed_0/stages.json').read_text())
        done = [n for n in NAMES if states.get(n, {}).get('finished')]
        assert done == NAMES[: NAMES.index(name)]
    (place.work / 'hold').unlink()
    place.run()
    assert place.results() == uninterrupted
    # Each was begun once and gone on with once.
    assert sorted(place.calls()) == sorted(NAMES * 2)


def test_started_again_at_once_the_stage_does_not_run_twice(tmp_path, uninterrupted):
    place = Place(tmp_path / 'place')
    (place.work / 'hold').write_text('make')
    process = place.start()
    held_at(place, process)
    (place.work / 'hold').unlink()
    process.kill()
    place.run()
    process.communicate()
    assert place.results() == uninterrupted


def test_a_change_runs_what_depends_on_it(tmp_path):
    place = Place(tmp_path / 'place')
    assert 'stages that would run: 5' in place.run('--dry-run')
    assert not (place.work / 'seed_0').exists()
    place.run()
    assert place.calls() == NAMES
    place.run()
    assert place.calls() == []
    # A comment in a config says nothing new.
    (place.folder / 'base.py').write_text('depth = 3  # as before\n')
    place.run()
    assert place.calls() == []
    (place.folder / 'other.py').write_text('x = 2\n')
    plan = place.run('--dry-run').splitlines()
    assert plan[1:5] == [f'  {name}: done' for name in NAMES[:4]]
    assert plan[5].startswith('  sum: would run (input ')
    assert plan[5].endswith('other.py changed)')
    assert plan[6] == 'stages that would run: 1'
    place.run()
    assert place.calls() == ['sum']
    # The base of the config counts.
    (place.folder / 'base.py').write_text('depth = 4\n')
    place.run()
    assert place.calls() == NAMES
    changed = [dict(stage) for stage in STAGES]
    changed[3]['command'] = [*STAGES[3]['command'][:-1], '{run}/labels', '--resume']
    place.write(stages=changed)
    assert 'label: would run (command changed)' in place.run('--dry-run')
    place.run()
    assert place.calls() == ['label', 'sum']


def test_from_and_only(tmp_path):
    place = Place(tmp_path / 'place', seeds=[0, 1])
    place.run('--only', 'grow')
    assert place.calls() == ['grow'] * 2
    error = place.run('--only', 'score', '--run', 'seed_1', code=1)
    assert error == (
        'error: the stage "score" needs "make", which is not done (never run); run '
        'that first\n'
    )
    place.run('--jobs', '2')
    assert sorted(place.calls()) == sorted(NAMES[1:] * 2)
    plan = place.run('--dry-run', '--from', 'label', '--run', 'seed_1').splitlines()
    assert plan == [
        'seed_1',
        '  grow: done',
        '  make: done',
        '  score: done',
        '  label: would run (asked for)',
        '  sum: would run (after label)',
        'stages that would run: 2',
    ]
    place.run('--from', 'label', '--run', 'seed_1')
    assert place.calls() == ['label', 'sum']
    place.run('--from', 'score', '--only', 'score')
    assert place.calls() == ['score'] * 2


def test_summary_has_time_memory_state_and_numbers(tmp_path):
    place = Place(tmp_path / 'place', seeds=[0, 1])
    (place.folder / 'tools/score.py').write_text(
        SCORE.replace('\nhalf_way()', '\nx = bytearray(400 * 2**20)')
    )
    out = place.run()
    summary = json.loads((place.work / 'summary.json').read_text())
    assert (place.work / 'summary.md').read_text() in out
    for seed in (0, 1):
        record = json.loads((place.work / f'seed_{seed}/stages.json').read_text())
        entries = summary['stages'][f'seed_{seed}']
        assert list(entries) == NAMES
        for name, entry in entries.items():
            assert entry['state'] == 'done'
            for key in ('seconds', 'peak_memory_mib', 'finished'):
                assert entry[key] == record[name][key]
        difference = (
            entries['sum']['peak_memory_mib'] - entries['make']['peak_memory_mib']
        )
        assert difference == pytest.approx(400, abs=40)
    values = [
        json.loads((place.work / f'seed_{seed}/sum.json').read_text())['miou']
        for seed in (0, 1)
    ]
    assert values[0] != values[1]
    found = summary['rows']['']['summed']
    assert list(found['values'].values()) == values
    assert found['mean'] == pytest.approx(sum(values) / 2)
    assert found['spread'] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    lines = out.splitlines()[2:]
    assert lines[0] == '| row | seeds | made | summed |'
    assert lines[2].endswith(f'| {found["mean"]:.2f} ± {found["spread"]:.2f} |')
    assert lines[4] == '| stage | done | mean time | peak memory | not done |'
    assert lines[6].startswith('| grow | 2 of 2 | ')
    # Out of date, never run.
    (place.folder / 'other.py').write_text('x = 2\n')
    shutil.rmtree(place.work / 'seed_1')
    out = place.run('--table')
    assert '| sum | 0 of 2 |  |  | seed_0: out of date; seed_1: never run |' in out
    assert '| grow | 1 of 2 |' in out


# ------------------------------------------------------------------------ its mistakes
def first(**changes):
    return [{**STAGES[0], **changes}]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            dict(stages=first(outputs='{rum}/x')),
            r'stage "grow" of .* has the placeholder \{rum\}, but those are config, ',
        ),
        (dict(stages=first(needs='x')), '"grow" needs "x", but the stages are grow'),
        (dict(stages=first(needs='grow')), 'stages "grow" need each other'),
        (dict(stages=first() * 2), 'two stages are called "grow"'),
        (dict(stages=first(command=['tools/no.py'])), r'tools/no\.py, which is no Pyt'),
        (dict(stages=first(command=[])), 'stage "grow" of .* has no command'),
        (dict(stages=first(name='')), 'has no name'),
        (dict(stages=first(input='x')), "sets 'input', but a stage has name, command"),
        (dict(stages=first(stale='elsewhere')), 'would remove elsewhere, which is not'),
        (dict(stages=first(stale='{run}')), "not in its run's folder"),
        (dict(stages=[]), 'has no stages'),
        (dict(config=None), r'placeholder \{config\}, but those are other, run, seed'),
        (dict(common=dict(x='{y}')), r'the placeholder \{y\}'),
        (dict(configs=dict(other=dict(file='x'))), r'must be dict\(config=FILE'),
        (dict(configs=dict(other=dict(config='no.py'))), 'no.py, which does not exist'),
        (dict(values=dict(other='1')), "'other' in .* stands for two things"),
        (dict(values={'a b': '1'}), "'a b' in .* is no name for a placeholder"),
        (dict(common=dict(values=dict(y='1'))), "sets the value 'y', which is none"),
        (dict(columns=dict(a='x.json')), r"column 'a' of .* must be \(JSON file, keys"),
    ],
)
def test_mistakes_in_a_recipe_are_one_sentence(tmp_path, changes, message):
    place = Place(tmp_path / 'place', **changes)

    def load():
        recipe = load_recipe(place.recipe, root=place.folder)
        run_configs(recipe, next(iter(recipe.runs())))

    with pytest.raises(InputError, match=message) as caught:
        load()
    assert '\n' not in str(caught.value)


def test_a_stage_that_leaves_an_output_out_is_named(tmp_path):
    place = Place(tmp_path / 'place', stages=first(outputs='{run}/lost'))
    error = place.run('--run', 'seed_0', code=1)
    assert error == 'error: the step "grow" did not leave {} behind\n'.format(
        place.work / 'seed_0/lost'
    )


# ------------------------------------------------------------- placeholders and configs
def test_rows_have_their_own_values_and_configs_their_changes(tmp_path):
    place = Place(
        tmp_path / 'place',
        seeds=[3],
        values=dict(kind='b', text='plain'),
        configs=dict(
            other=dict(
                config=str(tmp_path / 'place/other.py'),
                changes={'x': '{run}/labels', 'deep.y': ['{kind}', 1, ('{seed}',)]},
            )
        ),
        common=dict(where='{run}'),
        parts=dict(
            special=dict(new=dict(_delete_=True, z=1), values=dict(kind='special'))
        ),
        rows={'A': [], 'B': ['special']},
        stages=dict(
            grow=dict(
                command=['tools/grow.py', '{kind}-{text}', '{config}', 7, '{x: 1}'],
                outputs=['{run}/a', str(tmp_path / 'shared')],
            ),
            more=dict(command=['tools/grow.py', "R(config='{other}', n=1)"]),
        ),
    )
    recipe = load_recipe(place.recipe, root=place.folder)
    folder = place.work / 'b/seed_3'
    configs = run_configs(recipe, 'b/seed_3')
    assert [path.name for path in configs] == ['config.py', 'other.py']
    main, other = (config.to_dict() for config in configs.values())
    assert main == dict(
        depth=3,
        width=1,
        where=str(folder),
        # MMEngine leaves _delete_ in where there is nothing to delete.
        new=dict(z=1),
        custom_hooks=[],
        randomness=dict(seed=3),
    )
    assert other['x'] == f'{folder}/labels'
    assert other['deep'] == dict(y=['special', 1, ('3',)])
    assert other['randomness'] == dict(seed=3)
    grow, more = stages_of(recipe, 'b/seed_3', root=place.folder, configs=configs)
    assert grow.command[2:] == ['special-plain', f'{folder}/config.py', '7', '{x: 1}']
    assert list(grow.settings) == [f'{folder}/config.py']
    # Runs share an output of it.
    assert grow.lock == place.work / '.shared.lock'
    assert list(more.settings) == [f'{folder}/other.py']
    assert more.lock is None
    plain = stages_of(recipe, 'a/seed_3', root=place.folder, configs={})
    assert plain[0].command[2] == 'b-plain'


# --------------------------------------------------------------------- shipped recipes
RECIPES = sorted((tiny_run.ROOT / 'configs/recipes').glob('*.py'))


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_fit_their_configs(path, monkeypatch):
    monkeypatch.chdir(tiny_run.ROOT)
    recipe = load_recipe(path, root=tiny_run.ROOT)
    for run in recipe.runs():
        configs = run_configs(recipe, run)
        stages = stages_of(recipe, run, root=tiny_run.ROOT, configs=configs)
        outputs = {str(path) for stage in stages for path in stage.outputs}
        for heading, (file, _) in recipe.columns.items():
            assert file.replace('{run}', str(recipe.work_dir / run)) in outputs, heading


@pytest.mark.parametrize('name', ['aesipe_msrc', 'aesipe_synth', 'aesipe_voc'])
def test_pipelines_hand_on_what_they_make(name, monkeypatch):
    monkeypatch.chdir(tiny_run.ROOT)
    path = tiny_run.ROOT / f'configs/recipes/{name}.py'
    recipe = load_recipe(path, root=tiny_run.ROOT)
    configs = {p.stem: c for p, c in run_configs(recipe, 'seed_0').items()}
    folder = recipe.work_dir / 'seed_0'
    for part, labels in (('irnet', 'ir_labels'), ('segmentor', 'labels')):
        config = configs[part]
        step = config.train_dataloader.dataset.pipeline[1]
        assert step.type == 'mmwsss.LoadPseudoLabels'
        assert step.label_root == f'{folder}/{labels}/SegmentationClass'
        assert config.val_dataloader is None
        assert str(step.num_classes) == recipe.values['num_classes']
    step = configs['irnet'].test_dataloader.dataset.pipeline[2]
    assert step == dict(type='mmwsss.LoadCAMs', cam_root=f'{folder}/cams')
    assert configs['irnet'].model.background_threshold is None
    last = configs['segmentor'].train_cfg.max_iters
    assert recipe.values['checkpoint'] == f'iter_{last}.pth'
    number = int(recipe.values['num_classes'])
    assert configs['config'].model.num_classes == number - 1
    assert configs['segmentor'].model.decode_head.num_classes == number
    roots = {c.train_dataloader.dataset.data_root for c in configs.values()}
    assert roots == {recipe.values['data']}
    # The background that is stored times the IR labels' factors: 1 and 0.8.
    stored = configs['config'].model.get('bg_rescale', 1.0)
    factors = [recipe.values[k] for k in ('ir_objects', 'ir_background')]
    factors = [float(text.partition('*')[2] or 1) * stored for text in factors]
    assert factors == pytest.approx([1.0, 0.8])


@pytest.mark.parametrize('name', ['sipe_table2_msrc', 'sipe_table3_msrc'])
def test_rows_of_the_tables_are_networks_that_have_their_maps(name, monkeypatch):
    import mmwsss.models  # noqa: F401
    from mmwsss.registry import MODELS

    monkeypatch.chdir(tiny_run.ROOT)
    path = tiny_run.ROOT / f'configs/recipes/{name}.py'
    recipe = load_recipe(path, root=tiny_run.ROOT)
    orders, switches = {}, {}
    for row in recipe.rows:
        run = next(r for r, (own, seed) in recipe.runs().items() if own == row)
        configs = run_configs(recipe, run)
        (config,) = configs.values()
        config.model.weights = None
        init_default_scope(config.default_scope)
        model = MODELS.build(config.model)
        stages = stages_of(recipe, run, root=tiny_run.ROOT, configs=configs)
        command = next(s.command for s in stages if s.name == 'make CAMs')
        kind = command[command.index('--kind') + 1]
        assert kind in model.kinds
        assert dict(model.gsc_weights).keys() == {kind} - {'cam'}, row
        orders[row] = ''.join(step[1] for step in model.enhancement)
        switches[row] = (model.train_seed_features, model.norm)
    assert orders['CAM'] == orders['SIPE'] == ''
    a, r, s = 'a', 'r', 's'  # pAmr, pRototypes, iS_cam
    if name == 'sipe_table3_msrc':
        assert list(orders.values())[2:] == [
            *(r + s, a + r + s, a + r + s + r + s),
            *(r + s + a + r + s, a + r + s + a + r + s),
        ]
    else:
        assert set(list(orders.values())[2:]) == {a + r + s}
        assert list(switches.values())[2:] == [
            *(('deepest', 'max'), ('hierarchical', 'max')),
            *(('hierarchical', 'minmax'), ('deepest', 'minmax')),
        ]


def test_rows_that_two_tables_share_are_the_same_runs(monkeypatch):
    monkeypatch.chdir(tiny_run.ROOT)
    folder = tiny_run.ROOT / 'configs/recipes'
    two, three = (
        load_recipe(folder / f'sipe_table{number}_msrc.py', root=tiny_run.ROOT)
        for number in (2, 3)
    )
    assert two.summary != three.summary
    shared = set(two.runs()) & set(three.runs())
    assert len(shared) == 3 * len(two.seeds)
    for run in shared:
        first, second = run_configs(two, run), run_configs(three, run)
        assert first.keys() == second.keys()
        assert [c.to_dict() for c in first.values()] == [
            c.to_dict() for c in second.values()
        ]


def test_config_of_a_run_can_be_read_back(tmp_path, monkeypatch):
    """What is written is what counts as input."""
    from mmwsss.apis.recipe import write_configs

    monkeypatch.chdir(tiny_run.ROOT)
    path = tiny_run.ROOT / 'configs/recipes/aesipe_msrc.py'
    text = path.read_text().replace('./_base_', f'{path.parent}/_base_')
    changed = tmp_path / 'recipe.py'
    changed.write_text(f'{text}\nwork_dir = {str(tmp_path / "work")!r}\n')
    recipe = load_recipe(changed, root=tiny_run.ROOT)
    configs = run_configs(recipe, 'seed_1')
    write_configs(configs)
    for path, config in configs.items():
        read = Config.fromfile(path, import_custom_modules=False)
        assert read.to_dict() == config.to_dict()
