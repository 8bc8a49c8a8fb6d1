"""Testing at several scales, the paper's +M: each RoI at the scale that suits its size.

Shapes:
    S: scales, N: images in the batch, R: RoIs of all of them
"""

from collections.abc import Sequence

import torch
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures import DetDataSample
from mmengine.model import BaseTTAModel
from torch import Tensor, nn

from mmdet_ohem.models.rfcn import RFCNRoIHead
from mmdet_ohem.registry import MODELS


def choose_scales(areas: Tensor, ratios: Tensor, roi_area: float) -> Tensor:
    """The scale at which each RoI's area comes closest to ``roi_area``.

    SPPnet's rule, as in Fast R-CNN's test code (`_project_im_rois`), which counts
    widths as x2 - x1 + 1 and uses one factor for both axes.

    Args:
        areas: (R,) float, in pixels of a frame that all scales refer to.
        ratios: (R, S) float, how many times as large the area is at each scale.
        roi_area: in pixels of the scaled image.

    Returns:
        (R,) int64 below S, the first of scales that are equally close.
    """
    return (areas[:, None] * ratios - roi_area).abs().argmin(dim=1)


class PyramidRoIExtractor(nn.Module):
    """Pools each RoI from the features of one scale.

    It stands in for the RoI extractor of a RoI head. The head's boxes are in pixels of
    the first scale.

    Args:
        extractor (nn.Module): pools from the features of one scale.
        roi_area (float): see `choose_scales`.
    """

    def __init__(self, extractor: nn.Module, roi_area: float) -> None:
        super().__init__()
        self.extractor = extractor
        self.roi_area = roi_area
        # (N, S, 2), the size of an image at each scale over that at the first, in x and
        # y; whoever runs the head sets them for each batch.
        self.factors: Tensor | None = None

    @property
    def num_inputs(self) -> int:
        """How many scales the RoI head hands over."""
        return self.factors.shape[1]

    def forward(self, pyramid: Sequence[tuple[Tensor]], rois: Tensor) -> Tensor:
        """Pools RoIs (R, 5) from S tuples of feature maps: (R, channels, bins, bins).

        R is 1 or more.
        """
        factors = self.factors[rois[:, 0].long()]  # (R, S, 2)
        areas = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        scales = choose_scales(areas, factors.prod(dim=2), self.roi_area)
        pooled = None
        for scale in scales.unique().tolist():
            chosen = scales == scale
            scaled = rois[chosen]
            scaled[:, 1:] *= factors[chosen, scale].repeat(1, 2)
            features = pyramid[scale][: self.extractor.num_inputs]
            part = self.extractor(features, scaled)
            if pooled is None:
                pooled = part.new_empty(len(rois), *part.shape[1:])
            pooled[chosen] = part
        return pooled


@MODELS.register_module()
class MultiScaleTTAModel(BaseTTAModel):
    """Runs the backbone at every scale and the head once, as Fast R-CNN's test code.

    For `tools/test.py --tta`. The `tta_pipeline` makes one view of an image per scale
    with MMEngine's TestTimeAug, by resizing and nothing else. MMDetection's DetTTAModel
    runs all RoIs at all scales instead, and merges detections.

    Args:
        module (dict | nn.Module): a detector with a StandardRoIHead or a head derived
            from it, without masks, that is tested on proposals. Not RFCNRoIHead, which
            makes its score maps at one scale.
        roi_area (float): 224 x 224 in SPPnet; each RoI is pooled at the scale where
            its area is closest to it.

    Raises:
        TypeError: the detector has another RoI head, or masks.
    """

    def __init__(
        self, module: dict | nn.Module, roi_area: float = 224 * 224, **kwargs
    ) -> None:
        super().__init__(module, **kwargs)
        head = getattr(self.module, 'roi_head', None)
        fits = isinstance(head, StandardRoIHead) and not isinstance(head, RFCNRoIHead)
        if not fits or head.with_mask:
            raise TypeError(
                'MultiScaleTTAModel takes a detector with a StandardRoIHead and no '
                f'masks, got {type(self.module).__name__} with {type(head).__name__}'
                f'{" and masks" if getattr(head, "with_mask", False) else ""}: use '
                'DetTTAModel in tta_model.'
            )
        head.bbox_roi_extractor = PyramidRoIExtractor(head.bbox_roi_extractor, roi_area)

    def test_step(self, data: dict) -> list[DetDataSample]:
        """Detections in pixels of the original images.

        Args:
            data: ``inputs`` and ``data_samples``, each a list of S lists of N.

        Raises:
            ValueError: a view has no proposals, or is more than a resized image.
        """
        _check_views(data['data_samples'])
        views = {}
        for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True):
            # The limit of the longer side makes one of two scales in most of VOC.
            shapes = tuple(sample.img_shape for sample in samples)
            if shapes not in views:
                views[shapes] = self.module.data_preprocessor(
                    dict(inputs=inputs, data_samples=samples)
                )
        return self.merge_preds(list(views.values()))

    def merge_preds(self, views: list[dict]) -> list[DetDataSample]:
        """One prediction from the views of a batch: features meet here, not boxes."""
        detector: TwoStageDetector = self.module
        pyramid = [detector.extract_feat(view['inputs']) for view in views]
        extractor = detector.roi_head.bbox_roi_extractor
        extractor.factors = _factors([view['data_samples'] for view in views]).to(
            pyramid[0][0].device
        )
        samples = views[0]['data_samples']
        results = detector.roi_head.predict(
            pyramid, [sample.proposals for sample in samples], samples, rescale=True
        )
        return detector.add_pred_to_datasample(samples, results)


def _factors(samples_of_scales: list[list[DetDataSample]]) -> Tensor:
    """(N, S, 2) float32, the size of an image at each scale over that at the first."""
    scale_factors = torch.tensor(
        [[sample.scale_factor for sample in samples] for samples in samples_of_scales]
    ).transpose(0, 1)
    return scale_factors / scale_factors[:, :1]


def _check_views(samples_of_scales: list[list[DetDataSample]]) -> None:
    for samples in samples_of_scales:
        for sample in samples:
            if 'proposals' not in sample:
                raise ValueError(
                    f'{sample.img_path} has no proposals: MultiScaleTTAModel needs '
                    'LoadStoredProposals in the TestTimeAug of tta_pipeline.'
                )
    factors = _factors(samples_of_scales)
    for image, views in enumerate(zip(*samples_of_scales, strict=True)):
        first = views[0].proposals.bboxes
        for view, factor in zip(views, factors[image], strict=True):
            bboxes = view.proposals.bboxes
            # Rounding may cost one view a box that lies on the border.
            if len(bboxes) == len(first) > 0 and (
                (first * factor.repeat(2) - bboxes).abs().max() > 1
            ):
                raise ValueError(
                    f'A view of {view.img_path} is more than the image resized: leave '
                    'RandomFlip and its like out of tta_pipeline, or use DetTTAModel '
                    'in tta_model.'
                )
