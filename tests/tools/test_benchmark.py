import json

import pytest
import reference
import torch
from encoder_cases import load_tool

from mmwsss.apis.cli import run_tool
from mmwsss.functional import pamr


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark')


def run(tool, monkeypatch, *arguments):
    monkeypatch.setattr('sys.argv', ['benchmark.py', *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run_tool(tool.main)
    return stopped.value.code


class PoolHere:
    """Instead of a new process."""

    def __init__(self, processes):
        assert processes == 1

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def apply(self, function, arguments):
        return function(*arguments)


@pytest.fixture
def here(tool, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(tool.multiprocessing.get_context('spawn'), 'Pool', PoolHere)
    yield
    torch.set_num_threads(threads)


def test_numbers_are_medians_and_their_ratio(tool, here, monkeypatch, tmp_path, capsys):
    runs = {'fast': [3.0, 1.0, 2.0], 'naive': [50.0, 70.0, 10.0]}
    monkeypatch.setattr(
        tool,
        'measure',
        lambda case, form, *rest: (runs[form], {'fast': 90.0, 'naive': 800.0}[form]),
    )
    path = tmp_path / 'out' / 'benchmark.json'
    assert (
        run(tool, monkeypatch, '--cases', 'pamr', '--threads', 1, '--json', path) == 0
    )
    content = json.loads(path.read_text())
    (row,) = content['results']
    assert (row['fast_seconds'], row['naive_seconds'], row['ratio']) == (
        2.0,
        50.0,
        25.0,
    )
    assert (row['fast_extra_mb'], row['naive_extra_mb']) == (90.0, 800.0)
    assert (row['budget_ratio'], row['budget_mb'], row['threads']) == (20, 150, 1)
    assert content['shape'] == [2, 21, 320, 320]
    assert content['machine']['torch'] == torch.__version__
    assert '25.0 times faster (promised: 20' in capsys.readouterr().out


def test_every_case_runs_both_forms(tool, here, monkeypatch, tmp_path):
    path = tmp_path / 'benchmark.json'
    arguments = ('--shape', 1, 5, 9, 12, '--threads', 1, '--repeats', 1)
    assert run(tool, monkeypatch, *arguments, '--json', path) == 0
    rows = json.loads(path.read_text())['results']
    assert [row['case'] for row in rows] == list(tool.CASES)
    assert all(row['fast_seconds'] > 0 < row['naive_seconds'] for row in rows)


def test_forms_that_are_compared_give_the_same(tool):
    for case in tool.CASES.values():
        image, scores = tool.make_inputs((2, 6, 15, 17), present=case['present'])
        kept = 6 if case['present'] is None else case['present'] + 1
        assert (scores.flatten(2).sum((0, 2)) > 0).sum() == kept
        torch.testing.assert_close(
            pamr(image, scores), reference.stacked_pamr(image, scores)
        )
    naive = tool.load_reference().stacked_pamr
    assert naive.__code__.co_code == reference.stacked_pamr.__code__.co_code


def test_a_new_process_measures_too(tool, monkeypatch, tmp_path):
    # Started processes import the tool by its name.
    monkeypatch.syspath_prepend(str(tool.REFERENCE.parents[1] / 'tools'))
    monkeypatch.setitem(__import__('sys').modules, 'benchmark', tool)
    row = tool.compare('pamr', (1, 2, 30, 40), threads=1, repeats=2)
    assert row['ratio'] == row['naive_seconds'] / row['fast_seconds']
    assert row['fast_extra_mb'] is None or row['fast_extra_mb'] >= 0


def test_mistakes_are_one_sentence(tool, monkeypatch, tmp_path, capsys):
    assert run(tool, monkeypatch, '--repeats', 0) == 1
    assert capsys.readouterr().err == 'error: --repeats must be 1 or more, got 0\n'
    monkeypatch.setattr(tool, 'REFERENCE', tmp_path / 'reference.py')
    assert run(tool, monkeypatch) == 1
    assert 'in a checkout' in capsys.readouterr().err
