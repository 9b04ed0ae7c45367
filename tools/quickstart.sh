#!/usr/bin/env bash
# From a fresh clone to a trained and scored network:  bash tools/quickstart.sh
#
# Makes .venv, draws a small benchmark, trains on its image labels, scores, and writes
# a report. Ctrl-C at any time; the same command goes on where it stopped. Options are
# passed to the driver:  bash tools/quickstart.sh --help
set -euo pipefail

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=tools/_environment.sh
source "$root/tools/_environment.sh"

cd -- "$root"
make_environment "$root" onedl
exec "$VENV_PYTHON" -m mmwsss.apis.quickstart "$@"
