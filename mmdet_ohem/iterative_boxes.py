"""Iterative boxes and box voting at test time, the paper's +B.

From MR-CNN (Gidaris and Komodakis, ICCV 2015, section 5), as the OHEM paper uses it:
all proposals give boxes R1, the high-scoring ones of R1 are RoIs once more and give
R2, and R1 and R2 together go through NMS and voting.

Shapes:
    R: RoIs of one image, C: classes, n: pairs of a RoI and a class in one image
"""

import torch
from mmcv.ops import batched_nms
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet_ohem.box_voting import vote_boxes
from mmdet_ohem.registry import MODELS

# RoIs that go through the head at a time: as many as Selective Search has in an image.
CHUNK = 2000


@MODELS.register_module()
class IterativeBoxRoIHead(StandardRoIHead):
    """StandardRoIHead that rescores and relocalises its high-scoring boxes.

    It trains as StandardRoIHead does, and its checkpoints are the same: at test time
    ``model.roi_head.type=mmdet_ohem.IterativeBoxRoIHead`` is all there is to change.

    A box of R1 belongs to a class, and its second round is of that class alone, as in
    MR-CNN. Boxes of R1 and R2 above ``score_thr`` of ``test_cfg`` make the pool, its
    ``nms`` is that of the pool (0.3 in the paper). A survivor keeps its score and
    becomes the mean of the boxes of the pool that vote for it.

    Args:
        rerun_score_thr (float): boxes of R1 with a higher score are run again. The
            paper says 'high-scoring' and gives no number; 0.05 is the threshold of
            detections in its configs. (MR-CNN's code takes what leaves it 15 boxes
            per class and image, without near duplicates.)
        vote_iou_thr (float): least IoU of a survivor with the boxes that vote.
    """

    def __init__(
        self, *args, rerun_score_thr: float = 0.05, vote_iou_thr: float = 0.5, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rerun_score_thr = rerun_score_thr
        self.vote_iou_thr = vote_iou_thr

    def predict_bbox(
        self,
        x: tuple[Tensor],
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: bboxes, scores and labels, by falling score.

        Arguments and result are those of `StandardRoIHead.predict_bbox`.
        """
        raw_results = super().predict_bbox(
            x, batch_img_metas, rpn_results_list, rcnn_test_cfg=None
        )
        lowest = min(rcnn_test_cfg.score_thr, self.rerun_score_thr)
        first = [_scored_boxes(raw, lowest) for raw in raw_results]
        high = [boxes[boxes.scores > self.rerun_score_thr] for boxes in first]
        second = self._run_again(x, batch_img_metas, high)
        results = []
        for img_meta, *rounds in zip(batch_img_metas, first, second, strict=True):
            pool = InstanceData.cat(rounds)
            pool = pool[pool.scores > rcnn_test_cfg.score_thr]
            if rescale and len(pool) > 0:
                factors = [1 / factor for factor in img_meta['scale_factor']]
                pool.bboxes = scale_boxes(pool.bboxes, factors)
            results.append(self._suppress_and_vote(pool, rcnn_test_cfg))
        return results

    def _run_again(
        self, x: tuple[Tensor], batch_img_metas: list[dict], boxes: list[InstanceData]
    ) -> list[InstanceData]:
        """Boxes (n,) of each image as RoIs: their new boxes and scores, same labels."""
        rois = bbox2roi([of_image.bboxes for of_image in boxes])
        if len(rois) == 0:
            return boxes
        outputs = [self._bbox_forward(x, chunk) for chunk in rois.split(CHUNK)]
        counts = [len(of_image) for of_image in boxes]
        raw_results = self.bbox_head.predict_by_feat(
            rois=rois.split(counts),
            cls_scores=torch.cat([out['cls_score'] for out in outputs]).split(counts),
            bbox_preds=torch.cat([out['bbox_pred'] for out in outputs]).split(counts),
            batch_img_metas=batch_img_metas,
        )
        results = []
        for raw, of_image in zip(raw_results, boxes, strict=True):
            labels = of_image.labels
            every = torch.arange(len(labels), device=labels.device)
            results.append(
                InstanceData(
                    bboxes=_boxes_per_class(raw)[every, labels],
                    scores=raw.scores[every, labels],
                    labels=labels,
                )
            )
        return results

    def _suppress_and_vote(
        self, pool: InstanceData, rcnn_test_cfg: ConfigDict
    ) -> InstanceData:
        if len(pool) == 0:
            return pool
        # By class, and sorted by falling score.
        detections, kept = batched_nms(
            pool.bboxes, pool.scores, pool.labels, rcnn_test_cfg.nms
        )
        results = pool[kept]
        results.scores = detections[:, -1]  # changed by soft NMS
        if rcnn_test_cfg.max_per_img > 0:
            results = results[: rcnn_test_cfg.max_per_img]
        results.bboxes = vote_boxes(
            results.bboxes,
            results.labels,
            pool.bboxes,
            pool.scores,
            pool.labels,
            self.vote_iou_thr,
        )
        return results


def _scored_boxes(raw: InstanceData, score_thr: float) -> InstanceData:
    """The n pairs of a RoI and a class with a higher score, in MMDetection's order."""
    scores = raw.scores[:, :-1]  # the last is the background's
    roi, label = (scores > score_thr).nonzero(as_tuple=True)
    return InstanceData(
        bboxes=_boxes_per_class(raw)[roi, label],
        scores=scores[roi, label],
        labels=label,
    )


def _boxes_per_class(raw: InstanceData) -> Tensor:
    """(R, C, 4) of (R, C * 4), or of (R, 4) where all classes share a box."""
    num_rois, num_classes = len(raw.scores), raw.scores.shape[1] - 1
    if raw.bboxes.shape[1] == 4:
        return raw.bboxes[:, None].expand(num_rois, num_classes, 4)
    return raw.bboxes.view(num_rois, num_classes, 4)
