"""caffe_roi_pool against Caffe's loop, written out in plain Python."""

import math

import pytest
import torch
from mmdet.registry import MODELS

from mmdet_ohem.models.roi_pool import RoIPoolExtractor, caffe_roi_pool


def c_round(x):
    return int(math.copysign(math.floor(abs(x) + 0.5), x))


def pool_by_loops(feats, rois, output_size, spatial_scale):
    """roi_pooling_layer.cpp, with the bin edges as exact integer fractions."""
    _, channels, height, width = feats.shape
    pooled = feats.new_zeros(len(rois), channels, output_size, output_size)
    for r, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (c_round(corner * spatial_scale) for corner in corners)
        roi_height, roi_width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i in range(output_size):
            for j in range(output_size):
                cells = [
                    feats[int(image), :, y, x]
                    for y in range(
                        y1 + math.floor(i * roi_height / output_size),
                        y1 + math.ceil((i + 1) * roi_height / output_size),
                    )
                    for x in range(
                        x1 + math.floor(j * roi_width / output_size),
                        x1 + math.ceil((j + 1) * roi_width / output_size),
                    )
                    if 0 <= y < height and 0 <= x < width
                ]
                if cells:
                    pooled[r, :, i, j] = torch.stack(cells).amax(dim=0)
    return pooled


def random_rois(generator, num, num_images):
    """Boxes around a 300 x 200 image, many of them partly or wholly outside.

    Their corners are multiples of 4, so that a quarter falls half-way between
    two cells of 8 or 16 pixels; some boxes are reversed.
    """
    corners = torch.randint(-30, 100, (num, 4), generator=generator) * 4.0
    images = torch.randint(0, num_images, (num, 1), generator=generator)
    return torch.cat([images.float(), corners], dim=1)


