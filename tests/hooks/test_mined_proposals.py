"""Stored false positives beside an RPN's proposals, in whole trainings."""

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmengine.config import Config
from mmengine.runner import Runner
from support.detection_reference import random_seed
from support.tools import small_config, small_rpn_config

from mmdet_ohem.datasets import FalsePositives, write_background
from mmdet_ohem.proposals import write_store
from mmdet_ohem.runs import check_data

HOOK = (
    "default_hooks = dict(mined_proposals=dict(type='mmdet_ohem.MinedProposalsHook'))"
)
BASE = 'fast_rcnn_small_lookalikes.py'
CLASSES = ['washer', 'nut', 'gear']


def write_mined(folder, lookalikes, seed: int) -> dict[str, np.ndarray]:
    """A background set of two pictures with its store; returns the boxes of each."""
    rng = np.random.default_rng(seed)
    files = sorted((lookalikes / 'JPEGImages').iterdir())[:2]
    boxes = {}
    for i, file in enumerate(files):
        corners = rng.uniform([10, 10], [200, 150], (3 + i, 2))
        sides = rng.uniform(20, 60, (3 + i, 2))
        boxes[file.stem] = np.concatenate([corners, corners + sides], 1).round(1)
    images = [
        FalsePositives(
            file.stem, str(file), 400, 300, boxes[file.stem].tolist(),
            ['nut'] * len(boxes[file.stem]), [0.9] * len(boxes[file.stem]),
        )
        for file in files
    ]  # fmt: skip
    write_background(
        folder / 'background.jsonl', dict(classes=CLASSES, images=2), images
    )
    records = [(name, found, (400, 300)) for name, found in boxes.items()]
    write_store(folder / 'proposals', records, 'false positives')
    return boxes


def with_mined(tmp_path, lookalikes, hook: str = HOOK) -> Config:
    extra = f"""
from mmdet_ohem.datasets import with_background

train_dataloader = with_background(
    train_dataloader,
    share=0.5,
    background_set={str(tmp_path / 'background.jsonl')!r},
    store={str(tmp_path / 'proposals')!r},
)
del train_dataloader['_delete_']
{hook}
"""
    return Config.fromfile(
        small_rpn_config(tmp_path / 'mined.py', lookalikes, extra=extra)
    )


def test_the_roi_head_gets_the_rpns_proposals_and_the_mined_ones(
    tmp_path, lookalikes, monkeypatch
):
    seed = random_seed()
    boxes = write_mined(tmp_path, lookalikes, seed)
    config = with_mined(tmp_path, lookalikes)
    check_data(config, ('train',))
    config.work_dir = str(tmp_path / 'work')
    given = []
    loss = StandardRoIHead.loss

    def look(self, x, rpn_results_list, batch_data_samples):
        given.append((rpn_results_list, batch_data_samples))
        before = [len(results) for results in rpn_results_list]
        losses = loss(self, x, rpn_results_list, batch_data_samples)
        given[-1] += (before,)
        return losses

    monkeypatch.setattr(StandardRoIHead, 'loss', look)
    runner = Runner.from_cfg(config)
    proposed = []
    rpn_head = runner.model.rpn_head
    loss_and_predict = rpn_head.loss_and_predict

    def propose(*args, **kwargs):
        losses, results = loss_and_predict(*args, **kwargs)
        proposed.append([r.clone() for r in results])
        return losses, results

    monkeypatch.setattr(rpn_head, 'loss_and_predict', propose)
    names = set(runner.model.state_dict())
    runner.train()
    assert set(runner.model.state_dict()) == names
    assert type(runner.model.roi_head).__name__ == 'StandardRoIHead'
    assert isinstance(runner.model.roi_head, StandardRoIHead)
    assert len(given) == len(proposed) == 6
    flips = set()
    for (results, samples, before), of_rpn in zip(given, proposed, strict=True):
        mined = [len(sample.gt_instances) == 0 for sample in samples]
        assert sorted(mined) == [False, True]
        for i, sample in enumerate(samples):
            if not mined[i]:
                assert before[i] == len(of_rpn[i])
                continue
            # By hand: from the picture's px to those of the network's input.
            expected = boxes[sample.img_id] * np.tile(sample.scale_factor, 2)
            if sample.flip:
                width = sample.img_shape[1]
                expected[:, [0, 2]] = width - expected[:, [2, 0]]
            flips.add(sample.flip)
            assert before[i] == len(of_rpn[i]) + len(expected)
            priors = results[i].priors  # the head's name for what it is given
            torch.testing.assert_close(priors[: len(of_rpn[i])], of_rpn[i].bboxes)
            np.testing.assert_allclose(
                priors[len(of_rpn[i]) :], expected, rtol=1e-5, atol=1e-3
            )
            assert (results[i].scores[len(of_rpn[i]) :] == 0).all()
    assert flips


def test_stored_proposals_without_the_hook_are_refused(tmp_path, lookalikes):
    write_mined(tmp_path, lookalikes, 0)
    config = with_mined(tmp_path, lookalikes, hook='')
    with pytest.raises(ValueError, match='RPN does not use: set default_hooks.mined_'):
        check_data(config, ('train',))


def test_a_hook_without_stored_proposals_is_refused(tmp_path, lookalikes):
    config = Config.fromfile(
        small_rpn_config(tmp_path / 'rpn.py', lookalikes, extra=HOOK)
    )
    with pytest.raises(ValueError, match='nothing to join .* store=.*beside the back'):
        check_data(config, ('train',))


def test_a_detector_without_an_rpn_has_no_use_for_it(tmp_path, lookalikes):
    config = Config.fromfile(small_config(tmp_path / 'fast.py', lookalikes, BASE))
    config.default_hooks.mined_proposals = dict(type='mmdet_ohem.MinedProposalsHook')
    with pytest.raises(ValueError, match='this detector has none: leave the hook out'):
        check_data(config, ('train',))
    config.work_dir = str(tmp_path / 'work')
    with pytest.raises(TypeError, match='FastRCNN is no detector with an RPN'):
        Runner.from_cfg(config).train()
