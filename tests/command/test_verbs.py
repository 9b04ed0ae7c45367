"""The verbs from training to the report, on eight drawn photos."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_run
import torch
from click.testing import CliRunner
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS

from mmwsss.command import group
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm


def call(*words, code=0):
    """Lines of standard output of a verb."""
    result = CliRunner().invoke(group, [str(word) for word in words])
    if isinstance(result.exception, InputError):
        raise result.exception
    assert result.exit_code == code, (result.output, result.exception)
    return result.stdout.splitlines()


def log(folder):
    text = (folder / 'log.jsonl').read_text(encoding='utf-8')
    return [json.loads(line) for line in text.splitlines()]


def snapshot(folder):
    """Bytes of all files, to see that nothing is written."""
    return {p: p.read_bytes() for p in Path(folder).rglob('*') if p.is_file()}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A config that names another folder; ``--data`` tells where the photos are."""
    monkeypatch.chdir(tmp_path)
    tiny_run.draw(tmp_path / 'photos')
    content = tiny_run.tested_config(Path('nowhere'))
    content['data_root'] = 'nowhere'
    return tiny_run.write_config(tmp_path / 'tiny.py', content)


@pytest.fixture
def network(config, tmp_path):
    """A work directory with a checkpoint, the network as it is drawn."""
    from mmwsss.command.found import read_config

    cfg = read_config(config)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    (tmp_path / 'run').mkdir()
    path = tmp_path / 'run/iter_2.pth'
    torch.save({'state_dict': MODELS.build(cfg.model).state_dict()}, path)
    (tmp_path / 'run/last_checkpoint').write_text(str(path))
    return tmp_path / 'run'


def test_train_begins_refuses_goes_on_and_begins_again(config, tmp_path):
    given = ['train', config, '--data', 'photos', '--work-dir', 'run']
    lines = call(*given, '--dry-run')
    assert 'would read   train photos: photos (8)' in lines
    assert 'would write  checkpoints and logs: run (from the start)' in lines
    assert 'training: 2 iterations of 2 photos each' in lines
    assert not (tmp_path / 'run').exists()

    assert call(*given)[-1] == '1 ok, 0 skipped, 0 failed'
    run = tmp_path / 'run'
    assert (run / 'iter_2.pth').is_file()
    assert [e['event'] for e in log(run)] == ['begin', 'ok', 'end']
    assert log(run)[0]['options']['data'] == 'photos'

    before = snapshot(run)
    for words in ([], ['--dry-run']):
        with pytest.raises(InputError, match='--resume to go on, --overwrite to begin'):
            call(*given, *words)
    with pytest.raises(InputError, match='give one'):
        call(*given, '--resume', '--overwrite')
    assert 'going on from the latest' in '\n'.join(
        call(*given, '--resume', '--dry-run')
    )
    # A config that cannot be built costs nothing, even with --overwrite.
    call(*given, '--overwrite', '--cfg-options', 'model.type=mmwsss.No', code=1)
    assert {p: b for p, b in snapshot(run).items() if p.suffix == '.pth'} == {
        p: b for p, b in before.items() if p.suffix == '.pth'
    }

    longer = ['--cfg-options', 'train_cfg.max_iters=4']
    call(*given, '--resume', *longer)
    assert (run / 'iter_2.pth').read_bytes() == before[run / 'iter_2.pth']
    assert (run / 'iter_4.pth').is_file()
    call(*given, '--overwrite')
    assert (run / 'iter_2.pth').is_file()
    assert not (run / 'iter_4.pth').exists()


def test_test_scores_and_keeps_label_maps(config, network, tmp_path):
    given = ['test', config, 'run', '--data', 'photos', '--out', 'maps']
    lines = call(*given, '--dry-run')
    assert 'would write  label maps: maps (8)' in lines
    assert lines[-1] == 'dry run: 8 to make, 0 there already; nothing was written'
    assert not (tmp_path / 'maps').exists()
    assert call(*given)[-1] == '8 ok, 0 skipped, 0 failed'
    assert len(list((tmp_path / 'maps').glob('*.png'))) == 8
    (metrics,) = [
        e for e in log(tmp_path / 'work_dirs/tiny') if e['event'] == 'metrics'
    ]
    assert 0 <= metrics['mIoU'] <= 100
    with pytest.raises(InputError, match='--overwrite'):
        call(*given)


