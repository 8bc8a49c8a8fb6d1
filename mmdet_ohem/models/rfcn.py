"""R-FCN (Dai, Li, He and Sun, NIPS 2016): score maps for each bin of a RoI, their
pooling, and the vote of the bins.

All convolutions run once for an image. What is done for each RoI, pooling and a mean,
has no weights, so ranking all RoIs for hard example mining costs next to nothing.

Shapes:
    N: images, H x W: cells of the score maps
    k: bins along a side of a RoI
    D: numbers that a bin votes on, classes + 1 scores and 4 box deltas
    R: RoIs of all images
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ohem.mining import each_roi_alone
from mmdet_ohem.registry import MODELS


def ps_roi_align(
    maps: Tensor,
    rois: Tensor,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int = 0,
) -> Tensor:
    """Position-sensitive RoIAlign: each bin of a RoI is pooled from maps of its own.

    This is mmcv's `roi_align` with the maps of one bin as one image of the batch, and
    each bin as a RoI of one cell.

    The paper and its code take the mean of whole cells instead
    (psroi_pooling_layer.cu): a RoI is rounded to pixels, x2 and y2 included, a bin
    covers the cells floor(start) to ceil(end), so neighbouring bins share cells, and
    cell i lies at i to i + 1. Here nothing is rounded, values are interpolated between
    the centres of the cells, at i + 0.5, and bins share nothing.

    Args:
        maps (Tensor): (N, k * k * D, H, W). The D maps of the bin at the top left come
            first, then those of the bins beside it, row by row. (The Caffe code has the
            k * k maps of a class together.)
        rois (Tensor): (R, 5), index of the image in the batch and x1, y1, x2, y2 in
            pixels of the input image.
        output_size (int): k.
        spatial_scale (float): cells per pixel, 1 / stride.
        sampling_ratio (int): points along a side of a bin whose mean is taken. 0: as
            many as the bin has cells, rounded up.

    Returns:
        Tensor: (R, D, k, k), in float32 for half precision, else in the dtype of maps.
    """
    if maps.dtype in (torch.float16, torch.bfloat16):
        maps = maps.float()  # coordinates and means need more; mmcv has no bfloat16
    k = output_size
    groups = maps.unflatten(1, (k * k, -1)).flatten(0, 1)  # (N * k * k, D, H, W)
    pooled = roi_align(
        groups.contiguous(),
        _bins_as_rois(rois.to(maps.dtype), k),
        1,
        spatial_scale,
        sampling_ratio,
        'avg',
        True,
    )
    return pooled.view(len(rois), k, k, groups.shape[1]).permute(0, 3, 1, 2)


def _bins_as_rois(rois: Tensor, k: int) -> Tensor:
    """(R * k * k, 5), the bins of RoIs (R, 5), each with the index of its group."""
    image, left, top, right, bottom = rois.T[:, :, None, None]  # each (R, 1, 1)
    edges = torch.arange(k + 1, device=rois.device, dtype=rois.dtype) / k
    x = left + (right - left) * edges  # (R, 1, k + 1)
    y = top + (bottom - top) * edges[:, None]  # (R, k + 1, 1)
    group = image * k * k + torch.arange(k * k, device=rois.device).view(k, k)
    bins = torch.broadcast_tensors(group, x[..., :-1], y[:, :-1], x[..., 1:], y[:, 1:])
    return torch.stack(bins, dim=-1).view(-1, 5)


class PSRoIAlign(nn.Module):
    """`ps_roi_align` in the form that MMDetection's RoI extractors hold."""

    def __init__(
        self, output_size: int, spatial_scale: float, sampling_ratio: int
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, maps: Tensor, rois: Tensor) -> Tensor:
        return ps_roi_align(
            maps, rois, self.output_size, self.spatial_scale, self.sampling_ratio
        )


