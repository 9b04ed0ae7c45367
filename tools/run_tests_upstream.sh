#!/usr/bin/env bash
# Run the tests on upstream's OpenMMLab packages (mmengine 0.10.7, mmcv 2.1.0,
# mmsegmentation 1.2.2, mmpretrain 1.2.0):  bash tools/run_tests_upstream.sh [pytest options]
#
# The first call makes the environment .venv-upstream (MMWSSS_VENV=DIR for another,
# MMWSSS_PYTHON=P for another interpreter than python3.11) and compiles mmcv in it, for
# the CPU alone, with a C++ compiler and from nothing but the package index. MAX_JOBS=N
# compiles N files at once (default: one per core). That took 14 minutes on four busy
# cores, with MAX_JOBS=3. Later calls use what is built.
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/_environment.sh
source "$root/tools/_environment.sh"

export MMWSSS_VENV="${MMWSSS_VENV:-$root/.venv-upstream}"
export MMWSSS_PYTHON="${MMWSSS_PYTHON:-python3.11}"
# Upstream's versions are what is tested, so there are no newer ones to take; set to 0, it
# would only compile mmcv again.
export MMWSSS_LOCK=1

# Takes the place of the one in _environment.sh, which make_environment calls: mmcv's
# setup.py wants torch and an old setuptools beside it, and without them it leaves its
# operators out and says nothing. MMSegmentation imports them and mmwsss calls none, so
# they are compiled without optimization, in half the time.
install_package() {
  local root="$1"
  local pip=("$VENV_PYTHON" -m pip install --disable-pip-version-check)
  "${pip[@]}" --require-hashes --requirement "$root/requirements/upstream.txt" &&
    MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES='' CFLAGS='-O0 -g0' \
      MAX_JOBS="${MAX_JOBS:-$(nproc)}" PATH="${VENV_PYTHON%/*}:$PATH" \
      "${pip[@]}" --no-build-isolation --no-deps --no-binary mmcv --require-hashes \
      --requirement "$root/requirements/upstream_mmcv.txt" &&
    "${pip[@]}" --no-deps --editable "$root" &&
    "$VENV_PYTHON" -c 'import torch, mmcv._ext'
}

cd -- "$root"
make_environment "$root" openmmlab,tests
# As in run_tests.sh.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
cores="$("$VENV_PYTHON" -c \
  'from mmwsss.apis.stages import available_cores; print(available_cores())')"
exec "$VENV_PYTHON" -m pytest --numprocesses "$cores" --dist loadfile "$@"