def test_make_cams_counts_what_is_made_and_what_was_there(config, network, tmp_path):
    given = ['make-cams', config, 'run', '--data', 'photos', '--out', 'cams']
    assert call(*given, '--dry-run')[-1].startswith('dry run: 8 to make, 0 there')
    assert not (tmp_path / 'cams').exists()
    assert call(*given)[-1] == '8 ok, 0 skipped, 0 failed'
    cams = tmp_path / 'cams'
    made = {e['item'] for e in log(cams) if e['event'] == 'ok'}
    assert made == {f'photo_{i}' for i in range(8)}

    before = snapshot(cams)
    (cams / 'photo_3.npz').unlink()
    assert call(*given, '--dry-run')[-1].startswith('dry run: 1 to make, 7 there')
    assert call(*given)[-1] == '1 ok, 7 skipped, 0 failed'
    assert (cams / 'photo_3.npz').read_bytes() == before[cams / 'photo_3.npz']
    with pytest.raises(InputError, match='another dtype'):
        call(*given, '--dtype', 'uint8')
    assert call(*given, '--dtype', 'uint8', '--overwrite')[-1].startswith('8 ok')
    with pytest.raises(InputError, match='either CHECKPOINT or'):
        call('make-cams', config, '--out', 'cams')


def test_make_cams_counts_what_was_made_before_a_bad_photo(config, network, tmp_path):
    photo = tmp_path / 'photos/JPEGImages/photo_5.jpg'
    whole = photo.read_bytes()
    photo.write_bytes(whole[:400])
    given = ['make-cams', config, 'run', '--data', 'photos', '--out', 'cams']
    limit = ['--max-unreadable', 0]
    assert call(*given, *limit, code=1)[-1] == '5 ok, 0 skipped, 1 failed'
    (error,) = [e for e in log(tmp_path / 'cams') if e['event'] == 'error']
    assert 'photo_5' in error['reason']

    lines = call(*given, code=1)
    assert lines[-1] == '2 ok, 5 skipped, 1 failed'
    assert '1 photos, listed in cams/unreadable.txt; replace them' in lines[-2]
    assert (tmp_path / 'cams/unreadable.txt').read_text() == 'photo_5\n'
    photo.write_bytes(whole)
    assert call(*given)[-1] == '1 ok, 7 skipped, 0 failed'
    assert not (tmp_path / 'cams/unreadable.txt').exists()


def test_tools_leave_out_what_cannot_be_read(config, network, tmp_path):
    given = ['make-cams', config, 'run', '--data', 'photos', '--out', 'cams']
    call(*given)
    photo = tmp_path / 'photos/JPEGImages/photo_5.jpg'
    photo.write_bytes(photo.read_bytes()[:400])
    given = ['make-pseudo-labels', config, '--data', 'photos', '--cams', 'cams']
    given += ['--background', 0.3, '--refine', 'PAR(num_iters=1)', '--out', 'labels']
    lines = call(*given, code=1)
    assert lines[-1] == '7 ok, 0 skipped, 1 failed'
    assert '1 photos, listed in labels/unreadable.txt' in lines[-2]
    assert 'photo_5.jpg is truncated or damaged' in ''.join(lines)
    # The list does for --list and exclude alike.
    option = f'train_dataloader.dataset.exclude={tmp_path}/labels/unreadable.txt'
    call(*given, '--cfg-options', option)


def test_train_leaves_photos_out(config, tmp_path):
    photo = tmp_path / 'photos/JPEGImages/photo_3.jpg'
    photo.write_bytes(photo.read_bytes()[:-300])
    (tmp_path / 'photos/mine.txt').write_text('photo_6\n')
    check = ['prepare-data', 'check', 'photos', 'photos/JPEGImages']
    call(*check, '--list', 'broken.txt', code=1)
    assert (tmp_path / 'broken.txt').read_text() == 'photo_3\n'
    given = ['train', config, '--data', 'photos', '--work-dir', 'run']
    given += ['--exclude', 'broken.txt', '--exclude', 'photos/mine.txt']
    lines = call(*given, '--dry-run')
    assert 'would read   train photos: photos (6)' in lines
    assert 'would read   val photos: photos (8)' in lines
    with pytest.raises(InputError, match=r'the list none.txt does not exist'):
        call('train', config, '--data', 'photos', '--exclude', 'none.txt')


