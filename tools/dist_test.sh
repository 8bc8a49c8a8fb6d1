#!/usr/bin/env bash
# Several processes on one or more machines; without a GPU, on its CPU cores.
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [flags of test.py]
# NNODES, NODE_RANK, MASTER_ADDR and PORT as in MMDetection.
set -euo pipefail

USAGE='usage: tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [flags of test.py]'
CONFIG=${1:?$USAGE}
CHECKPOINT=${2:?$USAGE}
PROCESSES=${3:?$USAGE}

python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$(dirname "$0")/test.py" "$CONFIG" "$CHECKPOINT" --launcher pytorch "${@:4}"
