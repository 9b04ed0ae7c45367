"""The command behind tools/benchmark.py."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from mmwsss.apis.benchmark import functional_cases, tool_cases, training_cases
from mmwsss.apis.benchmark.case import Case, naive_forms
from mmwsss.apis.benchmark.measure import (
    Measurement,
    Plan,
    largest_difference,
    measure_alone,
)
from mmwsss.apis.benchmark.report import machine, make_row, markdown_table, table_line
from mmwsss.apis.stages import available_cores
from mmwsss.errors import InputError
from mmwsss.files import write_json

CASES: tuple[Case, ...] = (
    *functional_cases.CASES,
    *training_cases.CASES,
    *tool_cases.CASES,
)
QUICK = dict(repeats=2, patience=1.0)
THOROUGH = dict(repeats=7, patience=20.0)


def benchmark_command() -> int:
    """Parse the command line, measure, print the table, write the JSON.

    Returns:
        0, or 1 where a case failed or a fast form's result is wrong. A missed budget
        is no failure: other jobs on the machine change every number.
    """
    args = _parse()
    if args.list:
        _print_list()
        return 0
    cases = chosen_cases(args.names, device=args.device, slow=args.slow)
    naive_forms()  # outside a checkout it is better to hear of it now
    content = {
        'machine': machine(args.device),
        'device': args.device,
        'seed': args.seed,
        'repeats': args.repeats,
        'patience_s': args.patience,
        'tiny': args.tiny,
        'rates': {},
        'results': [],
    }
    planned = [(cores, case) for cores in args.threads for case in cases]
    with tqdm(total=len(planned), unit='case', disable=None) as bar:
        for cores in args.threads:
            plan = Plan(
                device=args.device,
                cores=cores,
                seed=args.seed,
                repeats=args.repeats,
                patience=args.patience,
            )
            rates = measured_rates(plan, tiny=args.tiny)
            content['rates'][str(cores)] = rates
            for case in cases:
                row = measured_row(case, plan, rates, tiny=args.tiny, slow=args.slow)
                content['results'].append(row)
                bar.update()
                bar.write(table_line(row), file=sys.stderr)
                # After each case: hours of numbers should survive an interruption.
                if args.json:
                    write_json(args.json, content)
    rows = content['results']
    print(_rates_line(content['rates']))
    print(markdown_table(rows))
    wrong = [r['case'] for r in rows if 'error' in r or not r.get('agrees', True)]
    return 1 if wrong else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='benchmark.py',
        description='Time the fast forms against naive ones and against what the '
        'machine could do at best. Every form runs in a process of its own; medians '
        'after a warm-up. Needs a checkout: naive forms are in tests/naive_forms.py.',
    )
    parser.add_argument(
        'names',
        nargs='*',
        metavar='NAME',
        help='cases or groups, see --list (default: all that are not slow)',
    )
    parser.add_argument('--list', action='store_true', help='print the cases and stop')
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument(
        '--threads',
        nargs='+',
        type=int,
        metavar='N',
        help='threads of PyTorch, and processes of the cases that start some; several '
        'numbers measure all cases with each (default: 1 and all cores; cuda: all)',
    )
    parser.add_argument(
        '--slow', action='store_true', help='slow cases and slow naive forms as well'
    )
    parser.add_argument(
        '--quick', action='store_true', help='few repeats, for a first look'
    )
    parser.add_argument(
        '--tiny',
        action='store_true',
        help='smallest sizes: says whether all cases run, the numbers mean nothing',
    )
    parser.add_argument('--seed', type=int, default=0, help='of all inputs')
    parser.add_argument('--json', type=Path, help='write the numbers to this file too')
    args = parser.parse_args()
    for name, value in (QUICK if args.quick else THOROUGH).items():
        setattr(args, name, value)
    if args.threads is None:
        cores = available_cores()
        args.threads = [cores] if args.device == 'cuda' else sorted({1, cores})
    if min(args.threads) < 1:
        raise InputError(f'--threads must be 1 or more, got {min(args.threads)}')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda needs a GPU and none was found; use cpu')
    return args


def _print_list() -> None:
    width = max(len(case.name) for case in CASES)
    group = None
    for case in CASES:
        if case.group != group:
            group = case.group
            print(f'{group}:')
        slow = ' (slow)' if case.slow else ''
        print(f'  {case.name:{width}}  {case.what}{slow}')


def chosen_cases(names: Sequence[str], *, device: str, slow: bool) -> list[Case]:
    """Cases that are named or in a named group; without names all that are not slow.

    Args:
        names: of cases and groups.
        device: cases that make no sense there are left out, unless named themselves.
        slow: take slow cases too; a slow case that is named is always taken.

    Raises:
        InputError: for an unknown name, or a named case that the device is not for.
    """
    groups = list(dict.fromkeys(case.group for case in CASES))
    known = [*groups, *(case.name for case in CASES)]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InputError(
            f'there is no case or group {unknown[0]!r}; known are {", ".join(known)}'
        )
    chosen = []
    for case in CASES:
        named = case.name in names
        if named and device not in case.devices:
            raise InputError(
                f'{case.name} says nothing about {device}; measure it with '
                f'--device {case.devices[0]}'
            )
        wanted = not names or case.group in names
        fits = device in case.devices and (slow or not case.slow)
        if named or (wanted and fits):
            chosen.append(case)
    if not chosen:
        raise InputError(
            f'all cases of {", ".join(names)} are slow or not for {device}; add --slow'
        )
    return chosen


def measured_rates(plan: Plan, *, tiny: bool) -> dict[str, float]:
    """Bytes and operations per second of this machine on so many cores."""
    copy, matmul = functional_cases.ROOFLINE
    found = {'bytes': copy, 'operations': matmul}
    if plan.device == 'cuda':
        found['half_operations'] = functional_cases.HALF_ROOFLINE
    rates = {}
    for name, case in found.items():
        case = case.tiny() if tiny else case
        with tempfile.TemporaryDirectory() as folder:
            done = measure_alone(case, 'fast', plan, Path(folder) / 'result')
        rates[name] = max(done.cost.bytes, done.cost.operations) / done.median
    return rates


def measured_row(
    case: Case, plan: Plan, rates: dict[str, float], *, tiny: bool, slow: bool
) -> dict:
    """Measure all forms of a case; what goes wrong is in the row's ``error``."""
    with_naive = case.has_naive and (slow or tiny or not case.naive_is_slow)
    # What is promised is promised for full size.
    case = replace(case.tiny(), budget=None) if tiny else case
    forms: dict[str, Measurement] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {form: Path(folder) / form for form in ('fast', 'naive')}
        try:
            for form in ('fast', 'naive') if with_naive else ('fast',):
                forms[form] = measure_alone(case, form, plan, files[form])
        except Exception as error:
            # One case must not cost the numbers of the others.
            text = ' '.join(f'{type(error).__name__}: {error}'.split())
            return {'case': case.name, 'cores': plan.cores, 'error': text[:500]}
        difference = None
        if with_naive:
            difference = largest_difference(files['fast'], files['naive'])
    return make_row(
        case,
        cores=plan.cores,
        device=plan.device,
        fast=forms['fast'],
        naive=forms.get('naive'),
        difference=difference,
        rates=rates,
    )


def _rates_line(rates: dict[str, dict[str, float]]) -> str:
    parts = [
        f'{cores} cores: {found["bytes"] / 1e9:.1f} GB/s copied, '
        f'{found["operations"] / 1e9:,.0f} GFLOP/s in float32'
        + (
            f', {found["half_operations"] / 1e9:,.0f} in bfloat16'
            if 'half_operations' in found
            else ''
        )
        for cores, found in rates.items()
    ]
    return '; '.join(parts) + '\n'
