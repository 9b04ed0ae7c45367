import signal
import sys

import pytest


@pytest.fixture(autouse=True)
def no_default_scope():
    """Take back the default scope that a test sets: mmengine keeps it globally."""
    yield
    # The functional tests run without mmengine, so it is not imported here.
    registry = sys.modules.get('mmengine.registry')
    if registry is not None:
        registry.DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_visualizer():
    """The same with the visualizer, which would log where an earlier test did."""
    yield
    visualization = sys.modules.get('mmengine.visualization')
    if visualization is not None:
        waiting = [visualization.Visualizer]
        while waiting:
            kind = waiting.pop()
            kind._instance_dict.clear()
            waiting += kind.__subclasses__()


def pytest_configure():
    """Undo an ignored Ctrl-C, which a shell hands down to what it runs behind itself.

    Tests that interrupt a process of their own would wait for it in vain.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
