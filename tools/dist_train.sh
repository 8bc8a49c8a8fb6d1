#!/usr/bin/env bash
# Several processes on one or more machines; without a GPU, on its CPU cores.
#   tools/dist_train.sh CONFIG PROCESSES [flags of train.py]
# NNODES, NODE_RANK, MASTER_ADDR and PORT as in MMDetection.
set -euo pipefail

CONFIG=${1:?usage: tools/dist_train.sh CONFIG PROCESSES [flags of train.py]}
PROCESSES=${2:?usage: tools/dist_train.sh CONFIG PROCESSES [flags of train.py]}

python -m torch.distributed.run \
    --nnodes="${NNODES:-1}" --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" --master_port="${PORT:-29500}" \
    --nproc_per_node="$PROCESSES" \
    "$(dirname "$0")/train.py" "$CONFIG" --launcher pytorch "${@:3}"
