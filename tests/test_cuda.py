"""What runs on a GPU against the same on the CPU: `make cuda`, or `pytest -m cuda`."""

import warnings
from types import SimpleNamespace
from typing import ClassVar

import mmcv
import numpy as np
import pytest
import torch
from mmcv.ops import RoIAlign, nms
from mmdet.registry import HOOKS
from mmdet.structures import DetDataSample
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from studies import iterations
from support.reference import random_boxes
from support.reference import select_hard_rois as plain_select_hard_rois
from support.roi_heads import (
    build_from,
    head_config,
    make_image,
    mine,
    stage_config,
)

from mmdet_ohem import OHEMLoss, select_hard_rois
from mmdet_ohem.hooks import mining_log
from mmdet_ohem.mining import fast_pass
from mmdet_ohem.models import RoIPoolExtractor
from mmdet_ohem.models.box_voting import vote_boxes
from mmdet_ohem.models.roi_pool import BLOCK_ON_GPU, caffe_roi_pool
from mmdet_ohem.models.vgg import Float32LocalResponseNorm
from mmdet_ohem.visualization import draw_detections

DEVICE = 'cuda'
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA GPU'),
]
PRECISIONS = [torch.float32, torch.float16, torch.bfloat16]


def waits(function) -> int:
    """How often the host waits for the GPU meanwhile."""
    function()  # kernels are loaded
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            function()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    return sum('synchronizing CUDA operation' in str(one.message) for one in caught)


def to_device(image):
    feats, gt_instances, proposals = image
    return (
        [feat.to(DEVICE) for feat in feats],
        gt_instances.to(DEVICE),
        proposals.to(DEVICE),
    )


def build_roi_head(pooling='RoIAlign', **sampler):
    """A head whose losses differ much from RoI to RoI."""
    init = dict(type='Normal', layer='Linear', std=0.5)
    roi_head = build_from(
        stage_config(**sampler),
        head_config(reg_class_agnostic=pooling == 'RoIAlign', init_cfg=init),
    )
    roi_head.init_weights()
    if pooling == 'RoIPoolExtractor':
        roi_head.bbox_roi_extractor = RoIPoolExtractor(3, 4, [8])
    return roi_head


# ------------------------------------------------------------------------- mmcv


def test_mmcvs_operators_run():
    boxes = torch.from_numpy(random_boxes(np.random.default_rng(0), 200, 300, 200))
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0))
    kept = nms(boxes, scores, 0.5)[1]
    assert nms(boxes.to(DEVICE), scores.to(DEVICE), 0.5)[1].tolist() == kept.tolist()

    feats = torch.rand(1, 4, 25, 38, generator=torch.Generator().manual_seed(1))
    rois = torch.cat([torch.zeros(200, 1), boxes], dim=1)
    align = RoIAlign(7, 1 / 8)
    on_gpu = feats.to(DEVICE).requires_grad_()
    pooled = align(on_gpu, rois.to(DEVICE))
    torch.testing.assert_close(pooled.cpu(), align(feats, rois))
    pooled.sum().backward()
    assert on_gpu.grad.isfinite().all() and on_gpu.grad.any()


# ---------------------------------------------------------------------- pooling


