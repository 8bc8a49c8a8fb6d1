"""Every RoI head of MMDetection with the sampler, from MMDetection's own configs.

Each config is changed in its sampler's `type` alone, and shrunk. The outcome stands in
docs/detectors.md, whose table is rewritten by

    python tests/test_detectors.py
"""

import copy
import functools
import re
import warnings
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from mmdet.models.backbones.trident_resnet import TridentConv
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData, PixelData
from reference import random_boxes
from reference import select_hard_rois as plain_select_hard_rois

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
ROOT = Path(__file__).parent.parent
PAGE = ROOT / 'docs' / 'detectors.md'

DETECTORS = [
    'fast_rcnn/fast-rcnn_r50_fpn_1x_coco.py',
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco.py',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn/mask-rcnn_r50-caffe-c4_1x_coco.py',
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py',
    'groie/faste-rcnn_r50_fpn_groie_1x_coco.py',
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco.py',
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py',
    'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco.py',
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py',
    'sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py',
    'pisa/faster-rcnn_r50_fpn_pisa_1x_coco.py',
    'pisa/mask-rcnn_r50_fpn_pisa_1x_coco.py',
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py',
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py',
    'tridentnet/tridentnet_r50-caffe_1x_coco.py',
    'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py',
    'sabl/sabl-cascade-rcnn_r50_fpn_1x_coco.py',
    'htc/htc-without-semantic_r50_fpn_1x_coco.py',
    'htc/htc_r50_fpn_1x_coco.py',
    'scnet/scnet_r50_fpn_1x_coco.py',
    'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py',
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
    'queryinst/queryinst_r50_fpn_1x_coco.py',
]
NUM_CLASSES, SIDE, NUM = 3, 128, 8
SMALLER = {
    'channels': {64: 4, 256: 32, 512: 32, 1024: 64},
    'num_classes': {80: NUM_CLASSES, 133: NUM_CLASSES, 183: NUM_CLASSES},
}


def shrink(config):
    """Narrow layers, few classes, no weights to fetch."""
    for key, value in list(config.items()):
        if key == 'init_cfg':
            del config[key]
        elif isinstance(value, int):
            for word, sizes in SMALLER.items():
                if key.endswith(word):
                    config[key] = sizes.get(value, value)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, dict):
                shrink(child)


def shrink_c4(config):
    """The head of C4 has a stage of a ResNet, whose width is fixed: 256 to 512."""
    roi_head = config.roi_head
    config.backbone.base_channels = 16
    roi_head.shared_head.depth = 18
    config.rpn_head.in_channels = 256
    for name in ('bbox', 'mask'):
        if roi_head.get(f'{name}_roi_extractor'):
            roi_head[f'{name}_roi_extractor'].roi_layer.output_size = 4
            roi_head[f'{name}_roi_extractor'].out_channels = 256
        if roi_head.get(f'{name}_head'):
            roi_head[f'{name}_head'].update(roi_feat_size=2, in_channels=512)
    config.train_cfg.rcnn.mask_size = 4


def small_model(config_file: str, sampler_type: str):
    config = Config.fromfile(CONFIGS / config_file).model
    del config.data_preprocessor  # the images here are tensors
    shrink(config)
    if config.roi_head.get('shared_head'):
        shrink_c4(config)
    else:
        config.backbone.update(depth=18, base_channels=8)
        necks = config.neck if isinstance(config.neck, list) else [config.neck]
        necks[0].in_channels = [8, 16, 32, 64]
    if 'rpn_proposal' in config.train_cfg:
        config.train_cfg.rpn_proposal.update(nms_pre=60, max_per_img=30)
    rcnn = config.train_cfg.rcnn
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.update(type=sampler_type, num=NUM)
    torch.manual_seed(0)
    model = MODELS.build(config)
    for module in model.modules():
        if isinstance(module, TridentConv):  # left empty, for a checkpoint to fill
            torch.nn.init.kaiming_uniform_(module.weight)
    return model.train()


