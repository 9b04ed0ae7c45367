"""Ctrl-C and SIGTERM that come where Python drops what they raise."""

import os
import signal
import sys
import time

import pytest
from faults.children import run

from mmwsss.apis.cli import run_tool

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
