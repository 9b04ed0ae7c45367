"""tools/benchmark.py: cases at tiny size, arithmetic of the rows, mistakes."""

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import distributed_jobs
import pytest
import reference
import torch
from encoder_cases import load_tool

from mmwsss.apis.benchmark import case as case_module
from mmwsss.apis.benchmark import (
    command,
    functional_cases,
    measure,
    report,
    tool_cases,
    training_cases,
)
from mmwsss.apis.benchmark.case import Budget, Case, Cost, Setting
from mmwsss.apis.benchmark.measure import Measurement, Plan
from mmwsss.apis.cli import run_tool
from mmwsss.errors import InputError

PLAN = Plan(device='cpu', cores=1, seed=0, repeats=2, patience=60)
# Those that stand for others of the same class; the others differ in size alone.
PYTHON_ONLY = [c for c in functional_cases.CASES if not c.name.startswith('grad_cam')]
WITH_MM = [
    next(c for c in command.CASES if c.name == name)
    for name in (
        'grad_cam_b',
        'step_clipdino_tiny',
        'step_aesipe_mobileone',
        'data_loading',
        'make_cams',
        'make_labels_pamr',
        'make_labels_irn',
        'evaluate_1464',
    )
]


@dataclass(frozen=True, kw_only=True)
class Doubling(Case):
    """Twice the input; ``error`` makes the fast form wrong."""

    name: str = 'doubling'
    what: str = 'a test'
    group: ClassVar[str] = 'tests'
    error: float = 0.0
    size: int = 8

    def make(self, setting):
        return (setting.rand(self.size),)

    def fast(self, inputs):
        return 2 * inputs[0] + self.error

    def naive(self, inputs):
        return inputs[0] + inputs[0]

    def cost(self, inputs):
        return Cost(bytes=64, operations=8)

    def images(self):
        return 4


@dataclass(frozen=True, kw_only=True)
class Failing(Doubling):
    """Fails in its own way."""

    name: str = 'failing'

    def fast(self, inputs):
        raise ZeroDivisionError('on\npurpose')