@MODELS.register_module()
class PSRoIAlignExtractor(BaseRoIExtractor):
    """RoI extractor with position-sensitive RoIAlign on the score maps.

    Args:
        output_size (int): k, 7 in the paper.
        featmap_strides (Sequence[int]): pixels per cell of the score maps, one number.
        sampling_ratio (int): see `ps_roi_align`.
    """

    def __init__(
        self,
        output_size: int = 7,
        featmap_strides: Sequence[int] = (16,),
        sampling_ratio: int = 0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if len(featmap_strides) != 1:
            raise ValueError(
                'roi_head.bbox_roi_extractor.featmap_strides must hold one stride, '
                f'that of the score maps, got {list(featmap_strides)}: R-FCN has no '
                'feature pyramid.'
            )
        super().__init__(
            roi_layer=dict(
                type=PSRoIAlign, output_size=output_size, sampling_ratio=sampling_ratio
            ),
            out_channels=None,  # D, which comes with the maps
            featmap_strides=featmap_strides,
            init_cfg=init_cfg,
        )
        self.output_size = output_size

    @each_roi_alone
    def forward(
        self,
        feats: tuple[Tensor],
        rois: Tensor,
        roi_scale_factor: float | None = None,
    ) -> Tensor:
        """Pools `rois` (R, 5) from the one map in `feats`: (R, D, k, k)."""
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        return self.roi_layers[0](feats[0], rois)


@MODELS.register_module()
class RFCNBBoxHead(BBoxHead):
    """BBoxHead without weights: scores and box deltas are the mean over the bins.

    Args:
        reg_class_agnostic (bool): True, one box for all classes as in the paper.
        kwargs: the other arguments of BBoxHead; those of its layers have no effect.
    """

    def __init__(self, reg_class_agnostic: bool = True, **kwargs) -> None:
        if not reg_class_agnostic:
            raise ValueError(
                'roi_head.bbox_head.reg_class_agnostic=False asks for a box of each '
                'class, but RFCNBBoxHead has one box for all classes, as in the R-FCN '
                'paper; set it to True.'
            )
        super().__init__(reg_class_agnostic=True, **kwargs)
        # Classes and background; some losses want more.
        self.num_scores = self.fc_cls.out_features
        del self.fc_cls, self.fc_reg
        self.init_cfg = None

    @each_roi_alone
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (R, classes + 1), background last, and box deltas (R, 4) of pooled
        maps x (R, D, k, k)."""
        votes = x.mean(dim=(2, 3))
        return votes[:, : self.num_scores], votes[:, self.num_scores :]


@MODELS.register_module()
class RFCNRoIHead(StandardRoIHead):
    """StandardRoIHead on score maps, which it makes from the feature map of the RPN.

    The maps are made once for a batch. What the sampler is given, and what
    `_bbox_forward` takes, are the maps.

    Args:
        in_channels (int): channels before the 1 x 1 convolution, 2048 of ResNet-50's
            and ResNet-101's conv5.
        feat_channels (int): channels of the 1 x 1 convolution, 1024 in the paper.
        conv5 (dict, optional): layers between the feature map of the RPN and the 1 x 1
            convolution, such as MMDetection's ResLayer with a stride of 1 and a
            dilation of 2. None: there are none.
        init_cfg (dict | list[dict], optional): with None the new convolutions have the
            release's Gaussians (0.01) and biases of 0.
        kwargs: the other arguments of StandardRoIHead: ``bbox_roi_extractor``, a
            PSRoIAlignExtractor, ``bbox_head``, an RFCNBBoxHead, and so on.

    Raises:
        TypeError: the extractor or the bbox head is of another kind.
    """

    def __init__(
        self,
        in_channels: int,
        feat_channels: int = 1024,
        conv5: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
        **kwargs,
    ) -> None:
        new_layers = [dict(name=f'{name}_conv') for name in ('new', 'cls', 'reg')]
        super().__init__(
            init_cfg=init_cfg or dict(type='Normal', std=0.01, override=new_layers),
            **kwargs,
        )
        for key, cls in (
            ('bbox_roi_extractor', PSRoIAlignExtractor),
            ('bbox_head', RFCNBBoxHead),
        ):
            part = getattr(self, key)
            if not isinstance(part, cls):
                raise TypeError(
                    f'roi_head.{key} is a {type(part).__name__}, but RFCNRoIHead works '
                    f'on score maps; set its type to mmdet_ohem.{cls.__name__}.'
                )
        num_bins = self.bbox_roi_extractor.output_size**2
        box_numbers = self.bbox_head.bbox_coder.encode_size
        self.conv5 = None if conv5 is None else MODELS.build(conv5)
        self.new_conv = nn.Conv2d(in_channels, feat_channels, 1)
        self.cls_conv = nn.Conv2d(
            feat_channels, num_bins * self.bbox_head.num_scores, 1
        )
        self.reg_conv = nn.Conv2d(feat_channels, num_bins * box_numbers, 1)

    def loss(
        self,
        x: tuple[Tensor],
        rpn_results_list: list[InstanceData],
        batch_data_samples: list[DetDataSample],
    ) -> dict[str, Tensor]:
        """As `StandardRoIHead.loss`; x is the one feature map of the RPN."""
        maps = self.score_maps(x, batch_data_samples[0].metainfo)
        return super().loss(maps, rpn_results_list, batch_data_samples)

    def predict_bbox(
        self,
        x: tuple[Tensor],
        batch_img_metas: list[dict],
        rpn_results_list: list[InstanceData],
        rcnn_test_cfg: ConfigDict,
        rescale: bool = False,
    ) -> list[InstanceData]:
        """As `StandardRoIHead.predict_bbox`; x is the one feature map of the RPN."""
        maps = self.score_maps(x, batch_img_metas[0])
        return super().predict_bbox(
            maps, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale
        )

    def forward(
        self,
        x: tuple[Tensor],
        rpn_results_list: list[InstanceData],
        batch_data_samples: list[DetDataSample] | None = None,
    ) -> tuple:
        """As `StandardRoIHead.forward`; x is the one feature map of the RPN."""
        maps = self.score_maps(x, {})
        return super().forward(maps, rpn_results_list, batch_data_samples)

    def score_maps(self, x: tuple[Tensor], img_meta: dict) -> tuple[Tensor]:
        """The maps (N, k * k * D, H, W) of `ps_roi_align`, scores before box deltas.

        Args:
            x: one feature map.
            img_meta: ``batch_input_shape``, height and width of the network's input in
                pixels, by which the stride is checked where it is there.

        Raises:
            ValueError: there are several feature maps, the stride is not that of the
                extractor, or the maps have fewer cells than a RoI has bins.
        """
        if len(x) != 1:
            raise ValueError(
                f'RFCNRoIHead takes one feature map, got {len(x)}: let the backbone '
                'have one of out_indices, and leave out the neck.'
            )
        feat = x[0] if self.conv5 is None else self.conv5(x[0])
        feat = F.relu(self.new_conv(feat))
        num_bins = self.bbox_roi_extractor.output_size**2
        by_bin = [
            conv(feat).unflatten(1, (num_bins, -1))
            for conv in (self.cls_conv, self.reg_conv)
        ]
        maps = torch.cat(by_bin, dim=2).flatten(1, 2)
        self._check_cells(maps.shape[2:], img_meta.get('batch_input_shape'))
        return (maps,)

    def _check_cells(
        self, cells: tuple[int, int], input_shape: tuple[int, int] | None
    ) -> None:
        k = self.bbox_roi_extractor.output_size
        (stride,) = self.bbox_roi_extractor.featmap_strides
        found = f'{cells[0]} x {cells[1]} cells'
        if input_shape is not None:
            height, width = input_shape
            found += f' for an input of {height} x {width} pixels'
            # Padding, or none, moves the size by a cell.
            if any(
                abs(count * stride - size) >= 2 * stride
                for count, size in zip(cells, input_shape, strict=True)
            ):
                raise ValueError(
                    f'The score maps have {found}, which is no stride of {stride}; set '
                    'roi_head.bbox_roi_extractor.featmap_strides to the stride of '
                    'roi_head.conv5, or give conv5 stride=1 and dilation=2.'
                )
        if min(cells) < k:
            raise ValueError(
                f'The score maps have {found}, but a RoI has {k} x {k} bins; take '
                'larger images (scale of Resize) or a smaller '
                'roi_head.bbox_roi_extractor.output_size.'
            )
