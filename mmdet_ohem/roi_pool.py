"""RoI max pooling with Caffe's rounding, as Fast R-CNN has it.

N: images, C: channels, H x W: feature map, R: RoIs, K: RoIs that still differ
after rounding, P: bins along a side, B = K * P * P: bins, M: cells in all bins.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

from mmdet_ohem.registry import MODELS


def caffe_roi_pool(
    feats: Tensor, rois: Tensor, output_size: int, spatial_scale: float
) -> Tensor:
    """Takes the maximum of every bin of every RoI.

    The arithmetic is that of `roi_pooling_layer.cpp` in Fast R-CNN's Caffe: a
    RoI covers the cells round(x1 * scale) to round(x2 * scale), both included,
    and at least one; bin i of P starts at floor(i * size / P) and ends before
    ceil((i + 1) * size / P). Cells outside the map belong to no bin, and a bin
    without cells is 0.

    mmcv's RoIPool does not round the corners. Given rounded corners it still
    differs: its float32 bin edges cross an integer, for instance for 57 cells
    in 7 bins. Here the edges are integers, and the pooling itself is PyTorch's
    `embedding_bag`, which takes the maximum of arbitrary sets of rows on a CPU
    and on a GPU, 0 for an empty set, with the gradient going to the maximum.

    Args:
        feats (Tensor): (N, C, H, W), any floating-point dtype.
        rois (Tensor): (R, 5), index of the image in the batch and x1, y1, x2,
            y2 in pixels of the input image, finite. Float32 also under AMP:
            half precision cannot hold the coordinates.
        output_size (int): P.
        spatial_scale (float): cells per pixel, 1 / stride.

    Returns:
        Tensor: (R, C, P, P) in the dtype of `feats`.
    """
    channels, height, width = feats.shape[1:]
    corners = _round_half_away(rois[:, 1:].float() * spatial_scale)
    cells = torch.cat([rois[:, :1], corners], dim=1).long()
    # About a quarter of an image's proposals coincide once they are rounded.
    cells, inverse = cells.unique(dim=0, return_inverse=True)

    image, x1, y1, x2, y2 = cells.unbind(dim=1)
    left, bin_width = _bins(x1, x2, output_size, width)
    top, bin_height = _bins(y1, y2, output_size, height)
    first_cell = (image[:, None] * height + top)[:, :, None] * width + left[:, None, :]
    indices, offsets = _cells_of_bins(
        first_cell.flatten(),
        bin_height[:, :, None].expand_as(first_cell).flatten(),
        bin_width[:, None, :].expand_as(first_cell).flatten(),
        row_stride=width,
    )

    rows = feats.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled = F.embedding_bag(indices, rows, offsets, mode='max')
    pooled = pooled.view(-1, output_size, output_size, channels)
    return pooled.permute(0, 3, 1, 2).index_select(0, inverse)


def _round_half_away(x: Tensor) -> Tensor:
    """C's round(). torch.round goes to even, floor(x + 0.5) errs just below 0.5."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def _bins(
    start: Tensor, end: Tensor, num_bins: int, map_size: int
) -> tuple[Tensor, Tensor]:
    """First cell and number of cells, both (K, P), of the bins along one axis.

    `start` and `end` (K,) are the first and the last cell of the RoIs.
    """
    size = (end - start + 1).clamp(min=1)[:, None]
    i = torch.arange(num_bins, device=start.device)
    first = start[:, None] + i * size // num_bins
    # -(-a // b) is the ceiling of a / b
    stop = start[:, None] - (-(i + 1) * size // num_bins)
    first, stop = first.clamp(0, map_size), stop.clamp(0, map_size)
    return first, (stop - first).clamp(min=0)


def _cells_of_bins(
    first_cell: Tensor, bin_height: Tensor, bin_width: Tensor, row_stride: int
) -> tuple[Tensor, Tensor]:
    """Flat indices (M,) of the cells of all bins, and where (B,) each bin begins.

    The arguments are (B,), `first_cell` the flat index of a bin's upper left cell.
    """
    num_cells = bin_height * bin_width
    offsets = num_cells.cumsum(0) - num_cells
    bin_of_cell = torch.repeat_interleave(num_cells)
    nth = torch.arange(len(bin_of_cell), device=offsets.device) - offsets[bin_of_cell]
    cell_width = bin_width[bin_of_cell]
    row, column = nth // cell_width, nth % cell_width
    return first_cell[bin_of_cell] + row * row_stride + column, offsets


class CaffeRoIPool(nn.Module):
    """`caffe_roi_pool` in the form that MMDetection's RoI extractors hold."""

    def __init__(self, output_size: int, spatial_scale: float) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, feats: Tensor, rois: Tensor) -> Tensor:
        return caffe_roi_pool(feats, rois, self.output_size, self.spatial_scale)


@MODELS.register_module()
class RoIPoolExtractor(BaseRoIExtractor):
    """RoI extractor with Caffe's RoI pooling on a single feature map.

    MMDetection's SingleRoIExtractor cannot take a pooling layer from outside
    mmcv by its name, and casts the RoIs to half precision under AMP.

    Args:
        output_size (int): bins along a side, 7 for VGG16 and 6 for
            VGG_CNN_M_1024 in the release.
        out_channels (int): channels of the feature map.
        featmap_strides (Sequence[int]): pixels per cell, of one map.
    """

    def __init__(
        self,
        output_size: int = 7,
        out_channels: int = 512,
        featmap_strides: Sequence[int] = (16,),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if len(featmap_strides) != 1:
            raise ValueError(
                'featmap_strides of RoIPoolExtractor must hold one stride, got '
                f'{list(featmap_strides)}: for several feature maps use '
                "MMDetection's SingleRoIExtractor."
            )
        super().__init__(
            roi_layer=dict(type=CaffeRoIPool, output_size=output_size),
            out_channels=out_channels,
            featmap_strides=featmap_strides,
            init_cfg=init_cfg,
        )

    def forward(
        self,
        feats: tuple[Tensor],
        rois: Tensor,
        roi_scale_factor: float | None = None,
    ) -> Tensor:
        """Pools `rois` (R, 5) from the one map in `feats`: (R, C, P, P)."""
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        return self.roi_layers[0](feats[0], rois)