def make_batch(seed: int, num_gts: int = 3):
    """Two images of noise with boxes, their masks, a semantic map and proposals."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(2):
        boxes = random_boxes(rng, num_gts, SIDE, SIDE).reshape(num_gts, 4)
        masks = np.zeros((num_gts, SIDE, SIDE), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        shape = dict(img_shape=(SIDE, SIDE), pad_shape=(SIDE, SIDE))
        sample = DetDataSample(
            metainfo=dict(
                shape,
                ori_shape=(SIDE, SIDE),
                batch_input_shape=(SIDE, SIDE),
                scale_factor=(1.0, 1.0),
            )
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(rng.integers(NUM_CLASSES, size=num_gts)),
            masks=BitmapMasks(masks, SIDE, SIDE),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        sample.gt_sem_seg = PixelData(
            sem_seg=torch.from_numpy(rng.integers(NUM_CLASSES, size=(1, SIDE, SIDE)))
        )
        sample.proposals = InstanceData(
            bboxes=torch.from_numpy(random_boxes(rng, 30, SIDE, SIDE))
        )
        samples.append(sample)
    images = rng.standard_normal((2, 3, SIDE, SIDE), np.float32)
    return torch.from_numpy(images), samples


def train_step(model, batch) -> None:
    loss, log = model.parse_losses(model(*copy.deepcopy(batch), mode='loss'))
    assert all(np.isfinite(float(value)) for value in log.values()), log
    model.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, error_if_nonfinite=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad


def stages_of(roi_head):
    """(stage or None, sampler, assigner) for each."""
    samplers, assigners = roi_head.bbox_sampler, roi_head.bbox_assigner
    if not isinstance(samplers, list):
        return [(None, samplers, assigners)]
    return list(zip(range(len(samplers)), samplers, assigners, strict=True))


def losses_in_training(roi_head, stage, feats, everything) -> dict:
    """The losses of the head's own training pass, left unreduced, in eval mode."""
    modules = list(roi_head.modules())
    before = [(m, m.training, getattr(m, 'reduction', None)) for m in modules]
    for module in modules:
        module.training = False
        if hasattr(module, 'reduction'):
            module.reduction = 'none'
    image_features = {}
    with torch.no_grad():
        if hasattr(roi_head, 'semantic_head'):
            image_features['semantic_feat'] = roi_head.semantic_head(feats)[1]
        if hasattr(roi_head, 'glbctx_head'):
            image_features['glbctx_feat'] = roi_head.glbctx_head(feats)[1]
        if stage is None:  # not PISA's, Dynamic's or Grid's own, which do more
            results = StandardRoIHead.bbox_loss(roi_head, feats, [everything])
        else:
            results = roi_head.bbox_loss(stage, feats, [everything], **image_features)
    for module, mode, reduction in before:
        module.training = mode
        if hasattr(module, 'reduction'):
            module.reduction = reduction
    return results['loss_bbox']


def plain_mining(roi_head, stage, add_gt, assign_result, proposals, gt, feats):
    """The paper's algorithm: the indices of the hardest RoIs among gt and proposals."""
    boxes, num_gts = proposals.priors, len(gt.bboxes)
    gt_inds, labels = assign_result.gt_inds, assign_result.labels
    if add_gt:
        boxes = torch.cat([gt.bboxes, boxes])
        gt_inds = torch.cat([torch.arange(num_gts) + 1, gt_inds])
        labels = torch.cat([gt.labels, labels])
    has_area = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    foreground = torch.nonzero((gt_inds > 0) & has_area).flatten()
    background = torch.nonzero((gt_inds == 0) & has_area).flatten()
    order = torch.cat([foreground, background])
    if len(order) == 0:
        return []
    everything = SamplingResult(
        foreground,
        background,
        boxes,
        gt.bboxes,
        AssignResult(num_gts, gt_inds, None, labels),
        torch.zeros(len(boxes), dtype=torch.uint8),
    )
    total = torch.zeros(len(order))
    for key, loss in losses_in_training(roi_head, stage, feats, everything).items():
        if key == 'loss_cls' or ('loss' in key and len(foreground) > 0):
            rows = len(foreground) if key == 'loss_bbox' else len(order)
            total[:rows] += loss.reshape(rows, -1).sum(dim=1)
    hardest = plain_select_hard_rois(total.numpy(), boxes[order].numpy(), NUM)
    return order[hardest].tolist()


