#!/usr/bin/env bash
# bash tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [arguments of tools/test.py]
# One process per GPU; without a GPU the processes share the cores (gloo).
set -euo pipefail
CONFIG=${1:?usage: bash tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [ARGS]}
CHECKPOINT=${2:?usage: bash tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [ARGS]}
NUM=${3:?usage: bash tools/dist_test.sh CONFIG CHECKPOINT NUM_PROCESSES [ARGS]}
shift 3
TARGET=("$CONFIG" "$CHECKPOINT")
# More threads than cores make small operations many times slower.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > NUM ? $(nproc) / NUM : 1))}
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
  --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
  --nproc_per_node="$NUM" \
  "$(dirname "$0")/test.py" "${TARGET[@]}" --launcher pytorch "$@"
