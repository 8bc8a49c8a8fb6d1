"""RoI max pooling with Caffe's rounding, as Fast R-CNN has it.

N: images, C: channels, H x W: feature map, R: RoIs, K: RoIs that still differ
after rounding, P: bins along a side, B = K * P * P: bins, M: cells in all bins,
L: powers of two that a bin can hold along one axis.
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
    Without a gradient, as in the read-only pass over all RoIs, the same maxima
    come five times faster from `_max_of_bins`.

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
    cells = _round(rois, spatial_scale)
    if torch.is_grad_enabled() and feats.requires_grad:
        # Coinciding RoIs once: the gradient of the pooling is its larger part.
        cells, inverse = cells.unique(dim=0, return_inverse=True)
        pooled = _max_with_gradient(feats, *_bins(cells, output_size, feats))
        pooled = pooled.index_select(0, inverse)
    else:
        pooled = _max_of_bins(feats, *_bins(cells, output_size, feats))
    return pooled.unflatten(2, (output_size, output_size))


def _round(rois: Tensor, spatial_scale: float) -> Tensor:
    """(R, 5) int64, image, and first and last column and row of cells: RoIs of equal
    rows have equal features."""
    corners = _round_half_away(rois[:, 1:].float() * spatial_scale)
    return torch.cat([rois[:, :1], corners], dim=1).long()


def _round_half_away(x: Tensor) -> Tensor:
    """C's round(). torch.round goes to even, floor(x + 0.5) errs just below 0.5."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


def _bins(cells: Tensor, num_bins: int, feats: Tensor) -> tuple[Tensor, ...]:
    """The image (K,) of RoIs (K, 5) in cells, and the bins along both axes of its
    feature map, each (K, P): first column, columns, first row, rows."""
    height, width = feats.shape[2:]
    image, x1, y1, x2, y2 = cells.unbind(dim=1)
    return (
        image,
        *_bins_along(x1, x2, num_bins, width),
        *_bins_along(y1, y2, num_bins, height),
    )


def _bins_along(
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


def _max_with_gradient(
    feats: Tensor,
    image: Tensor,
    left: Tensor,
    bin_width: Tensor,
    top: Tensor,
    bin_height: Tensor,
) -> Tensor:
    """The maximum of every bin, 0 where it has no cells: (K, C, P * P).

    `image` is (K,), the other four are (K, P), from `_bins`.
    """
    channels, height, width = feats.shape[1:]
    first_cell = (image[:, None] * height + top)[:, :, None] * width + left[:, None, :]
    indices, offsets = _cells_of_bins(
        first_cell.flatten(),
        bin_height[:, :, None].expand_as(first_cell).flatten(),
        bin_width[:, None, :].expand_as(first_cell).flatten(),
        row_stride=width,
    )
    rows = feats.permute(0, 2, 3, 1).reshape(-1, channels)
    pooled = F.embedding_bag(indices, rows, offsets, mode='max')
    return pooled.view(len(image), left.shape[1] ** 2, channels).transpose(1, 2)


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


def _max_of_bins(
    feats: Tensor,
    image: Tensor,
    left: Tensor,
    bin_width: Tensor,
    top: Tensor,
    bin_height: Tensor,
) -> Tensor:
    """As `_max_with_gradient`, by four lookups a bin.

    A table holds, for every cell, the maximum over the 2^i x 2^j cells that begin
    there (a sparse table, which answers range-maximum queries). A bin is the union of
    four such windows in its corners, which may overlap: to a maximum they may.
    """
    channels, height, width = feats.shape[1:]
    num_rois, num_bins = left.shape
    if num_rois == 0:
        return feats.new_zeros(0, channels, num_bins**2)
    log_width, log_height = _floor_log2(bin_width), _floor_log2(bin_height)
    widths, heights = int(log_width.max()) + 1, int(log_height.max()) + 1
    table = _window_maxima(feats.detach().permute(0, 2, 3, 1), heights, widths)

    window = log_height[:, :, None] * widths + log_width[:, None, :]
    map_start = (window * len(feats) + image[:, None, None]) * (height * width)
    corners = [
        (map_start + row[:, :, None] * width + column[:, None, :]).flatten(1)
        for row in _ends(top, bin_height, log_height, height)
        for column in _ends(left, bin_width, log_width, width)
    ]
    empty = (bin_height == 0)[:, :, None] | (bin_width == 0)[:, None, :]

    pooled = feats.new_empty(num_rois, channels, num_bins**2)
    # Few RoIs at a time stay in the cache: 6 MB for 64 of VGG16.
    for start in range(0, num_rois, 64):
        some = slice(start, start + 64)
        first, *others = (corner[some].flatten() for corner in corners)
        maxima = table.index_select(0, first)
        for other in others:
            torch.maximum(maxima, table.index_select(0, other), out=maxima)
        maxima[empty[some].flatten()] = 0
        pooled[some] = maxima.unflatten(0, (-1, num_bins**2)).transpose(1, 2)
    return pooled


def _floor_log2(count: Tensor) -> Tensor:
    """floor(log2(count)) of whole numbers, 0 of 0."""
    return torch.frexp(count.clamp(min=1).float()).exponent.long() - 1


def _window_maxima(cells: Tensor, heights: int, widths: int) -> Tensor:
    """Maxima of cells (N, H, W, C) over the window of 2^i x 2^j cells that begins at
    each: (L * L * N * H * W, C) for i below `heights` and j below `widths`.

    Where a window leaves the map the value means nothing, and no bin asks for it.
    """
    table = cells.new_empty(heights, widths, *cells.shape)
    table[0, 0] = cells
    for i in range(heights):
        for j in range(widths):
            if i > 0:
                half, step, axis = table[i - 1, j], 2 ** (i - 1), 1
            elif j > 0:
                half, step, axis = table[i, j - 1], 2 ** (j - 1), 2
            else:
                continue
            inside = half.shape[axis] - step
            table[i, j] = half
            torch.maximum(
                half.narrow(axis, 0, inside),
                half.narrow(axis, step, inside),
                out=table[i, j].narrow(axis, 0, inside),
            )
    return table.flatten(0, -2)


def _ends(first: Tensor, count: Tensor, log: Tensor, map_size: int) -> list[Tensor]:
    """Where the windows of 2^log cells begin that cover `count` cells from `first`, of
    which the one starts, the other ends with them."""
    last = first + count - 2**log
    return [start.clamp(0, map_size - 1) for start in (first, last)]


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

    def distinct(self, rois: Tensor) -> tuple[Tensor, Tensor]:
        """RoIs (K, 5) whose features differ, and (R,) int64, which of them has the
        features of each of `rois` (R, 5).

        The release makes use of it at test time: of an image's proposals about a
        quarter coincide on the grid of stride 16.
        """
        rounded = _round(rois, self.roi_layers[0].spatial_scale)
        distinct, inverse = rounded.unique(dim=0, return_inverse=True)
        first = inverse.new_full((len(distinct),), len(rois)).scatter_reduce(
            0, inverse, torch.arange(len(rois), device=rois.device), 'amin'
        )
        return rois[first], inverse
