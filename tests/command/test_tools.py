"""Verbs over the functions of tools/: their options, counts, logs and messages."""

import ast
import json
import shutil
import sys
from pathlib import Path

import click
import fake_cams
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import mmwsss
from mmwsss import errors
from mmwsss.command import VERBS, group
from mmwsss.command.tools import TOOLS, parse
from mmwsss.errors import InputError, tool

ROOT = Path(__file__).resolve().parents[2]


def call(*words, code=0):
    """Lines of standard output of a verb."""
    result = CliRunner().invoke(group, [str(word) for word in words])
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout.splitlines()


def log(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def files(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


# --------------------------------------------------------------------------- messages
@pytest.mark.parametrize(
    ('started', 'said'),
    [
        ('/usr/bin/mmwsss', 'mmwsss make-cams'),
        (str(Path(mmwsss.__file__).parent / '__main__.py'), 'mmwsss make-cams'),
        ('C:/Scripts/mmwsss.exe', 'mmwsss make-cams'),
        ('tools/train.py', 'python tools/make_cams.py'),
        ('/venv/bin/pytest', 'python tools/make_cams.py'),
        ('', 'python tools/make_cams.py'),
    ],
)
def test_messages_say_what_was_started(monkeypatch, started, said):
    monkeypatch.setattr(sys, 'argv', [started])
    assert tool('make_cams') == said


def test_an_installed_copy_has_no_tools_to_suggest(monkeypatch, tmp_path):
    monkeypatch.setattr(errors, '__file__', str(tmp_path / 'errors.py'))
    assert tool('run_recipe') == 'python tools/run_recipe.py'
    (tmp_path / '.mim').mkdir()
    assert tool('run_recipe') == 'mmwsss recipe'


def test_no_message_names_a_tool_by_itself():
    """Or what a pip user reads leads nowhere; every name is a tool and a verb."""
    names = set()
    for path in (ROOT / 'mmwsss').rglob('*.py'):
        tree = ast.parse(path.read_text())
        docs = {
            ast.get_docstring(node, clean=False)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                said = node.value not in docs and 'python tools/' in node.value
                assert not said or path.name == 'errors.py', (path, node.value)
            called = isinstance(node, ast.Call) and getattr(node.func, 'id', '')
            if called == 'tool':
                names.add(node.args[0].value)
    assert len(names) > 10
    for name in names:
        assert (ROOT / f'tools/{name}.py').is_file(), name
        verb = 'recipe' if name == 'run_recipe' else name.replace('_', '-')
        assert verb in VERBS, verb


# ---------------------------------------------------------------------------- options
@pytest.mark.mm
@pytest.mark.parametrize('name', TOOLS)
def test_the_example_of_a_verb_can_be_read(name, monkeypatch, tmp_path):
    """Also its --data and the name of its config."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'smoke.py').write_text('data_root = "x"\nds = dict(root=data_root)')
    (tmp_path / 'data/VOC2012').mkdir(parents=True)
    for line in TOOLS[name].example.splitlines():
        program, verb, *words = line.split()
        assert (program, verb) == ('mmwsss', name)
        args = parse(name, words)
        if TOOLS[name].config:
            assert Path(args.config).is_file()
            if args.data:
                assert args.cfg_options['data_root'] == 'data/VOC2012'


@pytest.mark.mm
def test_options_win_over_data(tmp_path):
    from mmwsss.apis.train import load_config

    path = tmp_path / 'a.py'
    path.write_text('data_root = "x"\nds = dict(root=data_root)')
    words = [str(path), 'cams', 'b', '--mode', 'or', '--out', 'c']
    words += ['--data', str(tmp_path), '--cfg-options', 'ds.root=z']
    args = parse('fuse-cams', words)
    config = load_config(args.config, args.cfg_options, None)
    assert (config.data_root, config.ds.root) == (str(tmp_path), 'z')
    with pytest.raises(click.UsageError, match='--mode'):
        parse('fuse-cams', ['a', 'b', '--out', 'c'])
    with pytest.raises(InputError, match='neither a file nowhere nor a config'):
        parse('fuse-cams', ['nowhere', *words[1:]])


# ------------------------------------------------------------------ what the verbs do
@pytest.mark.mm
def test_cams_to_labels_and_their_scores(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config, checkpoint = fake_cams.write(tmp_path)
    call('make-cams', config, checkpoint, '--kind', 'cam', '--out', 'cams')
    given = ['make-pseudo-labels', config, '--cams', 'cams', '--out', 'labels']
    lines = call(*given, '--dry-run')
    assert '8 label maps to make, 0 there already' in lines[-1]
    assert not (tmp_path / 'labels').exists()

    assert call(*given)[-1] == '8 ok, 0 skipped, 0 failed'
    (tmp_path / 'labels/SegmentationClass/photo_3.png').unlink()
    assert call(*given)[-1] == '1 ok, 7 skipped, 0 failed'
    begins = [e for e in log(tmp_path / 'labels/log.jsonl') if e['event'] == 'begin']
    assert [e['verb'] for e in begins] == ['make-pseudo-labels'] * 2
    assert begins[0]['options']['words'][1:3] == ['--cams', 'cams']

    # Another rule is refused, and nothing is lost.
    before = files('labels/SegmentationClass')
    assert call(*given, '--background', '0.4', code=1)[-1].startswith('0 ok')
    assert files('labels/SegmentationClass') == before

    # What was made before something stopped it is counted.
    fused = ['fuse-cams', config, 'cams', 'cams', '--mode', 'mean', '--out', 'fused']
    store = tmp_path / 'cams/photo_5.npz'
    content = store.read_bytes()
    store.write_bytes(content[: len(content) // 2])
    assert call(*fused, code=1)[-1] == '5 ok, 0 skipped, 1 failed'
    store.write_bytes(content)
    assert call(*fused)[-1].endswith('0 failed')

    given = ['select-threshold', config, '--cams', 'cams', '--json', 'chosen.json']
    assert call(*given)[-1] == '6 ok, 0 skipped, 0 failed'
    assert log(tmp_path / 'chosen.log.jsonl')[-1]['ok'] == 6
    before = files('.')
    result = CliRunner().invoke(group, [str(word) for word in given])
    assert 'chosen.json is there already' in str(result.exception)
    assert files('.') == before
    call(*given, '--overwrite')

    masks = 'labels/SegmentationClass'
    given = ['eval-pseudo-labels', masks, masks, '--num-classes', '3']
    before = files('.')
    lines = call(*given)
    assert lines[-1] == '8 ok, 0 skipped, 0 failed'
    assert any('mIoU' in line and '100.00' in line for line in lines), lines
    assert files('.') == before


@pytest.mark.mm
def test_prepare_data_checks_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save('a.png')
    (tmp_path / 'tags.csv').write_text('a.png,cat\n')
    given = ['prepare-data', 'tags', 'tags.csv', '--images', '.', '--out', 'x.json']
    assert call(*given)[-1] == '1 ok, 0 skipped, 0 failed'
    assert [e['event'] for e in log(tmp_path / 'x.log.jsonl')] == ['begin', 'ok', 'end']
    shutil.move('x.json', 'image_labels.json')
    before = files('.')
    check = ['prepare-data', 'check', 'folder', '.', '--workers', '1']
    assert call(*check)[-1] == '1 ok, 0 skipped, 0 failed'
    Path('a.png').write_bytes(before[Path('a.png')][:45])
    lines = call(*check, code=1)
    assert lines[-1].endswith('1 failed')
    assert any('a.png' in line for line in lines)
    assert set(files('.')) == set(before)


@pytest.mark.mm
def test_convert_and_doctor_log_beside_what_they_write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('photos/cat').mkdir(parents=True)
    Path('photos/dog').mkdir()
    for number, name in enumerate(('cat/a.png', 'dog/b.png')):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 40, 3), np.uint8)
        Image.fromarray(pixels).save(f'photos/{name}')
    before = files('photos')
    call('convert', 'tags', 'photos', '--out', 'tags.json')
    entries = log(tmp_path / 'tags.log.jsonl')
    assert entries[0]['options']['source'] == 'photos'
    assert entries[-1]['ok'] == 2

    Path('masks').mkdir()
    Image.fromarray(np.ones((40, 40), np.uint8)).save('masks/a.png')
    Path('names.txt').write_text('background\ncat\n')
    call(
        *('convert', 'masks', 'masks', '--format', 'coco', '--classes', 'names.txt'),
        *('--out', 'coco'),
    )
    made = [e['item'] for e in log(tmp_path / 'coco/log.jsonl') if e['event'] == 'ok']
    assert made == ['a']

    given = ['doctor', 'photos', '--labels', 'tags.json', '--only-data']
    there = files('.')
    result = CliRunner().invoke(group, given)
    assert result.stdout.splitlines()[-1].startswith('2 ok, 0 skipped, ')
    assert files('.') == there
    CliRunner().invoke(group, [*given, '--json', 'found.json'])
    entries = log(tmp_path / 'found.log.jsonl')
    found = json.loads(Path('found.json').read_text())['findings']
    assert [e['code'] for e in entries if e['event'] == 'finding'] == [
        finding['code'] for finding in found
    ]
    assert found
    assert files('photos') == before
