"""SIGTERM during a training: all processes stop after the same iteration, saved."""

import signal
import sys
import threading
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from torch.utils.data import DataLoader

from mmwsss.errors import Terminated

# A launcher waits about as long before it kills.
_WORKER_GRACE_S = 30


class Termination:
    """Notes SIGTERM, as a context, and tells all processes of a training alike.

    Clusters, containers and launchers end a process with SIGTERM, wait for half a
    minute or so, and kill. Nothing is done in the handler: an iteration is either done
    or not.

    Attributes:
        asked: SIGTERM has come to this process.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before = None
        self._agreed = False
        self._group: dist.ProcessGroup | None = None
        self._sum: torch.Tensor | None = None
        self._answer: dist.Work | None = None

    def __enter__(self) -> 'Termination':
        if get_world_size() > 1:
            # Of its own, on the CPU: no GPU waits for it.
            self._group = dist.new_group(backend='gloo')
        # Signals reach the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if self._answer is not None and error[0] in (None, Terminated):
            # Nobody hangs up while another process still asks.
            self._answer.wait()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True

    def due(self) -> bool:
        """Whether to stop after this iteration, the same in all processes.

        Each calls it once an iteration. Several ask each other and look at the answer
        an iteration later, when it has long been there.
        """
        if self._group is None:
            self._agreed = self._agreed or self.asked
            return self._agreed
        if self._answer is not None:
            self._answer.wait()
            self._agreed = self._agreed or bool(self._sum)
        self._sum = torch.tensor(int(self.asked))
        self._answer = dist.all_reduce(self._sum, group=self._group, async_op=True)
        return self._agreed


def prepare_workers(loader: DataLoader | None) -> None:
    """Let a loader's worker processes outlive SIGTERM for a while, and end quietly.

    SIGTERM is often sent to a whole group of processes. Without its workers a training
    could not end the iteration that it is in.

    Args:
        loader: Not iterated yet; None is left alone.
    """
    if loader is not None and loader.num_workers:
        loader.worker_init_fn = partial(_begin_worker, loader.worker_init_fn)


def _begin_worker(begin, worker_id: int) -> None:
    # They end with the process that they work for, long before that.
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_WORKER_GRACE_S))
    # Its own errors a worker sends to that process; this is what its threads say.
    sys.excepthook = partial(_tell_unless_hung_up, sys.excepthook)
    if begin is not None:
        begin(worker_id)


def _tell_unless_hung_up(tell, kind, error, trace) -> None:
    # The process that a worker is just handing a photo to has ended, and says why.
    if not issubclass(kind, ConnectionError | EOFError):
        tell(kind, error, trace)
