"""The RoI network of Fast R-CNN: VGG's fc6 and fc7, then class scores and boxes."""

import torch.nn.functional as F
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from torch import Tensor, nn

from mmdet_ohem.registry import MODELS


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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and box deltas of pooled features x (R, C, P, P).

        Returns:
            tuple[Tensor, Tensor]: (R, classes + 1), background last, and
            (R, 4 * classes), or (R, 4) where boxes are class-agnostic.
        """
        x = self.dropout(F.relu(self.fc6(x.flatten(1))))
        x = self.dropout(F.relu(self.fc7(x)))
        return super().forward(x)
