import numpy as np
import torch
from mmdet.registry import MODELS
from support.detection_reference import random_seed, small_detector
from support.reference import random_boxes

from mmdet_ohem.models import RetinaFocalLoss

FOCAL = dict(type='mmdet_ohem.RetinaFocalLoss')


def plain_focal_loss(logits: np.ndarray, labels: np.ndarray) -> float:
    """Lin et al., ICCV 2017, equation 5, one RoI and one class after the other, with
    the prior of 0.01 of section 4.1 as the bias of the classifier."""
    total, foreground = 0.0, 0
    for row, label in zip(logits, labels, strict=True):
        foreground += label < len(row) - 1
        for c, logit in enumerate(row[:-1]):
            p = 1 / (1 + 99 * np.exp(-logit))
            p_t, alpha_t = (p, 0.25) if c == label else (1 - p, 0.75)
            total -= alpha_t * (1 - p_t) ** 2 * np.log(p_t)
    return total / max(foreground, 1)


def test_the_loss_is_that_of_plain_numpy():
    rng = np.random.default_rng(random_seed())
    for foreground in (0, 1, 7):
        logits = rng.normal(0, 3, (20, 4))
        labels = np.full(20, 3)
        labels[:foreground] = rng.integers(0, 3, foreground)
        loss = MODELS.build(FOCAL)(
            torch.from_numpy(logits),
            torch.from_numpy(labels),
            torch.ones(20),
            avg_factor=20.0,  # MMDetection's, the number of RoIs
        )
        np.testing.assert_allclose(loss, plain_focal_loss(logits, labels), rtol=1e-6)


def test_a_new_network_is_99_percent_sure_of_background():
    scores = RetinaFocalLoss().get_activation(torch.zeros(1, 4))
    torch.testing.assert_close(scores, torch.tensor([[0.01, 0.01, 0.01, 0.99]]))


def test_a_roi_head_tests_with_these_scores():
    seed = random_seed()
    detector = small_detector(seed)
    bbox_head = detector.roi_head.bbox_head
    bbox_head.loss_cls = MODELS.build(FOCAL)
    boxes = random_boxes(np.random.default_rng(seed), 30, 160, 120)
    rois = torch.cat([torch.zeros(30, 1), torch.from_numpy(boxes)], dim=1)
    features = detector.extract_feat(torch.randn(1, 3, 120, 160))
    with torch.no_grad():
        out = detector.roi_head._bbox_forward(features, rois)
        (found,) = bbox_head.predict_by_feat(
            (rois,),
            (out['cls_score'],),
            (out['bbox_pred'],),
            [dict(img_shape=(120, 160), scale_factor=(1.0, 1.0))],
        )
    expected = 1 / (1 + 99 * np.exp(-out['cls_score'][:, :3].double().numpy()))
    np.testing.assert_allclose(found.scores[:, :3], expected, rtol=1e-4)
