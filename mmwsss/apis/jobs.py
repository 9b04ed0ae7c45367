"""One function over many items: in this process, in several, or on torchrun's ranks."""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

import torch
import torch.distributed as dist

from mmwsss.apis.cli import find_sentence, terminated_like_ctrl_c
from mmwsss.errors import InputError, UnreadablePhoto

Progress = Callable[[Iterable, int], Iterable]
# Called with an item and the sentence on its photo, which cannot be read.
LeftOut = Callable[[object, UnreadablePhoto], None]
# Items that wait for each worker process, so that none of them has to.
_WAITING_PER_JOB = 2
# What a worker process has built, made with its first item.
_WORKER: Callable | None = None


def run_jobs(
    build: Callable[[int], Callable],
    items: Sequence,
    *,
    jobs: int = 1,
    progress: Progress = lambda done, total: done,
    left_out: LeftOut | None = None,
) -> None:
    """Call a function on every item.

    Args:
        build: Makes the function (loads the network); called once per process with the
            process's number. It and the items must be picklable for several processes.
        items: What it is called on; the order does not matter.
        jobs: Processes; 1 stays in this one.
        progress: Wraps the stream of finished items, called with it and their number.
            They come as the function left them, also from another process.
        left_out: Called in this process for an item whose photo cannot be read, in
            place of stopping there; what it raises stops the rest.

    Raises:
        InputError: Bad input in any process; the others end their item and stop.
    """
    if jobs < 1:
        raise InputError(f'--jobs must be 1 or more, got {jobs}')
    jobs = min(jobs, len(items))
    if not items:
        return
    if jobs == 1:
        done = _alone(build(0), items, left_out)
    else:
        done = _together(build, items, jobs, left_out)
    for _ in progress(done, len(items)):
        pass


def _alone(
    function: Callable, items: Iterable, left_out: LeftOut | None = None
) -> Iterator:
    for item in items:
        try:
            function(item)
        except UnreadablePhoto as error:
            if left_out is None:
                raise
            left_out(item, error)
        else:
            yield item


def stream_jobs(
    build: Callable[[int], Callable], items: Iterable, *, jobs: int = 1
) -> Iterator:
    """Call a function on every item of a stream of any length, in order.

    A few items per process are on their way at a time, so memory does not grow with
    the stream, and with the first item at the earliest anything is built.

    Args:
        build: As for ``run_jobs``.
        items: What it is called on; drawn from as the results are.
        jobs: Processes; 1 stays in this one.

    Yields:
        The items as the function left them, in their order.

    Raises:
        InputError: Bad input in any process.
    """
    if jobs < 1:
        raise InputError(f'--jobs must be 1 or more, got {jobs}')
    if jobs == 1:
        yield from _alone(_Lazy(build, 0), items)
        return
    with _pool(build, jobs) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) > _WAITING_PER_JOB * jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _together(
    build: Callable, items: Sequence, jobs: int, left_out: LeftOut | None
) -> Iterator:
    with _pool(build, jobs) as pool:
        futures = {pool.submit(_call, item): item for item in items}
        for future in as_completed(futures):
            try:
                item = future.result()
            except UnreadablePhoto as error:
                if left_out is None:
                    raise
                left_out(futures[future], error)
            else:
                yield item


@contextmanager
def _pool(build: Callable, jobs: int) -> Iterator[ProcessPoolExecutor]:
    context = get_context('spawn')
    threads = max(1, torch.get_num_threads() // jobs)
    number = context.Value('i', 0)
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=context,
        initializer=_begin,
        initargs=(os.getpid(), threads, number, build),
    )
    with terminated_like_ctrl_c():
        try:
            yield pool
        except BrokenProcessPool:
            raise InputError(
                'a worker process was killed, perhaps for lack of memory; take fewer '
                '--jobs and run the same command again to go on'
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int, threads: int, number, build: Callable) -> None:
    """Start of a worker process."""
    global _WORKER
    # Ctrl-C goes to the whole group; the parent decides, after the current item.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    with number.get_lock():
        mine = number.value
        number.value += 1
    # Built with the first item: an error in here would be lost.
    _WORKER = _Lazy(build, mine)


class _Lazy:
    def __init__(self, build: Callable, number: int) -> None:
        self.build, self.number, self.function = build, number, None

    def __call__(self, item: object) -> object:
        if self.function is None:
            self.function = self.build(self.number)
        self.function(item)
        return item


def _end_with(parent: int) -> None:
    # A killed parent cannot say so, and its workers would wait for work for ever.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(item: object) -> object:
    try:
        return _WORKER(item)
    except Exception as error:
        sentence = find_sentence(error)
        if sentence is None:
            raise
        # Some errors of the registries do not survive the way to the parent.
        kind = UnreadablePhoto if isinstance(error, UnreadablePhoto) else InputError
        raise kind(sentence) from None


# ----------------------------------------------------------------------- torchrun
def rank_and_size() -> tuple[int, int]:
    """This process among those that torchrun started, (0, 1) without it."""
    return int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))


def decided_by_first_rank(decide: Callable[[], list]) -> list:
    """What the first rank finds to do, on all ranks; its InputError as well."""
    rank, size = rank_and_size()
    if size == 1:
        return decide()
    if not dist.is_initialized():
        dist.init_process_group('gloo')
    answer: list = [None, None]
    if rank == 0:
        try:
            answer[0] = decide()
        except InputError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise InputError(answer[1])
    return answer[0]


def joined(items: list) -> list:
    """The items of all ranks, rank by rank."""
    if not dist.is_initialized():
        return items
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def my_share(items: Sequence) -> Sequence:
    """The items of this rank."""
    rank, size = rank_and_size()
    return items[rank::size]


def wait_for_all() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def device_of(number: int, device: str | None) -> str:
    """The device of a worker: the given one, else GPUs in turn, else the CPU."""
    if device:
        return device
    if not torch.cuda.is_available():
        return 'cpu'
    rank = int(os.environ.get('LOCAL_RANK', 0))
    return f'cuda:{(rank + number) % torch.cuda.device_count()}'
