"""RoI max pooling with Caffe's rounding, as Fast R-CNN has it.

N: images, C: channels, H x W: feature map, R: RoIs, K: RoIs that still differ
after rounding, P: bins along a side, B = K * P * P: bins, M: cells in all bins,
L: powers of two that a bin can hold along one axis.
"""

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from torch import Tensor, nn

from mmdet_ohem.mining import each_roi_alone
from mmdet_ohem.registry import MODELS

# RoIs that `WindowMaxima` looks up at once. On a CPU few stay in the cache: 6 MB for 64
# of VGG16. A GPU pays for every launch.
BLOCK = 64
BLOCK_ON_GPU = 1024


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
    come five times faster from `WindowMaxima`.

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
        pooled = _max_with_gradient(feats, cells, output_size)
        return pooled.index_select(0, inverse)
    return WindowMaxima(feats, cells, output_size).pool()


def _round(rois: Tensor, spatial_scale: float) -> Tensor:
    """(R, 5) int64, image, and first and last column and row of cells: RoIs of equal
    rows have equal features."""
    corners = _round_half_away(rois[:, 1:].float() * spatial_scale)
    return torch.cat([rois[:, :1], corners], dim=1).long()


def _round_half_away(x: Tensor) -> Tensor:
    """C's round(). torch.round goes to even, floor(x + 0.5) errs just below 0.5."""
    whole = x.trunc()
    return whole + x.sign() * ((x - whole).abs() >= 0.5)


class Bins(NamedTuple):
    """The bins of K RoIs along both axes, columns before rows.

    Args:
        image: (K,) int64, in the batch.
        first: (K, 2, P) int64, the first cell of each bin.
        count: (K, 2, P) int64, its cells.
        limit: (2, 1) int64, width and height of the map.
    """

    image: Tensor
    first: Tensor
    count: Tensor
    limit: Tensor


