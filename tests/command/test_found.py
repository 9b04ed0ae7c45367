"""Configs by name, from a checkout and from what a wheel holds; changes of configs."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from mmwsss.command.configs import command as configs_command
from mmwsss.command.found import (
    RECIPES,
    changes,
    count_photos,
    find_config,
    known_configs,
    parse_options,
    read_config,
)
from mmwsss.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_names_are_those_of_the_files():
    assert set(known_configs()) == {p.stem for p in (ROOT / 'configs').glob('*.py')}
    recipes = {p.stem for p in (ROOT / 'configs/recipes').glob('*.py')}
    assert set(known_configs(folder=RECIPES)) == recipes


@pytest.mark.parametrize(
    'name', ['sipe_msrc', 'sipe_msrc.py', 'configs/sipe_msrc.py', 'configs/sipe_msrc']
)
def test_a_config_is_found_by_name_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / 'configs/sipe_msrc.py'


def test_a_recipe_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = ROOT / 'configs/recipes/orand_msrc.py'
    for name in ('orand_msrc', 'configs/recipes/orand_msrc.py'):
        assert find_config(name, folder=RECIPES) == wanted


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'sipe_msrc').write_text('')
    assert find_config('sipe_msrc') == Path('sipe_msrc')


def test_an_unknown_name_gets_what_comes_near():
    with pytest.raises(InputError, match='did you mean clipdino_refine_voc') as error:
        find_config('clipdino_refine_vok')
    assert '`mmwsss configs`' in str(error.value)
    with pytest.raises(InputError) as error:
        find_config('qqqqqqqq')
    assert 'did you mean' not in str(error.value)
    # Somewhere else there is no such file, whatever its name.
    with pytest.raises(InputError, match='neither a file'):
        find_config('elsewhere/sipe_msrc.py')


def test_recipes_and_configs_are_told_apart():
    with pytest.raises(InputError, match='mmwsss recipe orand_msrc'):
        find_config('orand_msrc')
    with pytest.raises(InputError, match='mmwsss train clipdino_refine_voc'):
        find_config('clipdino_refine_voc', folder=RECIPES)


def test_the_list_shows_names_and_first_lines():
    result = CliRunner().invoke(configs_command, ['synth', 'sipe'])
    assert result.exit_code == 0
    assert result.output.splitlines() == [
        'configs:',
        '  aesipe_synth  AE-SIPE on the synthetic benchmark',
        'recipes (mmwsss recipe NAME):',
        result.output.splitlines()[3],
        '2 found',
    ]
    assert 'aesipe_synth  AE-SIPE from image labels' in result.output
    nothing = CliRunner().invoke(
        configs_command, ['qqqq'], standalone_mode=False, catch_exceptions=False
    )
    assert nothing.return_value == 1


# ------------------------------------------------------------------------ the changes
@pytest.mark.mm
def test_options_are_read_as_mmengine_reads_them():
    found = parse_options(['a.b=3', 'c=[1,2]', 'd=(1.5,)', 'e=text', 'f=None', 'g=x=y'])
    wanted = {'a.b': 3, 'c': [1, 2], 'd': (1.5,), 'e': 'text', 'f': None, 'g': 'x=y'}
    assert found == wanted
    assert parse_options([]) == {}
    with pytest.raises(InputError, match='KEY=VALUE'):
        parse_options(['a'])


CONFIG = """
data_root = 'data/voc'
other = 'data/voc12/x'
dataset = dict(root=data_root, lists=['data/voc/a.txt', ('data/voc/b', 3)])
train_dataloader = dict(dataset=dict(inner=dict(data_root=data_root)))
steps = [dict(folder=f'{data_root}/cams'), 5, None]
"""


@pytest.mark.mm
def test_data_takes_the_place_of_the_root_wherever_it_stands(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    data = tmp_path / 'mine'
    data.mkdir()
    config = read_config(path, ['steps.0.kind=x'], data=data)
    assert config.data_root == config.dataset.root == str(data)
    assert config.train_dataloader.dataset.inner.data_root == str(data)
    assert config.steps[0].folder == f'{data}/cams'
    assert config.dataset.lists == [f'{data}/a.txt', (f'{data}/b', 3)]
    assert config.other == 'data/voc12/x'
    assert config.steps[0].kind == 'x'
    assert config.work_dir == 'work_dirs/config'
    assert read_config(path, work_dir=tmp_path).work_dir == str(tmp_path)


@pytest.mark.mm
def test_data_of_a_shipped_config_reaches_all_loaders(tmp_path):
    path = find_config('clipdino_refine_voc')
    config = read_config(path, data=tmp_path)
    for name in ('train', 'train_eval', 'val', 'test'):
        assert config[f'{name}_dataloader'].dataset.data_root == str(tmp_path)


@pytest.mark.mm
def test_an_option_wins_over_data_and_mistakes_are_said(tmp_path):
    path = tmp_path / 'config.py'
    path.write_text(CONFIG)
    assert changes(path, ['data_root=z'], data=tmp_path)['data_root'] == 'z'
    with pytest.raises(InputError, match='is no folder'):
        changes(path, [], data=tmp_path / 'nowhere')
    path.write_text('a = 1')
    with pytest.raises(InputError, match='sets no data_root'):
        changes(path, [], data=tmp_path)
    with pytest.raises(InputError, match='has no val_dataloader'):
        count_photos(read_config(path), 'val')


# -------------------------------------------------------------------------- the wheel
SINGLE_FILES = (
    *('setup.py', 'pyproject.toml', 'README.md', 'LICENSE', 'MANIFEST.in'),
    'model-index.yml',
)


@pytest.fixture(scope='module')
def unpacked(tmp_path_factory):
    """What a wheel holds, built from a copy, so that nothing is left in the source."""
    pytest.importorskip('setuptools', reason='a wheel is built with setuptools')
    source = tmp_path_factory.mktemp('source')
    for name in SINGLE_FILES:
        shutil.copy(ROOT / name, source)
    junk = shutil.ignore_patterns('__pycache__')
    for name in ('mmwsss', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name, ignore=junk)
    # Of an earlier build.
    (source / 'build/lib/mmwsss/.mim/configs').mkdir(parents=True)
    (source / 'build/lib/mmwsss/.mim/configs/gone.py').write_text('')
    subprocess.run(
        [sys.executable, 'setup.py', '-q', 'bdist_wheel', '-d', 'wheel'],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (wheel,) = (source / 'wheel').glob('*.whl')
    target = tmp_path_factory.mktemp('unpacked')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def files(folder, pattern):
    found = (p for p in folder.rglob(pattern) if p.is_file())
    return {str(p.relative_to(folder)) for p in found if p.suffix != '.pyc'}


def test_a_wheel_holds_configs_tools_and_the_command(unpacked):
    shipped = unpacked / 'mmwsss/.mim'
    for name, pattern in (('configs', '*.*'), ('tools', '*.py')):
        assert files(shipped / name, '*') == files(ROOT / name, pattern)
    assert (shipped / 'model-index.yml').is_file()
    (entries,) = unpacked.glob('*.dist-info/entry_points.txt')
    assert 'mmwsss = mmwsss.command:main' in entries.read_text()
    (metadata,) = unpacked.glob('*.dist-info/METADATA')
    assert 'Provides-Extra: export' in metadata.read_text()
    assert {'command/common.py', '__main__.py'} <= files(unpacked / 'mmwsss', '*.py')


@pytest.mark.mm
def test_an_installed_wheel_finds_them_and_plans_a_recipe(unpacked, tmp_path):
    code = (
        'from click.testing import CliRunner\n'
        'from mmwsss.command import group\n'
        'from mmwsss.command.found import find_config\n'
        'print(find_config("sipe_msrc"))\n'
        'run = CliRunner().invoke(group, ["recipe", "aesipe_synth", "--dry-run"])\n'
        'print(run.output, run.exception)\n'
    )
    done = subprocess.run(
        [sys.executable, '-c', code],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={'PYTHONPATH': str(unpacked), 'PATH': '', 'OMP_NUM_THREADS': '1'},
    )
    assert str(unpacked / 'mmwsss/.mim/configs/sipe_msrc.py') in done.stdout
    assert 'train DeepLabV3: would run (never run)' in done.stdout
    assert 'dry run: nothing was written' in done.stdout
    assert not list(tmp_path.iterdir())
