#!/usr/bin/env bash
# Run the tests:  bash tools/run_tests.sh [pytest options]
# In one process, to use a debugger:  bash tools/run_tests.sh --numprocesses 0 FILE
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/_environment.sh
source "$root/tools/_environment.sh"

cd -- "$root"
make_environment "$root" onedl,tests
# One process per core, one thread each: the tests' tensors are small, and more threads
# make them many times slower. The tests of a file stay together, since they share what
# they have trained.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
cores="$("$VENV_PYTHON" -c \
  'from mmwsss.apis.stages import available_cores; print(available_cores())')"
exec "$VENV_PYTHON" -m pytest --numprocesses "$cores" --dist loadfile "$@"
