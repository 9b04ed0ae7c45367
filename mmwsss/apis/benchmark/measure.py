"""Time and memory of one form of one case, in a process of its own."""

import ctypes
import gc
import math
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from mmwsss.apis.benchmark.case import Case, Cost, Setting
from mmwsss.apis.host_memory import keep_freed_memory
from mmwsss.errors import InputError

MEGA = 1e6


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a form is measured.

    Attributes:
        device: 'cpu' or 'cuda'.
        cores: see ``Setting``.
        seed: see ``Setting``.
        repeats: timed calls at most.
        patience: seconds of timed calls after which no other begins.
    """

    device: str
    cores: int
    seed: int
    repeats: int
    patience: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What came out.

    Attributes:
        seconds: of each timed call, without its start where there is one.
        with_start: of each timed call as a whole.
        cpu_seconds: that all threads of the measuring process worked in each timed
            call. With one thread it is what a quiet machine would take, or nearly,
            whatever else runs; worker processes are not in it.
        extra_mb: peak of memory of the first call on top of the inputs, in MB of 10^6
            bytes; None where several processes share the work or the system does not
            tell.
        peak_mb: peak of memory in all; of the largest process where there are several.
        cost: what the case counts.
    """

    seconds: list[float]
    with_start: list[float]
    cpu_seconds: list[float]
    extra_mb: float | None
    peak_mb: float | None
    cost: Cost | None

    @property
    def median(self) -> float:
        """Seconds of a call."""
        return statistics.median(self.seconds)


def measure_alone(case: Case, form: str, plan: Plan, result: Path) -> Measurement:
    """Measure in a new process and store the form's result there.

    What one form leaves in caches does not help the other, and its peak of memory is
    its own.

    Args:
        case: to be measured.
        form: 'fast' or 'naive'.
        plan: how.
        result: file that receives the tensors that the form returned.

    Raises:
        InputError: bad input, or the process was killed.
    """
    context = multiprocessing.get_context('spawn')
    begin = keep_freed_memory if case.keeps_memory else None
    with ProcessPoolExecutor(1, mp_context=context, initializer=begin) as pool:
        try:
            return pool.submit(measure, case, form, plan, result).result()
        except BrokenProcessPool:
            raise InputError(
                f'the process that measured the {form} form of {case.name} was killed, '
                'perhaps for lack of memory'
            ) from None


def measure(case: Case, form: str, plan: Plan, result: Path) -> Measurement:
    """Warm up, measure, store the result."""
    torch.set_num_threads(plan.cores)
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(
            device=plan.device, cores=plan.cores, seed=plan.seed, folder=Path(folder)
        )
        _warm_up(case, form, setting)
        inputs = case.make(setting)
        function = getattr(case, form)
        memory = (_CUDAMemory if plan.device == 'cuda' else _HostMemory)()
        seconds, with_start, cpu_seconds = [], [], []
        while len(seconds) < plan.repeats and sum(with_start) < plan.patience:
            torch.manual_seed(plan.seed)
            worked = time.process_time()
            elapsed, output = _timed(lambda: function(inputs), plan.device)
            cpu_seconds.append(time.process_time() - worked)
            if not seconds:
                # Later calls find the heap as the first one left it: glibc keeps what
                # was freed and may yet take new pages.
                extra, peak = memory.read()
            steady = case.steady_seconds(inputs)
            seconds.append(elapsed if steady is None else steady)
            with_start.append(elapsed)
        if case.processes and peak is not None:
            extra, peak = None, max(peak, _largest_child_mb())
        torch.save(_tensors(output), result)
        cost = case.cost(inputs) if form == 'fast' else None
    return Measurement(
        seconds=seconds,
        with_start=with_start,
        cpu_seconds=cpu_seconds,
        extra_mb=extra,
        peak_mb=peak,
        cost=cost,
    )


def _warm_up(case: Case, form: str, setting: Setting) -> None:
    """Start threads, load kernels, fill the allocator.

    A naive form may take minutes on a CPU, so it is warmed up on tiny inputs there.
    """
    small = form == 'naive' and setting.device == 'cpu'
    case = case.tiny() if small else case
    folder = setting.folder / 'warm_up'
    folder.mkdir()
    getattr(case, form)(case.make(replace(setting, folder=folder)))


def _timed(call: Callable[[], object], device: str) -> tuple[float, object]:
    if device != 'cuda':
        start = time.perf_counter()
        output = call()
        return time.perf_counter() - start, output
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    output = call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000, output


def _tensors(output: object) -> list[Tensor]:
    """What a form returned, for the comparison."""
    if output is None:
        return []
    if isinstance(output, Tensor):
        output = [output]
    return [tensor.detach().cpu().double() for tensor in output]


def largest_difference(first: Path, second: Path) -> tuple[float, float]:
    """Largest difference of two stored results.

    Returns:
        The largest absolute difference, and the largest as a share of the largest
        value of its tensor in ``second``; inf where shapes differ or a value is NaN.
    """
    pairs = [torch.load(path, weights_only=True) for path in (first, second)]
    if [t.shape for t in pairs[0]] != [t.shape for t in pairs[1]]:
        return math.inf, math.inf
    absolute, relative = [], []
    for one, other in zip(*pairs, strict=True):
        difference = float((one - other).abs().max())
        scale = float(other.abs().max())
        absolute.append(difference)
        relative.append(difference / scale if scale else difference)
    return _largest(absolute), _largest(relative)


def _largest(values: list[float]) -> float:
    return max((math.inf if math.isnan(x) else x for x in values), default=0.0)


# --------------------------------------------------------------------------- memory
class _HostMemory:
    """Resident memory of this process, on Linux."""

    def __init__(self) -> None:
        gc.collect()
        with suppress(OSError, AttributeError):
            # What the warm-up freed would otherwise hide what the form needs.
            ctypes.CDLL(None).malloc_trim(0)
        self.before = _status_mb('VmRSS')
        with suppress(OSError):
            # Where it cannot be reset the peak is that of the whole process, which
            # can only be higher.
            Path('/proc/self/clear_refs').write_text('5')

    def read(self) -> tuple[float | None, float | None]:
        """On top of what was there, and in all."""
        peak = _status_mb('VmHWM')
        if peak is None:
            return None, None
        return max(0.0, peak - self.before), peak


class _CUDAMemory:
    """What PyTorch allocated on the GPU."""

    def __init__(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self.before = torch.cuda.memory_allocated() / MEGA

    def read(self) -> tuple[float, float]:
        """On top of what was there, and in all."""
        peak = torch.cuda.max_memory_allocated() / MEGA
        return peak - self.before, peak


def _largest_child_mb() -> float:
    """Peak of the largest process that this one started and that has ended."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / MEGA


def _status_mb(name: str) -> float | None:
    """VmRSS or VmHWM (the peak) of this process; None where there is no /proc."""
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
    except OSError:
        return None
    (line,) = (line for line in lines if line.startswith(f'{name}:'))
    return int(line.split()[1]) * 1024 / MEGA
