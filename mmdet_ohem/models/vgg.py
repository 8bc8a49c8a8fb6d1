"""The paper's two networks: their backbones, and the RoI network that both share, with
the box targets of the paper's configs or with those of the authors' release.

Both backbones end at conv5's ReLU, stride 16. Caffe's max pooling rounds the size of
its output up: `ceil_mode`.
"""

import torch
import torch.nn.functional as F
from mmcv.cnn import VGG
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_ohem.mining import each_roi_alone
from mmdet_ohem.registry import MODELS

# For training from scratch, or before pretrained weights replace it.
_FROM_SCRATCH = dict(type='Kaiming', layer='Conv2d')


def _check_frozen_stages(frozen_stages: int, most: int) -> None:
    if not 0 <= frozen_stages <= most:
        raise ValueError(
            f'backbone.frozen_stages must lie in 0 to {most}, got {frozen_stages}.'
        )


@MODELS.register_module()
class VGG16(VGG, BaseModule):
    """VGG16 up to conv5_3: (N, 3, H, W) to a tuple of one (N, 512, H', W').

    The layers are mmcv's `features.0` to `features.29`, numbered as in
    torchvision's weight file.

    Args:
        frozen_stages (int): stages that are not trained. 2, as in Fast R-CNN,
            are conv1_1 to conv2_2. Use 0 where nothing pretrained is loaded.
        init_cfg (dict | list[dict], optional): with None the weights are
            random (Kaiming).
    """

    def __init__(
        self, frozen_stages: int = 2, init_cfg: dict | list[dict] | None = None
    ) -> None:
        _check_frozen_stages(frozen_stages, most=5)
        super().__init__(
            depth=16,
            out_indices=(4,),
            frozen_stages=frozen_stages,
            ceil_mode=True,
            with_last_pool=False,
        )
        self.init_cfg = init_cfg or _FROM_SCRATCH
        # mmcv freezes in train(), which would come after the optimizer and DDP
        # have listed the trainable parameters.
        self.train()

    def init_weights(self) -> None:
        # mmcv's own init_weights knows no init_cfg.
        super(VGG, self).init_weights()

    def train(self, mode: bool = True) -> 'VGG16':
        super().train(mode)
        return self  # mmcv's returns None

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (super().forward(x),)


class Float32LocalResponseNorm(nn.LocalResponseNorm):
    """PyTorch's, in float32 at least: it squares, and in float16 the square of 256 is
    infinite, so that the output and its gradient would be 0."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return super().forward(x.to(wide)).to(x.dtype)


@MODELS.register_module()
class VGGCNNM1024(BaseModule):
    """VGG_CNN_M_1024 up to conv5: (N, 3, H, W) to a tuple of one (N, 512, H', W').

    From "Return of the Devil in the Details", Chatfield et al., BMVC 2014, as
    Fast R-CNN uses it; layers bear the names of its Caffe model. The 1024 is
    the width of fc7, which belongs to the head.

    Args:
        frozen_stages (int): convolutions that are not trained. 1, as in Fast
            R-CNN, is conv1. Use 0 where nothing pretrained is loaded.
        init_cfg (dict | list[dict], optional): with None the weights are
            random (Kaiming).
    """

    def __init__(
        self, frozen_stages: int = 1, init_cfg: dict | list[dict] | None = None
    ) -> None:
        _check_frozen_stages(frozen_stages, most=5)
        super().__init__(init_cfg=init_cfg or _FROM_SCRATCH)
        self.conv1 = nn.Conv2d(3, 96, kernel_size=7, stride=2)
        self.conv2 = nn.Conv2d(96, 256, kernel_size=5, stride=2, padding=1)
        self.conv3 = nn.Conv2d(256, 512, kernel_size=3, padding=1)
        self.conv4 = nn.Conv2d(512, 512, kernel_size=3, padding=1)
        self.conv5 = nn.Conv2d(512, 512, kernel_size=3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        # Both Caffe and PyTorch divide alpha by the size.
        self.norm = Float32LocalResponseNorm(size=5, alpha=0.0005, beta=0.75, k=2)
        self.pool = nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True)
        for i in range(1, frozen_stages + 1):
            getattr(self, f'conv{i}').requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        x = self.pool(self.norm(self.relu(self.conv1(x))))
        x = self.pool(self.norm(self.relu(self.conv2(x))))
        x = self.relu(self.conv3(x))
        x = self.relu(self.conv4(x))
        x = self.relu(self.conv5(x))
        return (x,)


@MODELS.register_module()
class VGGBBoxHead(BBoxHead):
    """BBoxHead behind two fully connected layers with ReLU and dropout.

    MMDetection's ConvFCBBoxHead has neither dropout nor layers of two widths.

    Args:
        in_channels (int): channels of the pooled features.
        roi_feat_size (int): P, bins along a side of the pooled features.
        fc_out_channels (tuple[int, int]): widths of fc6 and fc7, (4096, 4096)
            for VGG16 and (4096, 1024) for VGG_CNN_M_1024.
        dropout (float): probability after fc6 and after fc7.
        init_cfg (dict | list[dict], optional): comes after the defaults, so
            pretrained weights replace them. The defaults are BBoxHead's own
            Gaussians for fc_cls and fc_reg (0.01 and 0.001, the release's
            numbers too), and for fc6 and fc7 Xavier, as in MMDetection's
            Shared2FCBBoxHead.
        kwargs: the other arguments of BBoxHead.
    """

    def __init__(
        self,
        in_channels: int = 512,
        roi_feat_size: int = 7,
        fc_out_channels: tuple[int, int] = (4096, 4096),
        dropout: float = 0.5,
        init_cfg: dict | list[dict] | None = None,
        **kwargs,
    ) -> None:
        fc6_channels, fc7_channels = fc_out_channels
        # fc_cls and fc_reg see fc7's output, to BBoxHead a map of one cell.
        super().__init__(in_channels=fc7_channels, roi_feat_size=1, **kwargs)
        self.fc6 = nn.Linear(in_channels * roi_feat_size**2, fc6_channels)
        self.fc7 = nn.Linear(fc6_channels, fc7_channels)
        self.dropout = nn.Dropout(dropout)

        fc6_and_fc7 = [dict(name='fc6'), dict(name='fc7')]
        self.init_cfg.append(
            dict(type='Xavier', distribution='uniform', override=fc6_and_fc7)
        )
        if init_cfg is not None:
            self.init_cfg += [init_cfg] if isinstance(init_cfg, dict) else init_cfg

    @each_roi_alone
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and box deltas of pooled features x (R, C, P, P).

        Returns:
            tuple[Tensor, Tensor]: (R, classes + 1), background last, and
            (R, 4 * classes), or (R, 4) where boxes are class-agnostic.
        """
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        x = self.dropout(F.relu(self.fc7(x)))
        return super().forward(x)


