"""Signals at awkward moments: a stop that Python drops, and workers that end late."""

import multiprocessing.queues
import os
import signal
import sys
import time

import pytest
import torch
from faults.children import run

from mmwsss.apis.cli import run_tool
from mmwsss.engine.termination import prepare_workers
from mmwsss.errors import InputError

pytestmark = pytest.mark.mm

_HANGS_S = 60


def _while_forking(number):
    os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), number))
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)


class _Sent:
    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)


def _in_a_finalizer(number):
    _Sent(number)


def _twice(number):
    # What raises it again meets a finalizer, too.
    _in_a_finalizer(number)
    signal.signal(number, signal.getsignal(number))
    _in_a_finalizer(number)


@pytest.mark.parametrize('place', [_while_forking, _in_a_finalizer, _twice])
@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)]
)
def test_a_stop_that_python_drops_still_stops(place, number, code):
    def main():
        place(number)
        time.sleep(_HANGS_S)

    ended = run(lambda: run_tool(main))
    assert ended.code == code, ended.output
    assert ended.seconds < _HANGS_S
    assert ended.output.strip() == 'stopped'


@pytest.mark.parametrize('hidden', [False, True])
def test_a_stop_that_another_error_is_made_of_is_a_stop(hidden):
    """As MMEngine does while it formats a config."""

    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_HANGS_S)
        except:  # noqa: E722
            if hidden:
                raise SyntaxError('Failed to format') from None
            raise SyntaxError('Failed to format') from ValueError('else')

    ended = run(lambda: run_tool(main))
    assert ended.code == 143
    assert ended.output.strip() == 'stopped'


def test_what_goes_wrong_after_a_stop_is_told_as_well():
    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_HANGS_S)
        finally:
            raise InputError('no room for the state')

    ended = run(lambda: run_tool(main))
    assert ended.code == 143
    assert ended.output.split('\n')[:3] == [
        'error: no room for the state',
        '',
        'stopped',
    ]


def test_other_errors_of_finalizers_are_told():
    class Broken:
        def __del__(self):
            raise ValueError('of a finalizer')

    def main():
        Broken()

    def work():
        # Not pytest's, which tells of them later.
        sys.unraisablehook = sys.__unraisablehook__
        run_tool(main)

    ended = run(work)
    assert ended.code == 0
    assert 'ValueError: of a finalizer' in ended.output


def test_a_stop_outside_is_not_told_twice():
    def main():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_HANGS_S)
        finally:
            # As long as tidying up takes.
            time.sleep(0.3)
            print('tidied up')

    ended = run(lambda: run_tool(main))
    assert ended.code == 143
    assert ended.output.split() == ['tidied', 'up', 'stopped']


class _Photos(torch.utils.data.Dataset):
    def __len__(self):
        return 100

    def __getitem__(self, index):
        return torch.zeros(1000)


def test_a_worker_killed_while_it_hands_over_is_one_sentence(monkeypatch):
    pickler = multiprocessing.queues._ForkingPickler
    loads, here = pickler.loads, []

    def hang_up(data):
        if os.getpid() in here:
            raise ConnectionResetError(104, 'Connection reset by peer')
        return loads(data)

    monkeypatch.setattr(pickler, 'loads', hang_up)

    def main():
        here.append(os.getpid())
        for _ in torch.utils.data.DataLoader(_Photos(), num_workers=1):
            pass

    ended = run(lambda: run_tool(main))
    assert ended.sentence().startswith('a process that loads photos was killed')


def test_a_reset_connection_elsewhere_is_a_defect():
    def main():
        raise ConnectionResetError(104, 'Connection reset by peer')

    ended = run(lambda: run_tool(main))
    assert 'Traceback' in ended.output


def test_workers_that_end_while_an_error_is_told():
    def late(signum, frame):
        raise RuntimeError('DataLoader worker (pid 1) is killed by signal: Killed.')

    class Slow(InputError):
        def __str__(self):
            os.kill(os.getpid(), signal.SIGCHLD)
            return super().__str__()

    def main():
        signal.signal(signal.SIGCHLD, late)
        raise Slow('the sentence')

    ended = run(lambda: run_tool(main))
    assert ended.sentence() == 'the sentence'


def test_a_worker_says_nothing_of_a_reader_that_has_hung_up():
    def main():
        loader = torch.utils.data.DataLoader(_Photos(), num_workers=1)
        prepare_workers(loader)
        sys.excepthook = sys.__excepthook__
        loader.worker_init_fn(0)
        for error in (ConnectionResetError('hung up'), EOFError(), ValueError('own')):
            sys.excepthook(type(error), error, None)

    ended = run(lambda: run_tool(main))
    assert ended.output == 'ValueError: own\n'
