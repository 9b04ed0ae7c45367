"""How long a thread that waits for the others keeps its core busy."""

import os

# Rounds of GNU OpenMP's loop around a look at the others; 300,000 without us.
_ROUNDS = '5000'


def wait_briefly() -> None:
    """Let PyTorch's threads spin less than a millisecond when they wait for each other.

    At the end of a parallel loop each thread waits for the slowest. GNU OpenMP, which
    PyTorch's wheels for Linux have, keeps its core busy meanwhile, for milliseconds.
    Where another process wants that core, the slowest thread is the one that is kept
    from running: docs/benchmark.md says how many times slower a step becomes.

    It is read when PyTorch is imported, here and in the processes that this one starts.
    What the environment says of it already is left alone.
    """
    if not {'GOMP_SPINCOUNT', 'OMP_WAIT_POLICY'} & set(os.environ):
        os.environ['GOMP_SPINCOUNT'] = _ROUNDS
