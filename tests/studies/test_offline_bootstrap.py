"""Offline bootstrapping, the rival of OHEM, in two rounds of three iterations."""

import json

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from support.reference import iou
from support.tools import run_tool_here, small_config

from mmdet_ohem.proposals import ProposalStore
from mmdet_ohem.runs import load_detector

TOOL = 'tools/offline_bootstrap.py'
TRAIN = 'ImageSets/Main/train.txt'
NUM = 20  # RoIs to train on, of which the set holds twice as many


@pytest.fixture
def config(lookalikes, tmp_path):
    base = 'fast_rcnn_small_ohem_lookalikes.py'
    extra = f'model = dict(train_cfg=dict(rcnn=dict(sampler=dict(num={NUM}))))'
    return small_config(tmp_path / 'small.py', lookalikes, base, extra)


def background_probabilities(detector, sample, boxes: np.ndarray) -> np.ndarray:
    """(R,) of boxes in px of the file, in an image as tests see it."""
    rois = torch.from_numpy(boxes * np.tile(sample['scale'], 2)).float()
    with torch.no_grad():
        image = detector.data_preprocessor(pseudo_collate([sample['data']]))
        (found,) = detector.roi_head.predict_bbox(
            detector.extract_feat(image['inputs']),
            [image['data_samples'][0].metainfo],
            [InstanceData(bboxes=rois)],
            rcnn_test_cfg=None,
        )
    return found.scores[:, -1].numpy()


def test_each_round_goes_on_with_the_hardest_background(
    config, lookalikes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        'mmdet_ohem.runs.run_tool',
        lambda tool, *words: run_tool_here(f'tools/{tool.name}', *words),
    )
    out = tmp_path / 'out'
    words = ['--rounds', 2, '--seeds', 0, '--work-dir', out]
    run_tool_here(TOOL, config, *words)
    assert '| 2 | 1 |' in capsys.readouterr().out

    first, second = (Config.fromfile(out / f'seed0/round{i}.py') for i in (1, 2))
    for round_config in (first, second):
        assert round_config.train_cfg.max_iters == 3
        rcnn = round_config.model.train_cfg.rcnn
        assert rcnn.sampler.type == 'RandomSampler' and rcnn.sampler.num == NUM
        assert rcnn.assigner.neg_iou_thr == 0.5
    assert second.load_from == str(out / 'seed0/round1/iter_3.pth')
    (result,) = json.loads((out / 'results.json').read_text())
    assert result['seed'] == 0 and result['frozen_seconds'] > 0

    detector = load_detector(first, second.load_from)
    images = DATASETS.build(first.test_dataloader.dataset | dict(ann_file=TRAIN))
    every, active = (
        ProposalStore(path)
        for path in (lookalikes / 'proposals', out / 'seed0' / 'proposals2')
    )
    assert len(images) == 6
    for i in range(len(images)):
        info, data = images.get_data_info(i), images[i]
        boxes, size = every.get(info['img_id'])
        found, found_size = active.get(info['img_id'])
        assert found_size == size
        gts = [np.float32(instance['bbox']) for instance in info['instances']]
        overlaps = np.array([max(iou(box, gt) for gt in gts) for box in boxes])
        scale = data['data_samples'].scale_factor
        known = background_probabilities(detector, dict(data=data, scale=scale), boxes)
        kept = np.array([np.abs(found - box).max(1).min() < 0.01 for box in boxes])
        assert kept[overlaps >= 0.501].all()
        assert not kept[(overlaps >= 0.301) & (overlaps < 0.499)].any()
        background = overlaps < 0.299
        assert kept[background].sum() == 2 * NUM < background.sum()
        easiest = known[background & kept].max()
        assert easiest <= known[background & ~kept].min() + 1e-5


def test_a_detector_without_stored_proposals_is_refused():
    with pytest.raises(SystemExit, match='no step mmdet_ohem.LoadStoredProposals'):
        run_tool_here(TOOL, 'configs/faster_rcnn_vgg16_ohem_voc07.py')
