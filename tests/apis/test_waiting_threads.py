import os
import subprocess
import sys

import pytest

# Says what GNU OpenMP has read, when PyTorch is imported.
SHOW = dict(OMP_DISPLAY_ENV='VERBOSE', OMP_NUM_THREADS='1')
CODE = """
import sys
from mmwsss.apis.cli import run_tool
def main():
    assert 'torch' not in sys.modules, 'too late'
    import torch
run_tool(main)
"""


def seen(**given):
    """The line of GNU OpenMP about its rounds, '' for another OpenMP."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')
    }
    done = subprocess.run(
        [sys.executable, '-c', CODE],
        env=environment | SHOW | given,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line for line in done.stderr.splitlines() if 'GOMP_SPINCOUNT' in line]
    return lines[0] if lines else ''


@pytest.mark.parametrize(
    ('given', 'rounds'),
    [
        ({}, '5000'),
        ({'GOMP_SPINCOUNT': '77'}, '77'),
        ({'OMP_WAIT_POLICY': 'PASSIVE'}, '0'),
    ],
)
def test_tools_wait_briefly_unless_told_otherwise(given, rounds):
    line = seen(**given)
    if not line:
        pytest.skip('PyTorch is built with another OpenMP, which shows no such setting')
    assert f"'{rounds}'" in line
