"""Memory and resuming of `mmwsss label` on 100,000 generated photos.

    python tools/benchmark_labelling.py
    python tools/benchmark_labelling.py --photos 2000

docs/benchmark.md has the numbers and says what they mean.
"""

from mmwsss.apis.benchmark.labelling import labelling_command
from mmwsss.apis.cli import run_tool

if __name__ == '__main__':
    run_tool(labelling_command)
