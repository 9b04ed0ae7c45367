"""Time the fast forms against naive ones and print how many times faster they are.

    python tools/benchmark.py --json benchmark.json

Medians of a few runs, each form in a process of its own, both in the same run. The
naive forms are in tests/reference.py, so this works in a checkout only. Nothing fails
when a budget is missed: other jobs on the machine change every number.
"""

import argparse
import importlib.util
import multiprocessing
import os
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from mmwsss.apis.cli import run_tool
from mmwsss.apis.stages import available_cores
from mmwsss.errors import InputError
from mmwsss.files import write_json
from mmwsss.functional import pamr

REFERENCE = Path(__file__).resolve().parents[1] / 'tests' / 'reference.py'
# Promises of the design page, for one thread: times faster, MB on top of the inputs.
CASES = {
    'pamr': dict(present=None, budget_ratio=20, budget_mb=150),
    'pamr_3_classes_present': dict(present=3, budget_ratio=20, budget_mb=150),
}
FORMS = ('fast', 'naive')


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--cases', nargs='+', choices=CASES, default=list(CASES))
    parser.add_argument(
        '--threads',
        nargs='+',
        type=int,
        default=sorted({1, available_cores()}),
        help='numbers of threads (default: 1 and all cores)',
    )
    parser.add_argument('--repeats', type=int, default=3, help='runs of each form')
    parser.add_argument(
        '--shape',
        nargs=4,
        type=int,
        metavar=('N', 'C', 'H', 'W'),
        default=(2, 21, 320, 320),
        help='of the scores (default: 2 21 320 320)',
    )
    parser.add_argument('--json', type=Path, help='write the numbers to this file too')
    args = parser.parse_args()
    for name in ('threads', 'repeats', 'shape'):
        values = getattr(args, name)
        if min(values if isinstance(values, (list, tuple)) else [values]) < 1:
            raise InputError(f'--{name} must be 1 or more, got {values}')
    if not REFERENCE.is_file():
        raise InputError(
            f'{REFERENCE} with the naive forms is not here; run the benchmark in a '
            'checkout of the repository'
        )
    return args


def main() -> int:
    """Measure all cases, print a line for each and write the JSON."""
    args = parse_args()
    content = {'machine': machine(), 'shape': list(args.shape), 'results': []}
    planned = [(case, n) for case in args.cases for n in args.threads]
    for case, threads in tqdm(planned, unit='case', disable=None):
        row = compare(case, args.shape, threads=threads, repeats=args.repeats)
        content['results'].append(row)
        tqdm.write(format_row(row))
    if args.json:
        write_json(args.json, content)
    return 0


def machine() -> dict:
    """What a reader has to know to judge the numbers."""
    return {
        'date': date.today().isoformat(),
        'cpu': cpu_name(),
        'cores': available_cores(),
        'load': os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        'torch': torch.__version__,
    }


def cpu_name() -> str:
    """The processor as Linux calls it, elsewhere its architecture."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        lines = []
    names = [x.partition(':')[2].strip() for x in lines if x.startswith('model name')]
    return names[0] if names else platform.machine()


def compare(case: str, shape: tuple, *, threads: int, repeats: int) -> dict:
    """Both forms of a case, each in a new process, and their ratio."""
    row = {'case': case, 'threads': threads, 'repeats': repeats}
    for form in FORMS:
        # A fresh process: what one form leaves in caches does not help the other,
        # and its peak of memory is its own.
        with multiprocessing.get_context('spawn').Pool(1) as pool:
            seconds, extra_mb = pool.apply(
                measure, (case, form, tuple(shape), threads, repeats)
            )
        row[f'{form}_seconds'] = statistics.median(seconds)
        row[f'{form}_extra_mb'] = extra_mb
    row['ratio'] = row['naive_seconds'] / row['fast_seconds']
    row['budget_ratio'] = CASES[case]['budget_ratio']
    row['budget_mb'] = CASES[case]['budget_mb']
    return row


def measure(
    case: str, form: str, shape: tuple, threads: int, repeats: int
) -> tuple[list[float], float | None]:
    """Seconds of each run, and the peak of memory on top of inputs in MB (Linux)."""
    torch.set_num_threads(threads)
    function = pamr if form == 'fast' else load_reference().stacked_pamr
    image, scores = make_inputs(shape, present=CASES[case]['present'])
    small = image[:, :, :8, :8], scores[:, :, :8, :8]
    function(*small)  # the first call starts threads and loads kernels
    before = memory_mb('VmRSS')
    forget_peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function(image, scores)
        seconds.append(time.perf_counter() - start)
    peak = memory_mb('VmHWM')
    extra = None if peak is None else max(0.0, peak - before)
    return seconds, extra


def make_inputs(shape: tuple, *, present: int | None) -> tuple:
    """A random photo and scores; all but the first ``present`` channels are zero."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(shape[0], 3, *shape[2:], generator=generator)
    scores = torch.rand(*shape, generator=generator).softmax(1)
    if present is not None:
        scores[:, present + 1 :] = 0  # the background is always there
    return image, scores


def load_reference():
    """tests/reference.py, which is no part of the package."""
    spec = importlib.util.spec_from_file_location('reference', REFERENCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def memory_mb(name: str) -> float | None:
    """VmRSS or VmHWM (the peak) of this process; None where there is no /proc."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
    except OSError:
        return None
    (line,) = (line for line in lines if line.startswith(f'{name}:'))
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """Let the peak of this process's memory start from now."""
    try:
        Path('/proc/self/clear_refs').write_text('5')
    except OSError:
        # Then the peak is that of the whole process, which can only be higher.
        return


def format_row(row: dict) -> str:
    """One line for people."""
    extra = [row[f'{form}_extra_mb'] for form in FORMS]
    memory = '' if None in extra else f', {extra[0]:.0f} MB instead of {extra[1]:.0f}'
    return (
        f'{row["case"]}, {row["threads"]} threads: {row["fast_seconds"]:.3f} s instead '
        f'of {row["naive_seconds"]:.3f} s, {row["ratio"]:.1f} times faster '
        f'(promised: {row["budget_ratio"]} with one thread){memory}'
    )


if __name__ == '__main__':
    run_tool(main)
