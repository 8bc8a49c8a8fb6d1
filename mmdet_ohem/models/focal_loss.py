"""Focal loss in a RoI head, as RetinaNet has it.

Letters for shapes:
    N: RoIs of a batch
    C: foreground classes
"""

import math

import torch
from mmdet.models.losses import FocalLoss, accuracy
from torch import Tensor

from mmdet_ohem.registry import MODELS

# The share of foreground that a new network expects (Lin et al., ICCV 2017, section
# 4.1). There it is the first bias of the classifier; RoI heads have no setting for
# that, and a constant added to the logits is the same function with the same gradients.
PRIOR = 0.01
PRIOR_LOGIT = -math.log((1 - PRIOR) / PRIOR)


@MODELS.register_module()
class RetinaFocalLoss(FocalLoss):
    """The focal loss of RetinaNet for ``bbox_head.loss_cls``: a sigmoid for each class,
    none for background, and a sum that is divided by the number of foreground RoIs.

    MMDetection's RoI heads divide every loss by the number of all RoIs, give background
    a score of its own, and take the softmax when they test. Here the last of the C + 1
    logits, background's, is not used.

    Raises:
        AssertionError: ``use_sigmoid=False``, by MMDetection.
    """

    # Read by MMDetection's BBoxHead: without the first it takes the softmax in a test.
    custom_cls_channels = True
    custom_activation = True
    custom_accuracy = True

    def forward(
        self,
        cls_score: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Args:
            cls_score: (N, C + 1) logits.
            labels: (N,) int64, C for background.
            weight: (N,), or None for 1.
            avg_factor: not used.
            reduction_override: as in MMDetection's losses.

        Returns:
            a number, or (N, C) with ``reduction_override='none'``.
        """
        foreground = (labels < cls_score.size(1) - 1).sum().clamp(min=1)
        return super().forward(
            self._logits(cls_score),
            labels,
            weight,
            None if reduction_override == 'none' else foreground,
            reduction_override,
        )

    def _logits(self, cls_score: Tensor) -> Tensor:
        return cls_score[:, :-1] + PRIOR_LOGIT

    def get_cls_channels(self, num_classes: int) -> int:
        """C + 1: some RoI heads have no other number."""
        return num_classes + 1

    def get_activation(self, cls_score: Tensor) -> Tensor:
        """Scores (N, C + 1); background has what the surest class leaves of 1."""
        scores = self._logits(cls_score).sigmoid()
        return torch.cat([scores, 1 - scores.amax(dim=1, keepdim=True)], dim=1)

    def get_accuracy(self, cls_score: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The share of RoIs with the right class, in %, as BBoxHead logs it."""
        return dict(acc=accuracy(self.get_activation(cls_score), labels))
