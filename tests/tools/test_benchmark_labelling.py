"""tools/benchmark_labelling.py at a tiny size: it kills, goes on and loses nothing."""

import json

import pytest

from mmwsss.apis.benchmark.labelling import labelling_command
from mmwsss.apis.cli import run_tool

pytestmark = pytest.mark.mm


def leave(monkeypatch, *words):
    monkeypatch.setattr('sys.argv', ['benchmark_labelling.py', *map(str, words)])
    with pytest.raises(SystemExit) as left:
        run_tool(labelling_command)
    return left.value.code


def test_killed_half_way_it_goes_on_and_then_finds_all_done(
    tmp_path, monkeypatch, capsys
):
    file = tmp_path / 'numbers.json'
    words = ('--photos', 40, '--dir', tmp_path, '--json', file)
    assert leave(monkeypatch, *words) == 0
    found = json.loads(file.read_text())
    assert list(found['memory']) == ['4', '20', '40']
    assert all(megabytes > 100 for megabytes in found['memory'].values())
    assert found['first']['made'] == 20
    second, third = found['second'], found['third']
    # What was made before the kill is not made again.
    assert 20 <= second['there'] < 40
    assert second['made'] + second['there'] == 40
    assert (third['made'], third['there']) == (0, 40)
    assert found['lost'] == 0
    table = capsys.readouterr().out
    assert '| first, killed (SIGKILL) | 20 |' in table
    assert [p.name for p in tmp_path.iterdir()] == ['numbers.json']


def test_too_few_photos_are_refused(monkeypatch, capsys):
    assert leave(monkeypatch, '--photos', 3) == 1
    assert '--photos must be 20 or more, got 3' in capsys.readouterr().err