def random_rois(num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    corners = torch.randint(-30, 330, (num, 4), generator=generator).float()
    images = torch.randint(0, 2, (num, 1), generator=generator)
    return torch.cat([images.float(), corners], dim=1)


@pytest.mark.parametrize('dtype', PRECISIONS)
def test_pooling_and_its_gradient(dtype):
    generator = torch.Generator().manual_seed(3)
    feats = torch.randn(2, 8, 20, 25, generator=generator).to(dtype)
    rois = random_rois(300)
    weights = torch.rand(300, 8, 7, 7, generator=generator).to(dtype)
    gradients = []
    for device in ('cpu', DEVICE):
        here = feats.to(device).requires_grad_()
        pooled = caffe_roi_pool(here, rois.to(device), 7, 1 / 16)
        (pooled * weights.to(device)).sum().backward()
        gradients.append((pooled.detach().cpu(), here.grad.cpu()))
    (pooled, grad), (pooled_on_gpu, grad_on_gpu) = gradients
    assert pooled_on_gpu.dtype == grad_on_gpu.dtype == dtype
    assert torch.equal(pooled_on_gpu, pooled)
    # Sums in another order.
    torch.testing.assert_close(grad_on_gpu, grad)


@pytest.mark.parametrize('dtype', PRECISIONS)
def test_pooling_without_gradient(dtype):
    generator = torch.Generator().manual_seed(4)
    feats = torch.randn(2, 8, 20, 25, generator=generator).to(dtype)
    rois = random_rois(2 * BLOCK_ON_GPU + 7)
    expected = caffe_roi_pool(feats, rois, 7, 1 / 16)
    feats, rois = feats.to(DEVICE), rois.to(DEVICE)
    assert torch.equal(caffe_roi_pool(feats, rois, 7, 1 / 16).cpu(), expected)
    extractor = RoIPoolExtractor(7, 8)
    maxima = extractor.tabulate(feats, rois)
    which = torch.arange(0, len(rois), 3)
    assert torch.equal(extractor((maxima,), which.to(DEVICE)).cpu(), expected[which])


def test_normalisation_under_float16():
    layer = Float32LocalResponseNorm(size=5, alpha=0.0005, beta=0.75, k=2)
    x = torch.full((1, 8, 4, 4), 300.0)
    half = x.half().to(DEVICE).requires_grad_()
    with torch.autocast(DEVICE, torch.float16):
        y = layer(half)
    y.sum().backward()
    torch.testing.assert_close(y.float().cpu(), layer(x), rtol=1e-3, atol=0)
    assert half.grad.any()


# ----------------------------------------------------------------------- mining


def random_case(seed: int):
    rng = np.random.default_rng(seed)
    boxes = random_boxes(rng, 300, 120, 90).round()
    losses = rng.random(300).round(2).astype(np.float32)  # with ties
    return map(torch.from_numpy, (losses, boxes, rng.integers(-1, 3, 300)))


def test_the_same_indices_on_cpu_and_gpu():
    for seed in range(200):
        losses, boxes, labels = random_case(seed)
        for some in (None, labels):
            on_cpu = select_hard_rois(losses, boxes, 20, labels=some)
            on_gpu = select_hard_rois(
                losses.to(DEVICE),
                boxes.to(DEVICE),
                20,
                labels=None if some is None else some.to(DEVICE),
            )
            assert on_gpu.device.type == DEVICE
            assert on_gpu.tolist() == on_cpu.tolist(), f'seed {seed}'


def test_the_same_rotated_boxes_on_cpu_and_gpu():
    rng = np.random.default_rng(5)
    boxes = random_boxes(rng, 300, 120, 90)
    centres, sides = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    angles = rng.uniform(-1.5, 1.5, (300, 1))
    boxes = torch.from_numpy(np.hstack([centres, sides, angles])).float()
    losses = torch.from_numpy(rng.random(300))
    on_cpu = select_hard_rois(losses, boxes, 20)
    on_gpu = select_hard_rois(losses.to(DEVICE), boxes.to(DEVICE), 20)
    assert on_gpu.tolist() == on_cpu.tolist()


@pytest.mark.parametrize('num_gts', [0, 1, 4])  # no, one, and many foreground RoIs
@pytest.mark.parametrize('pooling', ['RoIAlign', 'RoIPoolExtractor'])
@pytest.mark.parametrize('way', ['plain', 'fast', 'bfloat16 first'])
def test_the_mined_are_the_hardest(way, pooling, num_gts, monkeypatch):
    if way == 'plain':
        name = 'mmdet_ohem.mining.ohem_sampler.takes_fast_pass'
        monkeypatch.setattr(name, lambda *args: False)
    if way == 'bfloat16 first':
        monkeypatch.setattr(fast_pass, 'MIN_WORK_FOR_BFLOAT16_ON_GPU', 0)
    roi_head = build_roi_head(pooling)
    feats, gt_instances, proposals = make_image(num_gts, num_gts, num_proposals=200)
    if num_gts == 1:  # the ground truth alone is foreground, or nearly so
        proposals = proposals[:200]
    image = (feats, gt_instances, proposals)
    expected = mine(roi_head, *image).mining
    roi_head.to(DEVICE)
    result = mine(roi_head, *to_device(image))
    mined = result.mining.mined.tolist()
    losses = expected.losses.tolist()
    boxes = expected.candidates.boxes.numpy()
    assert torch.equal(result.mining.candidates.boxes.cpu(), torch.from_numpy(boxes))
    # Losses differ by rounding, so that equal ones may change places.
    assert set(mined) == set(plain_select_hard_rois(losses, boxes, 16))
    torch.testing.assert_close(
        result.mining.losses[mined].cpu(), expected.losses[mined], rtol=1e-4, atol=1e-5
    )


def test_the_waits_of_an_image():
    """One level has three fewer than the ten of FPN in test_device_work.py."""
    roi_head = build_roi_head().to(DEVICE)
    feats, gt_instances, proposals = to_device(make_image(0, num_proposals=1000))

    def assign():
        return roi_head.bbox_assigner.assign(proposals, gt_instances)

    def sample():
        sampler = roi_head.bbox_sampler
        return sampler.sample(assign(), proposals, gt_instances, feats=feats)

    assert waits(sample) - waits(assign) <= 10
    mining = sample().mining
    assert waits(lambda: mining_log._sums(mining, 16)) == 0


def test_float16_that_overflows_is_left_to_the_scaler():
    roi_head = build_roi_head('RoIPoolExtractor').to(DEVICE)
    with torch.no_grad():
        roi_head.bbox_head.fc_cls.weight.mul_(1e6)
    with torch.autocast(DEVICE, torch.float16):
        result = mine(roi_head, *to_device(make_image(0)))
    assert len(result.mining.mined) == 16
    assert not result.mining.losses.isfinite().all()


# --------------------------------------------------------------- the other parts


def scalars(device: str) -> dict[str, float]:
    roi_head = build_roi_head().to(device)
    runner = SimpleNamespace(
        model=torch.nn.ModuleDict(dict(roi_head=roi_head)),
        iter=0,
        log_processor=SimpleNamespace(window_size=2),
        message_hub=MessageHub.get_instance(f'on {device}'),
    )
    hook = HOOKS.build(dict(type='mmdet_ohem.MiningHook', interval=1))
    hook.before_train(runner)
    for runner.iter, seed in enumerate(range(2)):
        image = make_image(seed)
        hook.before_train_iter(runner, runner.iter)
        mine(roi_head, *(image if device == 'cpu' else to_device(image)))
        hook.after_train_iter(runner, runner.iter)
    logged = runner.message_hub.log_scalars
    return {key: buffer.mean(1) for key, buffer in logged.items()}


def test_mining_hook():
    assert scalars(DEVICE) == pytest.approx(scalars('cpu'), rel=1e-4)


@pytest.mark.parametrize('num', [20, 0.25])
def test_ohem_loss(num):
    loss = OHEMLoss(dict(type='mmdet.CrossEntropyLoss'), num)
    generator = torch.Generator().manual_seed(6)
    scores = torch.randn(200, 5, generator=generator)
    labels = torch.randint(0, 5, (200,), generator=generator)
    found = []
    for device in ('cpu', DEVICE):
        here = scores.to(device).requires_grad_()
        value = loss(here, labels.to(device))
        value.backward()
        found.append((value.detach().cpu(), here.grad.cpu()))
    torch.testing.assert_close(found[1], found[0])


def test_box_voting():
    rng = np.random.default_rng(7)
    boxes = torch.from_numpy(random_boxes(rng, 300, 120, 90))
    scores = torch.from_numpy(rng.random(300).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 3, 300))
    pool = (boxes[:40], labels[:40], boxes, scores, labels)
    voted = vote_boxes(*(part.to(DEVICE) for part in pool))
    torch.testing.assert_close(voted.cpu(), vote_boxes(*pool), rtol=1e-4, atol=1e-3)