def state_of(roi_head) -> dict:
    tensors = {'random state': torch.get_rng_state()}
    for name, value in (*roi_head.named_parameters(), *roi_head.named_buffers()):
        tensors[name] = value.detach().clone()
        tensors[f'gradient of {name}'] = torch.zeros(0)
        if value.grad is not None:
            tensors[f'gradient of {name}'] = value.grad.clone()
    for name, module in roi_head.named_modules():
        tensors[f'mode of {name}'] = torch.tensor(module.training)
    return tensors


def check_every_sample(roi_head) -> list[int]:
    """Let every call of `sample` be compared with a plain computation.

    Returns:
        grows with each call: how many RoIs were mined, how many of them foreground.
    """
    mined = []

    def checked(stage, sampler, sample, assign_result, proposals, gt, feats):
        expected = plain_mining(
            roi_head,
            stage,
            sampler.add_gt_as_proposals,
            copy.deepcopy(assign_result),
            proposals,
            gt,
            feats,
        )
        before = state_of(roi_head)
        returned = sample(assign_result, proposals, gt, feats=feats)
        for name, value in state_of(roi_head).items():
            assert torch.equal(value, before[name]), name
        result = returned[0] if isinstance(returned, tuple) else returned
        chosen = result.pos_inds.tolist() + result.neg_inds.tolist()
        assert sorted(chosen) == sorted(expected)
        mined.append((len(chosen), len(result.pos_inds)))
        return returned

    for stage, sampler, _ in stages_of(roi_head):
        sampler.sample = functools.partial(checked, stage, sampler, sampler.sample)
    return mined


def nothing_is_foreground(roi_head) -> None:
    for _, sampler, assigner in stages_of(roi_head):
        assigner.pos_iou_thr = assigner.neg_iou_thr = assigner.min_pos_iou = 2.0
        sampler.add_gt_as_proposals = False


def try_out(config_file: str, sampler_type: str, check: bool = False) -> str:
    """Train two steps, one on background alone and one without ground truth.

    Returns:
        'works', or what failed, as the table has it.
    """
    try:
        model = small_model(config_file, sampler_type)
    except TypeError as error:
        if 'mmdet_ohem' in str(error):
            return f'refused: {error}'.removesuffix('.')
        return 'when built: TypeError'
    mined = check_every_sample(model.roi_head) if check else []
    failures = {}

    def attempt(batch_name, batch):
        try:
            train_step(model, batch)
        except Exception as error:  # whatever MMDetection's code runs into
            if check and isinstance(error, AssertionError):
                raise
            reason = type(error).__name__
            if 'OHEMSampler' in str(error):
                reason += f': {error}'.removesuffix('.')
            failures.setdefault(reason, []).append(batch_name)

    for seed in range(2):
        attempt('any batch', make_batch(seed))
    if check:
        assert any(0 < num_pos < num_mined for num_mined, num_pos in mined)
        assert all(0 < num_mined <= NUM for num_mined, _ in mined)
    if not failures:
        del mined[:]
        attempt('no ground truth', make_batch(3, num_gts=0))
        nothing_is_foreground(model.roi_head)
        attempt('background alone', make_batch(2))
        assert all(num_pos == 0 for _, num_pos in mined)
    return (
        '; '.join(
            f'{" and ".join(dict.fromkeys(names))}: {reason}'
            for reason, names in failures.items()
        )
        or 'works'
    )


def table_row(config_file: str, check: bool = False) -> str:
    config = Config.fromfile(CONFIGS / config_file).model
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ours = try_out(config_file, 'mmdet_ohem.OHEMSampler', check)
        theirs = try_out(config_file, 'OHEMSampler')
    return f'| `{config_file}` | {config.roi_head.type} | {ours} | {theirs} |'


