"""Iterative boxes and box voting at test time, the paper's +B.

From MR-CNN (Gidaris and Komodakis, ICCV 2015, section 5), as the OHEM paper uses it:
all proposals give boxes R1, the high-scoring ones of R1 are RoIs once more and give
R2, and R1 and R2 together go through NMS and voting.

Shapes:
    R: RoIs of one image, C: classes, n: pairs of a RoI and a class in one image
    K: boxes that NMS left, k: those of one class
    M: boxes that vote, m: those of one class
"""

import torch
from mmcv.ops import batched_nms
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi, bbox_overlaps, scale_boxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from mmdet_ohem.registry import MODELS

# RoIs that go through the head at a time: as many as Selective Search has in an image.
CHUNK = 2000


@MODELS.register_module()
class IterativeBoxRoIHead(StandardRoIHead):
    """StandardRoIHead that rescores and relocalises its high-scoring boxes.

    It trains as StandardRoIHead does, and its checkpoints are the same: at test time
    ``model.roi_head.type=mmdet_ohem.IterativeBoxRoIHead`` is all there is to change.

    A box of R1 belongs to a class, and its second round is of that class alone, as in
    MR-CNN. Boxes of R1 and R2 above ``score_thr`` of ``test_cfg`` go through its
    ``nms`` (0.3 in the paper). A survivor keeps its score and becomes the mean of the
    boxes of the pool that vote for it. The pool has a threshold of its own, because
    ``score_thr`` may be nearly 0, so that all detections count towards the mAP. Boxes
    with such scores are many, and their votes would add up.

    Args:
        rerun_score_thr (float): boxes of R1 with a higher score are run again. The
            paper says 'high-scoring' and gives no number; 0.05 is the threshold of
            detections in its configs. (MR-CNN's code takes what leaves it 15 boxes
            per class and image, without near duplicates.)
        pool_score_thr (float): boxes of R1 and R2 with a higher score make the pool.
        vote_iou_thr (float): least IoU of a survivor with the boxes that vote.
    """

    def __init__(
        self,
        *args,
        rerun_score_thr: float = 0.05,
        pool_score_thr: float = 0.05,
        vote_iou_thr: float = 0.5,
        **kwargs,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.rerun_score_thr = rerun_score_thr
        self.pool_score_thr = pool_score_thr
        self.vote_iou_thr = vote_iou_thr

    def predict_bbox(
        self,
        x: tuple[Tensor],
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: ConfigDict | None,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """Detections of each image: bboxes, scores and labels, by falling score.

        Arguments and result are those of `StandardRoIHead.predict_bbox`.
        """
        if rcnn_test_cfg is None:  # raw scores and boxes, of which nothing is chosen
            return super().predict_bbox(
                x, batch_img_metas, rpn_results_list, None, rescale
            )
        raw_results = super().predict_bbox(
            x, batch_img_metas, rpn_results_list, rcnn_test_cfg=None
        )
        lowest = min(rcnn_test_cfg.score_thr, self.rerun_score_thr, self.pool_score_thr)
        first = [_scored_boxes(raw, lowest) for raw in raw_results]
        high = [boxes[boxes.scores > self.rerun_score_thr] for boxes in first]
        second = self._run_again(x, batch_img_metas, high)
        results = []
        for img_meta, *rounds in zip(batch_img_metas, first, second, strict=True):
            found = InstanceData.cat(rounds)
            if rescale and len(found) > 0:
                factors = [1 / factor for factor in img_meta['scale_factor']]
                found.bboxes = scale_boxes(found.bboxes, factors)
            results.append(self._suppress_and_vote(found, rcnn_test_cfg))
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
        self, found: InstanceData, rcnn_test_cfg: ConfigDict
    ) -> InstanceData:
        pool = found[found.scores > self.pool_score_thr]
        found = found[found.scores > rcnn_test_cfg.score_thr]
        if len(found) == 0:
            return found
        # By class, and sorted by falling score.
        detections, kept = batched_nms(
            found.bboxes, found.scores, found.labels, rcnn_test_cfg.nms
        )
        results = found[kept]
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


def vote_boxes(
    boxes: Tensor,
    labels: Tensor,
    voters: Tensor,
    voter_scores: Tensor,
    voter_labels: Tensor,
    iou_thr: float = 0.5,
) -> Tensor:
    """Replace each box by the mean of its voters, weighted by their scores.

    The voters of a box are those of its class with an IoU of ``iou_thr`` or more with
    it, itself included if it is among them. A box that nobody votes for, such as one
    of no area, stays.

    The weights are the scores themselves (Gidaris and Komodakis, ICCV 2015, section
    5); the code that they released adds 1.5 to its SVM scores first.

    Args:
        boxes: (K, 4) float, x1, y1, x2, y2 in pixels, width x2 - x1.
        labels: (K,) int.
        voters: (M, 4) float.
        voter_scores: (M,) float, 0 or more.
        voter_labels: (M,) int.
        iou_thr: 0.5 in the OHEM paper.

    Returns:
        (K, 4) float.
    """
    voted = boxes.clone()
    # Class by class: the IoU of all pairs would grow with the square of the classes.
    for label in labels.unique():
        of_class, voting = labels == label, voter_labels == label
        candidates = voters[voting]
        # eps as small as can be, so that no IoU at the threshold falls below it
        eps = torch.finfo(boxes.dtype).tiny
        iou = bbox_overlaps(boxes[of_class], candidates, eps=eps)  # (k, m)
        weights = (iou >= iou_thr) * voter_scores[voting]
        total = weights.sum(dim=1, keepdim=True)
        mean = weights @ candidates / total
        voted[of_class] = torch.where(total > 0, mean, boxes[of_class])
    return voted
