#!/usr/bin/env bash
# Run the tests:  bash tools/run_tests.sh [pytest options]
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/_environment.sh
source "$root/tools/_environment.sh"

cd -- "$root"
make_environment "$root" onedl,tests
# One thread: the tests' tensors are small, and more threads make them many times slower.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
exec "$VENV_PYTHON" -m pytest "$@"
