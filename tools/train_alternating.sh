#!/usr/bin/env bash
# Faster R-CNN by alternating training (Ren et al., NIPS 2015, section 3.2), with OHEM in
# Fast R-CNN: an RPN and Fast R-CNN on its proposals, then both again on the conv layers
# of that Fast R-CNN, which stay as they are.
#   tools/train_alternating.sh WORK_DIR [RPN_CONFIG FAST_RCNN_CONFIG]
# Started again it goes on where it stopped. IMAGES is the folder of VOC07's images.
set -euo pipefail

USAGE='usage: tools/train_alternating.sh WORK_DIR [RPN_CONFIG FAST_RCNN_CONFIG]'
if [[ ${1:--} == -* || $# == 2 ]]; then
  echo "$USAGE" >&2
  exit 2
fi
if [[ $1 == *[[:space:],\'\\]* ]]; then
  echo "WORK_DIR '$1' has a space, comma, quote or backslash, which --cfg-options or a" \
    'config would take apart.' >&2
  exit 2
fi
TOOLS=$(dirname "$0")
WORK=$1
RPN=${2:-$TOOLS/../configs/rpn_vgg16_voc07.py}
FAST_RCNN=${3:-$TOOLS/../configs/fast_rcnn_vgg16_ohem_voc07.py}
IMAGES=${IMAGES:-data/VOCdevkit/VOC2007/JPEGImages}

run() {
  echo "> ${PYTHON:-python} $*"
  "${PYTHON:-python}" "$@"
}

train() {  # FOLDER CONFIG [flags of train.py]
  local folder=$WORK/$1 config=$2 resume=()
  [[ ! -f $folder/done ]] || return 0
  [[ ! -f $folder/last_checkpoint ]] || resume=(--resume)
  run "$TOOLS/train.py" "$config" --work-dir "$folder" "${resume[@]}" "${@:3}"
  touch "$folder/done"
}

propose() {  # FOLDER: the proposals of the RPN that was trained there, as stores
  local folder=$WORK/$1 split
  for split in trainval test; do
    [[ ! -d $folder/$split ]] || continue
    run "$TOOLS/test.py" "$RPN" "$(cat "$folder/last_checkpoint")" \
      --work-dir "$folder" --cfg-options \
      test_dataloader.dataset.ann_file="VOC2007/ImageSets/Main/$split.txt" \
      test_evaluator.output_dir="$folder" test_evaluator.proposals_file=$split.pkl
    run "$TOOLS/prepare_proposals.py" dump "$folder/$split.pkl" \
      --images "$IMAGES" --out "$folder/$split"
  done
}

fast_rcnn_on() {  # FOLDER: a config of Fast R-CNN on the proposals that were made there
  local config=$WORK/$1/fast_rcnn.py
  cat >"$config" <<CONFIG
_base_ = '$(realpath "$FAST_RCNN")'

from mmdet_ohem.datasets import with_step

read, folder = 'LoadStoredProposals', '$WORK/$1'
train_dataloader = with_step(_base_.train_dataloader, read, store=f'{folder}/trainval')
val_dataloader = with_step(_base_.val_dataloader, read, store=f'{folder}/test')
test_dataloader = with_step(_base_.test_dataloader, read, store=f'{folder}/test')
CONFIG
  echo "$config"
}

train rpn1 "$RPN"
propose rpn1
train fast_rcnn1 "$(fast_rcnn_on rpn1)"

SHARED=(
  load_from="$(cat "$WORK/fast_rcnn1/last_checkpoint")"
  model.backbone.frozen_stages=5
  model.backbone.init_cfg=None
)
train rpn2 "$RPN" --cfg-options "${SHARED[@]}"
propose rpn2
train fast_rcnn2 "$(fast_rcnn_on rpn2)" --cfg-options "${SHARED[@]}" \
  model.roi_head.bbox_head.init_cfg=None

echo "Done; the last log ends with the mAP. To evaluate again:
  python $TOOLS/test.py $WORK/fast_rcnn2/fast_rcnn.py \
$(cat "$WORK/fast_rcnn2/last_checkpoint")"