def test_selection_is_timed_on_the_gpu(monkeypatch):
    devices = []

    def select(losses, boxes, num):
        devices.append(losses.device.type)
        return select_hard_rois(losses, boxes, num)

    monkeypatch.setattr(iterations, 'select_hard_rois', select)
    (row,) = iterations.time_selection(DEVICE, sizes=(500,))
    assert row.seconds > 0 and set(devices) == {DEVICE}


class _Dataset(list):
    metainfo: ClassVar = dict(classes=('cat',))


def test_detections_on_the_gpu_are_drawn(tmp_path):
    """test_step leaves the ground truth on the device too."""
    mmcv.imwrite(np.full((60, 80, 3), 255, np.uint8), str(tmp_path / 'a.png'))
    boxes = torch.tensor([[5.0, 5, 30, 30], [40, 20, 70, 50]])
    labels = torch.zeros(2, dtype=torch.int64)
    dataset = _Dataset([{}])
    pictures = []
    for device in ('cpu', DEVICE):
        sample = DetDataSample(metainfo=dict(img_path=str(tmp_path / 'a.png')))
        sample.gt_instances = InstanceData(bboxes=boxes[:1], labels=labels[:1])
        sample.ignored_instances = InstanceData(bboxes=boxes[:0], labels=labels[:0])
        sample.pred_instances = InstanceData(
            bboxes=boxes, labels=labels, scores=torch.tensor([0.9, 0.8])
        )
        sample = sample.to(device)
        detector = SimpleNamespace(test_step=lambda batch, found=sample: [found])
        pictures.append(draw_detections(detector, dataset, 0))
    assert np.array_equal(*pictures)
