"""Counts, the last line, the log, and what a dry run says."""

import json

import click
import pytest
from click.testing import CliRunner

from mmwsss.command.common import Run, refuse_existing, show_plan
from mmwsss.errors import InputError


def lines(folder):
    text = (folder / 'log.jsonl').read_text(encoding='utf-8')
    return [json.loads(line) for line in text.splitlines()]


def make_one_then(error, folder):
    with Run('label', folder=folder) as run:
        run.ok('a')
        raise error


def test_counts_are_the_last_line_and_every_item_is_logged(tmp_path, capsys):
    folder = tmp_path / 'out'
    with Run('label', folder=folder) as run:
        run.ok('a')
        run.ok(count=3)
        run.skipped(count=2)
        run.skipped(count=0)
        run.failed('ä.jpg', reason='cut off')
        run.note('metrics', {'mIoU': 12.5})
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == '4 ok, 2 skipped, 1 failed'
    assert shown.err == 'failed: ä.jpg: cut off\n'
    found = lines(folder)
    assert [e['event'] for e in found] == [
        *('begin', 'ok', 'ok', 'skipped', 'failed', 'metrics', 'end')
    ]
    assert found[1]['item'] == 'a'
    assert found[4] == found[4] | {'item': 'ä.jpg', 'reason': 'cut off', 'count': 1}
    assert found[-1] == found[-1] | {'ok': 4, 'skipped': 2, 'failed': 1}
    assert all('time' in e for e in found)


def test_the_log_is_appended_to_and_has_the_options(tmp_path):
    @click.command()
    @click.option('--jobs', default=3)
    def command(jobs):
        with Run('label', folder=tmp_path) as run:
            run.ok('a')

    assert CliRunner().invoke(command, []).exit_code == 0
    assert CliRunner().invoke(command, ['--jobs', '4']).exit_code == 0
    begins = [e for e in lines(tmp_path) if e['event'] == 'begin']
    assert [e['options'] for e in begins] == [{'jobs': 3}, {'jobs': 4}]


@pytest.mark.parametrize(
    ('ok', 'skipped', 'failed', 'code'),
    [(0, 0, 0, 1), (0, 0, 1, 1), (0, 1, 0, None), (1, 0, 1, None), (1, 0, 0, None)],
)
def test_the_code_says_whether_something_came_out(ok, skipped, failed, code, capsys):
    def work():
        with Run('label', folder=None) as run:
            run.ok(count=ok)
            run.skipped(count=skipped)
            for number in range(failed):
                run.failed(str(number), reason='no')

    if code is None:
        work()
    else:
        with pytest.raises(SystemExit) as left:
            work()
        assert left.value.code == code
    assert capsys.readouterr().out == f'{ok} ok, {skipped} skipped, {failed} failed\n'


def test_bad_input_is_a_sentence_before_the_counts_and_code_1(tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        make_one_then(InputError('the disk is full; make room'), tmp_path)
    assert left.value.code == 1
    shown = capsys.readouterr()
    assert shown.err == 'error: the disk is full; make room\n'
    assert shown.out == '1 ok, 0 skipped, 1 failed\n'
    assert lines(tmp_path)[-2]['reason'] == 'the disk is full; make room'


def test_a_refused_command_leaves_no_trace(tmp_path):
    with pytest.raises(SystemExit), Run('label', folder=tmp_path / 'out'):
        raise InputError('no')
    assert not (tmp_path / 'out').exists()
    # Where there is a log it tells of the refusal.
    with Run('label', folder=tmp_path) as run:
        run.start()
        run.ok()
    with pytest.raises(SystemExit), Run('label', folder=tmp_path):
        raise InputError('no')
    assert [e['event'] for e in lines(tmp_path)][-3:] == ['begin', 'error', 'end']


@pytest.mark.parametrize('error', [KeyboardInterrupt, ZeroDivisionError])
def test_other_errors_pass_and_are_logged(tmp_path, error):
    with pytest.raises(error):
        make_one_then(error, tmp_path)
    assert [e['event'] for e in lines(tmp_path)] == ['begin', 'ok', 'error', 'end']
    assert lines(tmp_path)[-1]['failed'] == (error is ZeroDivisionError)


def test_one_rank_speaks_and_writes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    with Run('label', folder=tmp_path) as run:
        run.ok('a')
        run.failed('b', reason='no')
        assert not run.is_first_rank
    assert capsys.readouterr() == ('', '')
    assert not list(tmp_path.iterdir())


def test_existing_outputs_are_refused_unless_told(tmp_path):
    page = tmp_path / 'page.html'
    refuse_existing(page, overwrite=False)
    refuse_existing(tmp_path, overwrite=False)
    page.write_text('mine')
    for path in (page, tmp_path):
        with pytest.raises(InputError, match='--overwrite'):
            refuse_existing(path, overwrite=False)
        refuse_existing(path, overwrite=True)
    assert page.read_text() == 'mine'


def test_a_plan_says_what_and_how_much(capsys):
    show_plan(
        reads={'photos': 'p (4)'}, writes={'masks': 'm'}, notes={'x': 1}, to_make=3
    )
    assert capsys.readouterr().out.splitlines() == [
        'would read   photos: p (4)',
        'would write  masks: m',
        'x: 1',
        'dry run: 3 to make, 0 there already; nothing was written',
    ]