@MODELS.register_module()
class ClasswiseVGGBBoxHead(VGGBBoxHead):
    """VGGBBoxHead whose box targets are normalised class by class, as in Fast R-CNN.

    Fast R-CNN subtracts from the box targets of a class their mean over the training
    set, and divides by their standard deviation. MMDetection's coder cannot do this,
    because it sees no labels when it encodes. So the head does it, with the means and
    deviations of what the coder gives. The coder's own numbers then cancel out.

    `mmdet_ohem.BoxTargetStatisticsHook` sets the statistics before training. Until then
    the means are 0 and the deviations 1, and the head computes what a VGGBBoxHead does.
    The same holds for a checkpoint without statistics, such as a converted detector.

    Attributes:
        target_means, target_stds: (classes, 4) float32, buffers, in every checkpoint.

    Raises:
        ValueError: when built, with ``reg_class_agnostic`` or ``reg_decoded_bbox``.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        for key in ('reg_class_agnostic', 'reg_decoded_bbox'):
            if getattr(self, key):
                raise ValueError(
                    'ClasswiseVGGBBoxHead has deltas for each class, so '
                    f'bbox_head.{key} must be False; use VGGBBoxHead.'
                )
        shape = (self.num_classes, self.bbox_coder.encode_size)
        self.register_buffer('target_means', torch.zeros(shape))
        self.register_buffer('target_stds', torch.ones(shape))

    @each_roi_alone
    def _get_targets_single(
        self,
        pos_priors: Tensor,
        neg_priors: Tensor,
        pos_gt_bboxes: Tensor,
        pos_gt_labels: Tensor,
        cfg: dict,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As BBoxHead's; foreground comes first in each of the four."""
        labels, label_weights, bbox_targets, bbox_weights = super()._get_targets_single(
            pos_priors, neg_priors, pos_gt_bboxes, pos_gt_labels, cfg
        )
        foreground = bbox_targets[: len(pos_gt_labels)]
        foreground -= self.target_means[pos_gt_labels]
        foreground /= self.target_stds[pos_gt_labels]
        return labels, label_weights, bbox_targets, bbox_weights

    def predict_by_feat(
        self,
        rois: tuple[Tensor],
        cls_scores: tuple[Tensor],
        bbox_preds: tuple[Tensor],
        *args,
        **kwargs,
    ) -> list:
        """As BBoxHead's, for the coder is given deltas as it made them."""
        means, stds = self.target_means.flatten(), self.target_stds.flatten()
        bbox_preds = [deltas * stds + means for deltas in bbox_preds]
        return super().predict_by_feat(rois, cls_scores, bbox_preds, *args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        """Weights without statistics predict the coder's own deltas."""
        for name, fill in (('target_means', 0.0), ('target_stds', 1.0)):
            plain = torch.full_like(getattr(self, name), fill)
            state_dict.setdefault(prefix + name, plain)
        super()._load_from_state_dict(state_dict, prefix, *args)
