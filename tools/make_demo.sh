#!/usr/bin/env bash
# `make demo`: a small data set, OHEM beside random sampling on the same budget, and
# pictures. About five minutes on two cores; what is there already is not made again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run() {
  echo "> ${PYTHON:-python} $*"
  "${PYTHON:-python}" "$@"
  echo
}

DATA=data/lookalikes
CONFIG=configs/fast_rcnn_small_ohem_lookalikes.py
WORK=work_dirs/demo

[[ -d $DATA ]] || run tools/make_lookalikes.py $DATA
[[ -d $DATA/proposals ]] ||
  run tools/prepare_proposals.py selective-search --images $DATA/JPEGImages \
    --out $DATA/proposals
run tools/compare_samplers.py $CONFIG --samplers random ohem --seeds 0 --jobs 2 \
  --work-dir $WORK
run tools/draw_pictures.py $CONFIG "$(cat $WORK/ohem-seed0/last_checkpoint)" \
  --beside "$(cat $WORK/random-seed0/last_checkpoint)" --work-dir $WORK
cat <<END
In $WORK: table.md (the verdict), curves.png, detections.png (random sampling beside
OHEM, false positives in orange) and mined.png (what OHEM trains on, early and at the end).
Your own data: python tools/new_data_set.py --images ... --annotations ... --name mine
END