@pytest.mark.parametrize('config_file', DETECTORS)
def test_the_table_is_what_a_run_gives(config_file):
    assert table_row(config_file, check=True) in PAGE.read_text().splitlines()


def test_scnet_ranks_every_stage_by_its_own_head():
    """SCNet never says which stage it is at; MMDetection's OHEMSampler asks for it and
    ranks all by the last. (The table above has no word for it.)"""
    stages = {}
    for sampler_type in ('mmdet_ohem.OHEMSampler', 'OHEMSampler'):
        model = small_model('scnet/scnet_r50_fpn_1x_coco.py', sampler_type)
        forward, asked = model.roi_head._bbox_forward, []

        def recorded(stage, *args, forward=forward, asked=asked, **kwargs):
            if not torch.is_grad_enabled():
                asked.append(stage)
            return forward(stage, *args, **kwargs)

        model.roi_head._bbox_forward = recorded
        train_step(model, make_batch(0))
        stages[sampler_type] = set(asked)
    assert stages == {'mmdet_ohem.OHEMSampler': {0, 1, 2}, 'OHEMSampler': {2}}


@pytest.mark.parametrize(
    'config_file, keys, head',
    [
        (DETECTORS[1], ('train_cfg', 'rpn'), 'RPNHead'),
        ('rpn/rpn_r50_fpn_1x_coco.py', ('train_cfg', 'rpn'), 'RPNHead'),
        (
            'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco.py',
            ('train_cfg', 'rpn', 1),
            'StageCascadeRPNHead',
        ),
        (
            'guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco.py',
            ('train_cfg', 'rpn'),
            'GARPNHead',
        ),
        ('retinanet/retinanet_r50_fpn_1x_coco.py', ('train_cfg',), 'RetinaHead'),
        (
            'masktrack_rcnn/masktrack-rcnn_mask-rcnn_r50_fpn_8xb1-12e_youtubevis2019.py',
            ('track_head', 'train_cfg'),
            'RoITrackHead',
        ),
    ],
)
def test_a_head_without_rois_to_classify_is_told_what_to_use(config_file, keys, head):
    config = Config.fromfile(CONFIGS / config_file).model
    del config.data_preprocessor
    shrink(config)
    functools.reduce(lambda place, key: place[key], keys, config).sampler = dict(
        type='mmdet_ohem.OHEMSampler', num=256
    )
    with pytest.raises(
        TypeError,
        match=f'{head} has no bbox_head; set it in train_cfg.rcnn.sampler, keep '
        'RandomSampler in train_cfg.rpn.sampler',
    ):
        MODELS.build(config)


def test_the_cascade_of_the_page_builds(tmp_path):
    written = re.search(r'```python\n(.*?)```', PAGE.read_text(), re.S).group(1)
    path = tmp_path / 'cascade_small_bccd.py'
    path.write_text(written.replace("_base_ = '", f"_base_ = '{ROOT}/configs/"))
    config = Config.fromfile(path)
    roi_head = MODELS.build(
        dict(config.model.roi_head, train_cfg=config.model.train_cfg.rcnn)
    )
    assert [sampler.stage for _, sampler, _ in stages_of(roi_head)] == [0, 1, 2]
    bounds = [assigner.pos_iou_thr for *_, assigner in stages_of(roi_head)]
    assert bounds == [0.5, 0.6, 0.7]


def rewrite_page() -> None:
    rows = [
        '| config | RoI head | `mmdet_ohem.OHEMSampler` | `mmdet.OHEMSampler` |',
        '|---|---|---|---|',
    ]
    for config_file in DETECTORS:
        rows.append(table_row(config_file))
        print(rows[-1], flush=True)
    table = '\n'.join(rows)
    page = re.sub(r'\| config \|.*?\n\n', f'{table}\n\n', PAGE.read_text(), flags=re.S)
    PAGE.write_text(page)


if __name__ == '__main__':
    rewrite_page()