def _bins(cells: Tensor, num_bins: int, height: int, width: int) -> Bins:
    """The P bins along each axis of RoIs (K, 5), from `_round`, in a map's cells."""
    image, start, end = cells[:, 0], cells[:, 1:3, None], cells[:, 3:, None]
    # Filled in on the device: no number comes from the host.
    limit = cells.new_full((2, 1), width)
    limit[1].fill_(height)
    size = (end - start + 1).clamp(min=1)
    i = torch.arange(num_bins, device=cells.device)
    first = start + i * size // num_bins
    # -(-a // b) is the ceiling of a / b
    stop = start - (-(i + 1) * size // num_bins)
    first, stop = (edge.clamp(min=0).minimum(limit) for edge in (first, stop))
    return Bins(image, first, (stop - first).clamp(min=0), limit)


def _max_with_gradient(feats: Tensor, cells: Tensor, num_bins: int) -> Tensor:
    """The maximum of every bin of RoIs (K, 5): (K, C, P, P), 0 of no cells."""
    channels, height, width = feats.shape[1:]
    bins = _bins(cells, num_bins, height, width)
    left, top = bins.first.unbind(dim=1)
    bin_width, bin_height = bins.count.unbind(dim=1)
    image_and_row = bins.image[:, None] * height + top
    first_cell = image_and_row[:, :, None] * width + left[:, None, :]
    indices, offsets = _cells_of_bins(
        first_cell.flatten(),
        bin_height[:, :, None].expand_as(first_cell).flatten(),
        bin_width[:, None, :].expand_as(first_cell).flatten(),
        row_stride=width,
    )
    rows = feats.permute(0, 2, 3, 1).reshape(-1, channels)
    if feats.dtype in (torch.float16, torch.bfloat16):
        # On CUDA the gradient of bfloat16 is missing in older PyTorch, and the sums of
        # float16 would round at every RoI.
        rows = rows.float()
    pooled = F.embedding_bag(indices, rows, offsets, mode='max').to(feats.dtype)
    return pooled.view(len(cells), num_bins, num_bins, channels).permute(0, 3, 1, 2)


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


class WindowMaxima:
    """Maxima of a feature map over windows, from which those of any bin follow.

    It holds, for every cell, the maximum over the 2^i x 2^j cells that begin there (a
    sparse table, which answers range-maximum queries). A bin is the union of four such
    windows in its corners, which may overlap: to a maximum they may.

    Args:
        feats (Tensor): (N, C, H, W), any floating-point dtype.
        cells (Tensor): (K, 5), all RoIs that will be asked for, from `_round`.
        num_bins (int): P.
    """

    def __init__(self, feats: Tensor, cells: Tensor, num_bins: int) -> None:
        num_images, _, height, width = feats.shape
        bins = _bins(cells, num_bins, height, width)
        self.num_bins = num_bins
        log = _floor_log2(bins.count)
        num_widths = num_heights = 1
        if len(cells) > 0:
            # The only copy to the host.
            num_widths, num_heights = (log.amax(dim=(0, 2)) + 1).tolist()
        maps = feats.detach().permute(0, 2, 3, 1)
        self.table = _window_maxima(maps, num_heights, num_widths)

        window = log[:, 1, :, None] * num_widths + log[:, 0, None, :]
        map_start = window * num_images + bins.image[:, None, None]
        # Of the windows that cover a bin some start with it, the others end with it.
        last = bins.first + bins.count - 2**log
        ends = torch.stack([bins.first, last]).minimum(bins.limit - 1).clamp(min=0)
        columns, rows = ends.unbind(dim=2)
        row_start = (map_start * height + rows[..., None]) * width
        corners = (row_start[:, None] + columns[None, :, :, None, :]).flatten(0, 1)
        is_empty = bins.count == 0
        is_empty = is_empty[:, 1, :, None] | is_empty[:, 0, None, :]
        # (4, K, P * P), rows of the table; bins without cells have the last one.
        self.corners = corners.masked_fill(is_empty, len(self.table) - 1).flatten(2)

    def rounded(self, dtype: torch.dtype) -> 'WindowMaxima':
        """The maxima of the map in a lower precision: rounding keeps the order."""
        maxima = copy(self)
        maxima.table = self.table.to(dtype)
        return maxima

    def pool(self, which: Tensor | None = None) -> Tensor:
        """The maximum of every bin, 0 where it has no cells.

        Args:
            which (Tensor, optional): (n,) int64, which of the K RoIs; all if left out.

        Returns:
            Tensor: (n, C, P, P) in the dtype of the map.
        """
        corners = self.corners if which is None else self.corners[:, which]
        num_rois, num_channels = corners.shape[1], self.table.shape[1]
        pooled = self.table.new_empty(num_rois, num_channels, self.num_bins**2)
        block = BLOCK if pooled.device.type == 'cpu' else BLOCK_ON_GPU
        for begin in range(0, num_rois, block):
            some = slice(begin, begin + block)
            first, *others = corners[:, some].flatten(1)
            maxima = self.table.index_select(0, first)
            for other in others:
                torch.maximum(maxima, self.table.index_select(0, other), out=maxima)
            pooled[some] = maxima.unflatten(0, (-1, self.num_bins**2)).transpose(1, 2)
        return pooled.unflatten(2, (self.num_bins, self.num_bins))


def _floor_log2(count: Tensor) -> Tensor:
    """floor(log2(count)) of whole numbers, 0 of 0."""
    return torch.frexp(count.clamp(min=1).float()).exponent.long() - 1


def _window_maxima(cells: Tensor, num_heights: int, num_widths: int) -> Tensor:
    """Maxima of cells (N, H, W, C) over the window of 2^i x 2^j cells that begins at
    each: (L * L * N * H * W + 1, C) for i below `num_heights` and j below `num_widths`.

    Where a window leaves the map the value means nothing, and no bin asks for it. The
    last row is 0.
    """
    num_rows = num_heights * num_widths * cells[..., 0].numel()
    rows = cells.new_empty(num_rows + 1, cells.shape[-1])
    rows[-1].fill_(0)
    table = rows[:-1].view(num_heights, num_widths, *cells.shape)
    table[0, 0] = cells
    for j in range(1, num_widths):
        _double(table[0, j - 1], table[0, j], axis=2, step=2 ** (j - 1))
    for i in range(1, num_heights):
        _double(table[i - 1], table[i], axis=2, step=2 ** (i - 1))
    return rows


def _double(half: Tensor, whole: Tensor, axis: int, step: int) -> None:
    """Fill in the maxima over windows of twice the size along an axis, where they lie
    inside the map."""
    inside = half.shape[axis] - step
    first, second = half.narrow(axis, 0, inside), half.narrow(axis, step, inside)
    torch.maximum(first, second, out=whole.narrow(axis, 0, inside))


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

    @each_roi_alone
    def forward(
        self,
        feats: tuple[Tensor] | tuple[WindowMaxima],
        rois: Tensor,
        roi_scale_factor: float | None = None,
    ) -> Tensor:
        """Pools `rois` (R, 5) from the one map in `feats`: (R, C, P, P). With what
        `tabulate` made of the map, ``rois`` are the places (R,) among its RoIs."""
        if isinstance(feats[0], WindowMaxima):
            return feats[0].pool(rois)
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

    def tabulate(self, feats: Tensor, rois: Tensor) -> WindowMaxima:
        """What `forward` takes in place of the map (N, C, H, W), without gradient, for
        RoIs (K, 5) that come in several calls."""
        pool = self.roi_layers[0]
        return WindowMaxima(feats, _round(rois, pool.spatial_scale), pool.output_size)