@pytest.mark.parametrize('output_size', [1, 2, 6, 7])
@pytest.mark.parametrize('stride', [2, 8, 16])
@pytest.mark.parametrize('with_gradient', [True, False])
def test_equals_plain_loops(output_size, stride, with_gradient):
    seed = 10 * output_size + stride
    print('seed', seed)
    generator = torch.Generator().manual_seed(seed)
    # All below 0: a bin without cells must be 0 and not the largest value.
    feats = -torch.rand(2, 3, 200 // stride, 300 // stride, generator=generator)
    rois = random_rois(generator, 60, num_images=2)
    feats.requires_grad_(with_gradient)
    pooled = caffe_roi_pool(feats, rois, output_size, 1 / stride)
    assert pooled.requires_grad == with_gradient
    expected = pool_by_loops(feats.detach(), rois, output_size, 1 / stride)
    assert (expected == 0).any() and (expected < 0).any()
    assert torch.equal(pooled, expected)


def test_corners_round_half_away_from_zero():
    # One row of cells that hold their own index; each RoI is one column wide.
    feats = torch.arange(5.0).view(1, 1, 1, 5)
    just_below_half = 0.49999997  # plus 0.5 it is 1 in float32
    x = torch.tensor([0.5, 1.5, 2.5, just_below_half])
    rois = torch.stack([0 * x, x, 0 * x, x, 0 * x], dim=1)
    pooled = caffe_roi_pool(feats, rois, output_size=1, spatial_scale=1.0)
    assert pooled.flatten().tolist() == [1, 2, 3, 0]
    # -0.5 becomes -1: of the cells -1 and 0 the first is outside, so 0 in bin 0
    rois = torch.tensor([[0, -0.5, 0, 0, 0]])
    pooled = caffe_roi_pool(feats + 1, rois, output_size=2, spatial_scale=1.0)
    assert pooled[0, 0, 0].tolist() == [0, 1]


@pytest.mark.parametrize('with_gradient', [True, False])
def test_bin_edges_of_every_width(with_gradient):
    """Widths 1 to 160. In float32 some edges would cross an integer: 57 / 7 * 7.

    Each cell holds its place, 1 to 160, so that the maximum names the last cell
    of a bin, and the maximum of the negated map the first.
    """
    feats = torch.arange(160.0).view(1, 1, 1, 160) + 1
    feats.requires_grad_(with_gradient)
    for output_size in (6, 7):
        start, size = torch.meshgrid(
            torch.arange(-20, 20), torch.arange(1, 161), indexing='ij'
        )
        start, size = start.flatten(), size.flatten()
        zero = 0 * start
        rois = torch.stack([zero, start, zero, start + size - 1, zero], 1).float()
        last = caffe_roi_pool(feats, rois, output_size, 1.0)[:, 0, 0].long()
        first = -caffe_roi_pool(-feats, rois, output_size, 1.0)[:, 0, 0].long()
        for i in range(output_size):
            begin = start + torch.div(i * size, output_size, rounding_mode='floor')
            end = start + ((i + 1) * size + output_size - 1) // output_size
            begin, end = begin.clamp(0, 160), end.clamp(0, 160)
            empty = begin >= end
            assert torch.equal(first[:, i], torch.where(empty, 0, begin + 1))
            assert torch.equal(last[:, i], torch.where(empty, 0, end))


def test_gradient():
    generator = torch.Generator().manual_seed(0)
    # No two values closer than gradcheck's step, or the maximum changes place.
    values = torch.randperm(2 * 2 * 6 * 7, generator=generator).double() / 10
    feats = values.view(2, 2, 6, 7).requires_grad_()
    rois = random_rois(generator, 12, num_images=2)

    def pool(feats):
        return caffe_roi_pool(feats, rois, output_size=3, spatial_scale=1 / 32)

    assert torch.autograd.gradcheck(pool, feats)


def test_gradients_of_coinciding_rois_add_up():
    feats = torch.arange(16.0).view(1, 1, 4, 4).requires_grad_()
    # Three RoIs that all round to the cells 0 to 3, and one of the cell 0.
    rois = torch.tensor(
        [[0, 0, 0, 48, 48], [0, 3, 2, 50, 44], [0, 0, 0, 7, 7], [0, -7, 7, 55, 41]]
    ).float()
    pooled = caffe_roi_pool(feats, rois, output_size=1, spatial_scale=1 / 16)
    weights = torch.tensor([1.0, 10.0, 1000.0, 100.0])
    (pooled.flatten() * weights).sum().backward()
    expected = torch.zeros(4, 4)
    expected[3, 3] = 111
    expected[0, 0] = 1000
    assert torch.equal(feats.grad[0, 0], expected)


def test_no_rois_keeps_the_graph():
    feats = torch.rand(1, 3, 4, 4, requires_grad=True)
    pooled = caffe_roi_pool(feats, torch.zeros(0, 5), 7, 1 / 16)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert torch.equal(feats.grad, torch.zeros_like(feats))


def test_only_rois_outside_the_map():
    feats = torch.rand(1, 3, 4, 4, requires_grad=True)
    rois = torch.tensor([[0, 500.0, 500, 600, 600], [0, -90, -90, -20, -20]])
    pooled = caffe_roi_pool(feats, rois, 7, 1 / 16)
    assert torch.equal(pooled, torch.zeros(2, 3, 7, 7))
    pooled.sum().backward()
    assert torch.equal(feats.grad, torch.zeros_like(feats))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_features_do_not_round_the_corners(dtype):
    feats = torch.rand(1, 2, 38, 63).to(dtype).requires_grad_()
    # bfloat16 would turn 999 into 1000, which rounds to another cell.
    rois = torch.tensor([[0, 791.0, 407.0, 999.0, 599.0]])
    with torch.autocast('cpu', torch.bfloat16):
        pooled = RoIPoolExtractor(7, 2)((feats,), rois)
    assert pooled.dtype == dtype
    expected = pool_by_loops(feats.detach().float(), rois, 7, 1 / 16)
    assert torch.equal(pooled.float(), expected)
    pooled.sum().backward()
    assert feats.grad.sum() == pooled.numel()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_the_gradient_of_half_precision_is_summed_in_float32(dtype):
    """On CUDA the gradient of `embedding_bag` may lack bfloat16."""
    feats = torch.zeros(1, 1, 2, 2).to(dtype).requires_grad_()
    # RoIs that differ, all with their maximum in the only cell of the map above 0.
    corners = torch.tensor([[0, 0, x, y] for x in range(40) for y in range(40)]) * 16.0
    rois = torch.cat([torch.zeros(len(corners), 1), corners], dim=1)
    with torch.no_grad():
        feats[0, 0, 0, 0] = 1
    pooled = caffe_roi_pool(feats, rois, output_size=1, spatial_scale=1 / 16)
    assert pooled.dtype == dtype and (pooled == 1).all()
    pooled.sum(dtype=torch.float32).backward()
    # Ones added up in bfloat16 would end at 256.
    assert feats.grad.flatten().tolist() == [1600, 0, 0, 0]


def test_the_maxima_of_an_image_serve_several_calls():
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(1, 3, 12, 18, generator=generator)
    rois = random_rois(generator, 200, num_images=1)
    extractor = RoIPoolExtractor(output_size=7, out_channels=3)
    expected = extractor((feats,), rois)
    assert (expected == 0).any(), 'bins without cells'
    maxima = extractor.tabulate(feats, rois)
    for which in (torch.arange(200), torch.tensor([7, 3, 3, 199]), torch.arange(0)):
        assert torch.equal(extractor((maxima,), which), expected[which])
        rounded = extractor((maxima.rounded(torch.bfloat16),), which)
        assert torch.equal(rounded, expected[which].bfloat16())


def test_extractor_in_a_standard_roi_head():
    roi_head = MODELS.build(
        dict(
            type='mmdet.StandardRoIHead',
            bbox_roi_extractor=dict(
                type='mmdet_ohem.RoIPoolExtractor',
                output_size=2,
                out_channels=3,
                featmap_strides=[16],
            ),
            bbox_head=dict(
                type='mmdet.Shared2FCBBoxHead',
                in_channels=3,
                fc_out_channels=8,
                roi_feat_size=2,
                num_classes=4,
            ),
        )
    )
    feats = (torch.rand(2, 3, 5, 6),)
    rois = random_rois(torch.Generator().manual_seed(1), 10, num_images=2)
    results = roi_head._bbox_forward(feats, rois)
    expected = pool_by_loops(feats[0], rois, 2, 1 / 16)
    assert torch.equal(results['bbox_feats'], expected)
    assert results['cls_score'].shape == (10, 5)


def test_roi_scale_factor_grows_rois_about_their_centre():
    feats = (torch.rand(1, 3, 20, 20),)
    extractor = RoIPoolExtractor(7, 3)
    pooled = extractor(feats, torch.tensor([[0, 100.0, 60, 140, 100]]), 1.5)
    expected = extractor(feats, torch.tensor([[0, 90.0, 50, 150, 110]]))
    assert torch.equal(pooled, expected)


def test_several_strides_are_refused():
    with pytest.raises(ValueError, match='featmap_strides'):
        RoIPoolExtractor(featmap_strides=[8, 16])


def test_rounding_may_come_before_the_maximum():
    """Rounding keeps the order: features in bfloat16 give the maxima in bfloat16."""
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(1, 3, 12, 18, generator=generator)
    rois = random_rois(generator, 40, num_images=1)
    exact = caffe_roi_pool(feats, rois, output_size=7, spatial_scale=1 / 16)
    rounded = caffe_roi_pool(feats.bfloat16(), rois, 7, 1 / 16)
    assert torch.equal(rounded, exact.bfloat16())


def test_distinct_rois_stand_for_all():
    generator = torch.Generator().manual_seed(0)
    feats = torch.randn(2, 3, 12, 18, generator=generator)
    rois = random_rois(generator, 40, num_images=2)
    near = rois + torch.tensor([0, 1, 1, 1, 1])  # many round to the same cells
    rois = torch.cat([rois, near, rois])
    extractor = RoIPoolExtractor(output_size=3, out_channels=3)
    distinct, which = extractor.distinct(rois)
    assert 40 <= len(distinct) < 80
    assert len(distinct) == len({tuple(row) for row in distinct.tolist()})
    features = extractor((feats,), distinct)
    assert torch.equal(features[which], extractor((feats,), rois))
