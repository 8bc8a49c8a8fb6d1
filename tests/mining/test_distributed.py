"""OHEM in the ways a run is made larger: several processes, accumulated gradients,
mixed precision, recomputed activations, a compiled backbone.

The network is the demo's, without dropout and with group normalisation, so that each of
these must leave the gradients what they are.
"""

import copy

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import init_default_scope
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from mmengine.structures import InstanceData
from support.reference import random_boxes
from support.tools import ROOT, run_tool, run_tool_here, small_config
from torch.nn.parallel import DistributedDataParallel

OHEM = 'fast_rcnn_small_ohem_lookalikes.py'
WIDTH, HEIGHT = 96, 64
ROI_POOL = dict(
    type='mmdet_ohem.RoIPoolExtractor',
    output_size=5,
    out_channels=64,
    featmap_strides=[8],
)
EQUAL = dict(rtol=1e-4, atol=1e-6)


def build_detector(extractor=None, **backbone):
    model = Config.fromfile(ROOT / 'configs' / OHEM).model
    model.backbone.update(backbone)
    if extractor is not None:
        model.roi_head.bbox_roi_extractor = extractor
    model.train_cfg.rcnn.sampler.num = 16
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(model)
    detector.init_weights()
    return detector.train()


def make_image(seed, gt_bboxes=((10, 8, 60, 50),), num_proposals=60):
    """What the data preprocessor hands on: an image and its data sample."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(1, 3, HEIGHT, WIDTH, generator=generator)
    sample = DetDataSample(
        metainfo=dict(
            img_shape=(HEIGHT, WIDTH), batch_input_shape=(HEIGHT, WIDTH), img_id=seed
        )
    )
    gt_bboxes = torch.tensor(gt_bboxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(gt_bboxes), dtype=torch.long)
    sample.gt_instances = InstanceData(bboxes=gt_bboxes, labels=labels)
    boxes = random_boxes(np.random.default_rng(seed), num_proposals, WIDTH, HEIGHT)
    sample.proposals = InstanceData(bboxes=torch.from_numpy(boxes))
    return image, [sample]


def loss_of(detector, image):
    losses = detector(*copy.deepcopy(image), mode='loss')  # a RoI head takes it apart
    return sum(value for key, value in losses.items() if 'loss' in key)


def gradients(detector, *images):
    """Of the mean loss of the images, each by itself as on a process of its own."""
    detector.zero_grad()
    for image in images:
        (loss_of(detector, image) / len(images)).backward()
    return {name: weight.grad for name, weight in detector.named_parameters()}


def assert_equal(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], **(tolerance or EQUAL), msg=name
        )


@pytest.mark.slow
def test_two_processes_end_where_one_that_accumulates_ends(
    server, lookalikes, tmp_path
):
    """One image a process, or one image at a time and the gradients of two."""
    same_images = """
from mmdet_ohem.datasets import with_step
param_scheduler = None
train_dataloader = with_step(train_dataloader, 'RandomFlip', prob=0.0)
train_dataloader.update(batch_size=1)
"""
    ends = {}
    for name, iterations, accumulated in (('two', 4, 1), ('one', 8, 2)):
        config = small_config(
            tmp_path / f'{name}.py',
            lookalikes,
            OHEM,
            f'{same_images}'
            f'train_cfg = dict(max_iters={iterations}, val_interval={iterations})\n'
            f'default_hooks = dict(checkpoint=dict(interval={iterations}))\n'
            f'optim_wrapper = dict(accumulative_counts={accumulated})\n',
        )
        to = ('--work-dir', tmp_path / name)
        if name == 'two':
            train = ('tools/dist_train.sh', config, 2, *to)
            run = run_tool(*train, python=server.python, PORT='29527')
            assert run.returncode == 0, run.stderr
        else:
            run_tool_here('tools/train.py', config, *to)
        ends[name] = torch.load(
            tmp_path / name / f'iter_{iterations}.pth', weights_only=True
        )['state_dict']
    assert_equal(ends['two'], ends['one'], rtol=1e-3, atol=1e-5)


def test_ddp_finds_a_gradient_for_every_parameter(tmp_path):
    """With find_unused_parameters=False it raises in the next step if one has none:
    an image without foreground, or without ground truth, must not end a run."""
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path / "store"}', rank=0, world_size=1
    )
    try:
        detector = build_detector()
        detector.roi_head.bbox_sampler.add_gt_as_proposals = False
        ddp = DistributedDataParallel(detector, find_unused_parameters=False)
        far_away = make_image(1, gt_bboxes=[(0, 0, 3, 3)])
        without = make_image(2, gt_bboxes=[])
        for image in (make_image(0), far_away, without, make_image(0)):
            ddp.zero_grad()
            loss_of(ddp, image).backward()
            for name, parameter in ddp.named_parameters():
                assert parameter.grad is not None, name
    finally:
        torch.distributed.destroy_process_group()


def test_accumulated_gradients_are_those_of_all_images():
    detector, images = build_detector(), [make_image(seed) for seed in (0, 1)]
    before = {name: w.detach().clone() for name, w in detector.named_parameters()}
    gradient = copy.deepcopy(gradients(detector, *images))
    detector.zero_grad()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    optim_wrapper = OptimWrapper(optimizer, accumulative_counts=2)
    optim_wrapper.initialize_count_status(detector, 0, 2)
    for image in images:
        with optim_wrapper.optim_context(detector):
            loss = loss_of(detector, image)
        optim_wrapper.update_params(loss)
    expected = {name: before[name] - 0.1 * gradient[name] for name in before}
    assert_equal(dict(detector.named_parameters()), expected)


@pytest.mark.parametrize(
    'dtype, extractor',
    [
        (torch.float16, None),
        (torch.bfloat16, ROI_POOL),  # mmcv's RoIAlign has no bfloat16 on a CPU
    ],
)
def test_mixed_precision_trains_every_parameter_that_mining_has_read(dtype, extractor):
    """PyTorch up to 2025 kept the casts of a pass without gradient (issue 65766)."""
    detector, image = build_detector(extractor=extractor), make_image(0)
    expected = gradients(detector, image)
    expected_is_zero = {name: not grad.any() for name, grad in expected.items()}
    detector.zero_grad()
    with torch.autocast('cpu', dtype):
        loss = loss_of(detector, image)
    loss.backward()
    assert loss.isfinite()
    for name, parameter in detector.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() != expected_is_zero[name], name


@pytest.mark.parametrize('how', ['with_cp', 'activation_checkpointing'])
def test_recomputed_activations_leave_the_gradients_as_they_are(how):
    image = make_image(0)
    expected = gradients(build_detector(), image)
    if how == 'with_cp':  # of MMDetection's ResNet, for its blocks
        detector = build_detector(with_cp=True)
    else:  # of MMEngine's Runner, for layers whose input has a gradient already
        detector = build_detector()
        layers = ['backbone.layer2', 'backbone.layer3', 'roi_head.bbox_head']
        turn_on_activation_checkpointing(detector, layers)
    assert_equal(gradients(detector, image), expected)


def test_a_compiled_backbone_leaves_the_gradients_as_they_are():
    image = make_image(0)
    expected = gradients(build_detector(), image)
    detector = build_detector()
    # The graphs of the default, inductor, which then builds C++ for minutes.
    detector.backbone.compile(backend='aot_eager')
    assert_equal(gradients(detector, image), expected)