def test_evaluate_and_report_never_replace_another_run(config, network, tmp_path):
    given = ['evaluate', config, 'run', '--data', 'photos', '--out', 'numbers']
    few = ['--num-pictures', '1']
    lines = call(*given, *few, '--dry-run')
    assert 'would read   val photos: 8 (missing)' in lines
    assert not (tmp_path / 'numbers').exists()
    lines = call(*given, *few, '--split', 'val')
    assert lines[-1] == '8 ok, 0 skipped, 0 failed'
    assert any(line.startswith('val   Segmentor ') for line in lines)
    assert call(*given, *few)[-1] == '8 ok, 8 skipped, 0 failed'
    numbers = {e['key'] for e in log(tmp_path / 'numbers') if e['event'] == 'number'}
    assert {'train/segmentor', 'val/segmentor'} <= numbers

    before = snapshot(tmp_path / 'numbers')
    with pytest.raises(InputError, match='another run or of other options'):
        call(*given, '--num-pictures', '2')
    assert snapshot(tmp_path / 'numbers') == before
    call(*given, '--num-pictures', '2', '--overwrite')

    page = tmp_path / 'numbers/report.html'
    call('report', 'numbers', '--dry-run')
    assert not page.exists()
    assert call('report', 'numbers')[-1] == '1 ok, 0 skipped, 0 failed'
    assert page.is_file()
    with pytest.raises(InputError, match='--overwrite'):
        call('report', 'numbers')
    call('report', 'numbers', '--overwrite')
    with pytest.raises(InputError, match='--out'):
        call('report', 'numbers', 'run')


def test_recipe_counts_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tiny_run.ROOT))
    # The second stage asks for a folder that is not there.
    Path('recipe.py').write_text(
        "work_dir = 'work'\n"
        'stages = [\n'
        "  dict(name='help', command=['tools/report.py', '--help']),\n"
        "  dict(name='page', command=['tools/report.py', '{run}/none']),\n"
        ']\n'
    )
    lines = call('recipe', 'recipe.py', '--dry-run')
    assert '  help: would run (never run)' in lines
    assert not Path('work').exists()
    assert call('recipe', 'recipe.py', '--run', 'seed_0', code=1)[-1] == (
        '1 ok, 0 skipped, 1 failed'
    )
    assert call('recipe', 'recipe.py', '--run', 'seed_0', '--only', 'help')[-1] == (
        '0 ok, 1 skipped, 0 failed'
    )
    events = [(e['event'], e.get('item')) for e in log(Path('work'))]
    assert ('ok', 'seed_0: help') in events
    assert ('failed', 'seed_0: page') in events
    assert ('skipped', 'seed_0: help') in events


def test_config_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match='did you mean clipdino_refine_voc'):
        call('train', 'clipdino_refine_vok')
    with pytest.raises(InputError, match='image labels'):
        call('train', 'clipdino_refine_voc', '--data', tmp_path, '--dry-run')


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Two runs of two stages, whose tools are stand-ins."""
    (tmp_path / 'clone/tools').mkdir(parents=True)
    shutil.copy(tiny_run.ROOT / 'tools/run_recipe.py', tmp_path / 'clone/tools')
    (tmp_path / 'clone/tools/step.py').write_text(
        'import pathlib, sys\n'
        'given, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])\n'
        'out.parent.mkdir(parents=True, exist_ok=True)\n'
        'out.write_text(given.read_text() + out.stem)\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(tiny_run.ROOT))
    monkeypatch.setattr('mmwsss.command.recipe.resources', lambda: tmp_path / 'clone')
    Path('given').write_text('1')
    Path('both.py').write_text(
        "work_dir = 'work'\n"
        'seeds = [0, 1]\n'
        'stages = [\n'
        "  dict(name='a', command=['tools/step.py', 'given', '{run}/a'],\n"
        "       inputs=['given'], outputs=['{run}/a']),\n"
        "  dict(name='b', command=['tools/step.py', '{run}/a', '{run}/b'],\n"
        "       inputs=['{run}/a'], outputs=['{run}/b']),\n"
        ']\n'
    )


def test_recipe_runs_all_again_from_a_stage_and_shows_the_table(recipe):
    lines = call('recipe', 'both.py', '--jobs', 2)
    assert lines[-1] == '4 ok, 0 skipped, 0 failed'
    for seed in (0, 1):
        assert Path(f'work/seed_{seed}/b').read_text() == '1ab'
    items = {e['item'] for e in log(Path('work')) if e['event'] == 'ok'}
    assert items == {f'seed_{s}: {stage}' for s in (0, 1) for stage in 'ab'}
    # Of what is done, without a run and without another line of the log.
    before = snapshot('work')
    table = call('recipe', 'both.py', '--table')
    assert snapshot('work') == before
    assert table
    assert [line for line in lines if line in table] == table

    assert call('recipe', 'both.py', '--jobs', 2, '--from', 'b')[-1] == (
        '2 ok, 2 skipped, 0 failed'
    )
    Path('given').unlink()
    lines = call('recipe', 'both.py', '--jobs', 2, code=1)
    assert lines[-1] == '0 ok, 2 skipped, 2 failed'
    items = {e['item'] for e in log(Path('work')) if e['event'] == 'failed'}
    assert items == {'seed_0: a', 'seed_1: a'}