@pytest.fixture
def here(monkeypatch):
    """Measure in this process: a new one takes seconds."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(command, 'measure_alone', measure.measure)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(here, monkeypatch):
    """Run the tool with some cases."""
    tool = load_tool('benchmark')

    def run_with(*arguments, cases=None):
        if cases is not None:
            monkeypatch.setattr(command, 'CASES', tuple(cases))
        monkeypatch.setattr('sys.argv', ['benchmark.py', *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_tool(tool.benchmark_command)
        return stopped.value.code

    return run_with


def setting(folder, **changes):
    return Setting(**{'device': 'cpu', 'cores': 1, 'seed': 0, **changes}, folder=folder)


def measured(seconds, **changes):
    values = dict(
        seconds=seconds,
        with_start=seconds,
        cpu_seconds=seconds,
        extra_mb=100.0,
        peak_mb=300.0,
        cost=None,
    )
    return Measurement(**{**values, **changes})


# ------------------------------------------------------------------------ the cases
@pytest.mark.parametrize('case', PYTHON_ONLY, ids=lambda case: case.name)
def test_fast_and_naive_forms_agree(case, here, tmp_path):
    small = case.tiny()
    for form in ('fast', 'naive'):
        done = measure.measure(small, form, PLAN, tmp_path / form)
        assert len(done.seconds) == 2
        assert min(done.seconds) > 0
    difference = measure.largest_difference(tmp_path / 'fast', tmp_path / 'naive')
    assert difference[1] <= case.tolerance
    # Something that could differ: not all zeros.
    assert all(t.abs().max() > 0 for t in torch.load(tmp_path / 'naive'))


@pytest.mark.mm
@pytest.mark.parametrize('case', WITH_MM, ids=lambda case: case.name)
def test_cases_of_networks_and_tools_run(case, here, tmp_path):
    done = measure.measure(case.tiny(), 'fast', PLAN, tmp_path / 'fast')
    assert min(done.seconds) > 0
    if case.has_naive:
        measure.measure(case.tiny(), 'naive', PLAN, tmp_path / 'naive')
        difference = measure.largest_difference(tmp_path / 'fast', tmp_path / 'naive')
        assert difference[1] <= case.tolerance
        assert torch.load(tmp_path / 'naive')[0].max() > 0
    if case.group == 'training':
        assert done.cost.operations > 1e6


@pytest.mark.mm
@pytest.mark.parametrize('case', WITH_MM[3:], ids=lambda case: case.name)
def test_cases_draw_what_is_not_there(case, here, monkeypatch, tmp_path):
    monkeypatch.setattr(tool_cases, 'SHARED', tmp_path / 'nothing')
    done = measure.measure(case.tiny(), 'fast', PLAN, tmp_path / 'fast')
    assert min(done.seconds) > 0
    assert not (tmp_path / 'nothing').exists()


def test_inputs_are_the_same_every_time(tmp_path):
    case = functional_cases.CASES[0].tiny()
    first, again = (case.make(setting(tmp_path)) for _ in range(2))
    other = case.make(setting(tmp_path, seed=1))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_as_many_classes_are_present_as_the_name_says(tmp_path):
    for case in functional_cases.CASES:
        if isinstance(case, functional_cases.LocalAffinity):
            _, scores = case.tiny().make(setting(tmp_path))
            occupied = scores.flatten(2).any(2).sum(1)
            kept = scores.shape[1] if case.present is None else case.present + 1
            assert (occupied == kept).all()
    assert (setting(tmp_path).image_label(5, 7, 3).sum(1) == 3).all()


def test_names_are_unique_and_every_case_says_what_it_does():
    names = [case.name for case in command.CASES]
    assert len(set(names)) == len(names)
    assert not set(names) & {case.group for case in command.CASES}
    assert all(case.what for case in command.CASES)


def test_counts_of_pamr_are_those_of_the_specification():
    # Section 10 of the spec: 4.13 GFLOP of products and about 0.3 for the kernel; 73.7
    # MB an iteration.
    case = functional_cases.CASES[0]
    inputs = torch.empty(2, 3, 320, 320), torch.empty(2, 21, 320, 320)
    cost = case.cost(inputs)
    assert cost.operations == pytest.approx(4.13e9 + 0.18e9, rel=0.01)
    assert cost.bytes == pytest.approx(737e6 + 41.8e6, rel=0.01)
    three = replace(case, present=3).cost(inputs)
    assert three.operations < cost.operations / 4


def test_counts_of_other_cases():
    walk = next(c for c in functional_cases.CASES if c.name == 'random_walk_5')
    # Both half planes of a cell that is nowhere near the border.
    pairs = reference.pairs_within(5, 9, 9)
    assert sum((4, 4) in pair for pair in pairs) == 2 * 34
    assert walk.cost(()).operations == 120 * 94 * 125 * 3 * (4 * 34 + 3)
    layer = torch.nn.Linear(5, 7)
    counted = case_module.counted_operations(lambda: layer(torch.zeros(3, 5)))
    assert counted == 2 * 3 * 5 * 7


def test_published_convolutions_are_pamr():
    case = next(c for c in functional_cases.CASES if c.name == 'pamr_voc_published')
    assert case.slow
    image, scores = torch.rand(1, 3, 5, 6), torch.rand(1, 2, 5, 6)
    naive = case.naive((image, scores))
    expected = reference.propagate(
        image[0].double().numpy(),
        scores[0].double().numpy(),
        (1, 2, 4, 8, 12, 24),
        10,
        reference.pamr_kernel,
    )
    torch.testing.assert_close(
        naive[0].double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )


# -------------------------------------------------------------------- the measuring
def test_a_new_process_measures_too(tmp_path):
    case = functional_cases.CASES[0].tiny()
    done = measure.measure_alone(case, 'fast', PLAN, tmp_path / 'result')
    assert len(done.seconds) == len(done.cpu_seconds) == 2
    assert done.cost.bytes > 0
    assert done.extra_mb is None or 0 <= done.extra_mb <= done.peak_mb
    (result,) = torch.load(tmp_path / 'result')
    expected = case.fast(case.make(setting(tmp_path))).double()
    torch.testing.assert_close(result, expected)


def test_a_killed_process_is_a_sentence(tmp_path):
    sentence = 'that measured the fast form of killed was killed, perhaps for lack of'
    with pytest.raises(InputError, match=sentence):
        measure.measure_alone(
            distributed_jobs.Killed(), 'fast', PLAN, tmp_path / 'result'
        )


def test_no_proc_tells_no_memory(here, tmp_path, monkeypatch):
    def read_text(path, *_):
        raise FileNotFoundError(path)

    monkeypatch.setattr(measure.Path, 'read_text', read_text)
    done = measure.measure(Doubling(), 'fast', PLAN, tmp_path / 'result')
    assert done.extra_mb is done.peak_mb is None
    assert len(done.seconds) == 2


def test_patience_ends_the_repeats(here, tmp_path):
    plan = replace(PLAN, repeats=5, patience=1e-9)
    assert len(measure.measure(Doubling(), 'fast', plan, tmp_path / 'r').seconds) == 1
    plan = replace(PLAN, repeats=5)
    assert len(measure.measure(Doubling(), 'fast', plan, tmp_path / 'r').seconds) == 5


def test_memory_on_top_of_the_inputs(tmp_path):
    case = Doubling(size=5_000_000)
    done = measure.measure(case, 'fast', PLAN, tmp_path / 'result')
    if done.extra_mb is None:
        pytest.skip('no /proc on this system')
    # Twice the input and the sum, 20 MB each, but not the input and no later call.
    assert 35 < done.extra_mb < 55


def test_largest_difference(tmp_path):
    one, other = tmp_path / 'one', tmp_path / 'other'

    def compare(first, second):
        torch.save(first, one)
        torch.save(second, other)
        return measure.largest_difference(one, other)

    a, b = torch.tensor([1.0, 4.0]), torch.tensor([0.5])
    assert compare([a, b], [a, b]) == (0.0, 0.0)
    assert compare([a, b + 0.25], [a, b]) == (0.25, 0.5)
    assert compare([a + 1, b], [a, b]) == (1.0, 0.25)
    assert compare([a], [b]) == (math.inf, math.inf)
    assert compare([a * math.nan], [a]) == (math.inf, math.inf)
    assert compare([], []) == (0.0, 0.0)


# ------------------------------------------------------------------ rows and tables
def test_rows_hold_medians_ratios_and_bounds():
    row = report.make_row(
        Doubling(iterations=3600),
        cores=1,
        device='cpu',
        fast=measured([3.0, 1.0, 2.0], cost=Cost(bytes=100, operations=30)),
        naive=measured([50.0, 70.0, 10.0], extra_mb=800.0),
        difference=(0.5, 1e-7),
        rates={'bytes': 1000.0, 'operations': 100.0},
    )
    assert (row['seconds'], row['naive_seconds'], row['times_faster']) == (2, 50, 25)
    assert (row['extra_mb'], row['naive_extra_mb']) == (100, 800)
    assert row['images_per_second'] == 2
    assert row['bound_seconds'] == pytest.approx(0.3)  # the operations, not the bytes
    assert row['times_bound'] == pytest.approx(2 / 0.3)
    assert row['training_hours'] == 2
    assert (row['difference'], row['agrees']) == (0.5, True)
    assert row['budget'] is None
    line = report.table_line(row)
    assert line.count('|') == len(report.COLUMNS) + 1
    assert '| 2,000 |' in line
    assert '| 25.0 |' in line
    assert 'WRONG' not in line


def test_a_wrong_result_is_shown():
    for difference in ((0.5, 0.1), (math.inf, math.inf)):
        row = report.make_row(
            Doubling(),
            cores=1,
            device='cpu',
            fast=measured([1.0]),
            naive=measured([1.0]),
            difference=difference,
            rates={},
        )
        assert row['agrees'] is False
        assert 'WRONG' in report.table_line(row)
        json.dumps(row, allow_nan=False)


@pytest.mark.parametrize(
    ('device', 'cores', 'kept'),
    [('cpu', 1, (False, True)), ('cpu', 4, (None, None)), ('cuda', 1, (None, None))],
)
def test_a_budget_counts_where_it_was_promised(device, cores, kept):
    budget = Budget(threads=1, times_faster=20, extra_mb=150, peak_mb=5)
    row = dict(device=device, cores=cores, times_faster=19.9, extra_mb=150.0)
    promises = report.check_budget(budget, row)['promises']
    found = promises['times_faster']['kept'], promises['extra_mb']['kept']
    assert found == kept
    assert promises['peak_mb']['kept'] is None  # not measured
    assert promises['times_faster']['limit'] == 20


def test_bound_under_autocast_takes_the_other_rate():
    case = training_cases.CASES[0]
    rates = {'bytes': 1.0, 'operations': 10.0, 'half_operations': 100.0}
    bounds = [
        report.make_row(
            case,
            cores=1,
            device=device,
            fast=measured([1.0], cost=Cost(operations=50)),
            naive=None,
            difference=None,
            rates=rates,
        )['bound_seconds']
        for device in ('cpu', 'cuda')
    ]
    assert bounds == [5.0, 0.5]


def test_steady_seconds_leave_the_start_out(tmp_path):
    case = next(c for c in tool_cases.CASES if c.name == 'make_cams')
    out = tool_cases._next(tmp_path)
    for place, moment in enumerate([100, 101, 110, 120, 130, 141]):
        path = out / f'{place}.npz'
        path.touch()
        os.utime(path, (moment, moment))
    # Two processes: two files came with the start, four took 40 seconds.
    assert case.steady_seconds((2, tmp_path)) == pytest.approx(40 * 6 / 4)
    assert case.steady_seconds((6, tmp_path)) is None


# -------------------------------------------------------------------------- the tool
def test_json_says_what_was_measured_and_where(run, tmp_path, capsys):
    path = tmp_path / 'out' / 'benchmark.json'
    arguments = ('pamr_voc', 'losses', '--tiny', '--quick', '--threads', 1, 2)
    assert run(*arguments, '--seed', 3, '--json', path) == 0
    content = json.loads(path.read_text())
    facts = content['machine']
    assert facts['versions']['torch'] == torch.__version__
    assert {'date', 'cpu', 'gpu', 'cores', 'load', 'commit'} <= facts.keys()
    assert (content['device'], content['seed']) == ('cpu', 3)
    assert content['tiny'] is True
    assert set(content['rates']) == {'1', '2'}
    assert min(content['rates']['1'].values()) > 0
    found = [(row['case'], row['cores']) for row in content['results']]
    assert found == [
        ('pamr_voc', 1),
        ('affinity_loss', 1),
        ('pamr_voc', 2),
        ('affinity_loss', 2),
    ]
    for row in content['results']:
        assert row['agrees']
        assert row['times_bound'] > 0
        assert row['times_faster'] == row['naive_seconds'] / row['seconds']
        assert row['budget'] is None  # promised for full size
    table = capsys.readouterr().out
    assert table.count('\n| ') == 5  # a head and four rows
    assert 'GB/s copied' in table


def test_wrong_and_failing_cases_do_not_stop_the_others(run, tmp_path, capsys):
    path = tmp_path / 'benchmark.json'
    cases = [Failing(), Doubling(error=0.1, name='wrong'), Doubling()]
    assert run('--quick', '--threads', 1, '--json', path, cases=cases) == 1
    failed, wrong, right = json.loads(path.read_text())['results']
    assert failed['error'] == 'ZeroDivisionError: on purpose'
    assert (wrong['agrees'], right['agrees']) == (False, True)
    assert wrong['difference'] == pytest.approx(0.1, rel=1e-3)
    table = capsys.readouterr().out
    assert 'failed: ZeroDivisionError' in table
    assert table.count('WRONG') == 1
    assert run('--quick', '--threads', 1, cases=[Doubling()]) == 0


def test_choice_of_cases():
    def names(*asked, device='cpu', slow=False):
        return [c.name for c in command.chosen_cases(asked, device=device, slow=slow)]

    everything = names()
    assert 'pamr_voc' in everything
    assert 'step_clipdino_l' not in everything
    assert 'step_clipdino_l' in names(slow=True)
    assert names('step_clipdino_l') == ['step_clipdino_l']
    assert names('random_walk', 'pamr_512') == [
        'pamr_512',
        'random_walk_small',
        'random_walk_5',
        'random_walk_10',
    ]
    assert 'evaluate_1464' not in names(device='cuda')
    assert 'evaluate_1464' in names('evaluation')


def test_slow_naive_forms_wait_for_slow(run, tmp_path):
    path = tmp_path / 'benchmark.json'
    cases = [Doubling(naive_is_slow=True)]
    for more, there in (((), False), (('--slow',), True)):
        run('--quick', '--threads', 1, '--json', path, *more, cases=cases)
        (row,) = json.loads(path.read_text())['results']
        assert ('naive_seconds' in row) is there


def test_list_names_all_cases(run, capsys):
    assert run('--list') == 0
    shown = capsys.readouterr().out
    assert all(case.name in shown for case in command.CASES)
    assert '(slow)' in shown


def test_mistakes_are_one_sentence(run, monkeypatch, tmp_path, capsys):
    def sentence(*arguments):
        assert run(*arguments) == 1
        error = capsys.readouterr().err
        assert error.startswith('error: ')
        assert error.count('\n') == 1
        return error

    unknown = sentence('pamr')
    assert "no case or group 'pamr'" in unknown
    assert 'pamr_voc, ' in unknown
    assert '--threads must be 1 or more, got 0' in sentence('--threads', 0)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    assert 'needs a GPU' in sentence('--device', 'cuda')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert 'nothing about cuda' in sentence('evaluate_1464', '--device', 'cuda')
    assert '--slow' in sentence('evaluation', '--device', 'cuda')
    monkeypatch.setattr(case_module, 'TESTS', Path(tmp_path))
    assert 'in a checkout' in sentence('losses')
