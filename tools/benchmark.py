"""Time the fast forms against naive ones and against what the machine could do.

    python tools/benchmark.py --list
    python tools/benchmark.py local_affinity --threads 1 --json benchmark.json

docs/benchmark.md says what the columns mean.
"""

from mmwsss.apis.benchmark.command import benchmark_command
from mmwsss.apis.cli import run_tool

if __name__ == '__main__':
    run_tool(benchmark_command)
