import pytest
import torch
from support.detection_reference import (
    ROI_POOL,
    assert_same_detections,
    batch,
    detect,
    draw_until_decided,
    head_of,
    random_seed,
    small_detector,
)

from mmdet_ohem.models import box_voting as iterative_boxes

HEAD = 'mmdet_ohem.IterativeBoxRoIHead'
SCALE = [(200, 150)]
ANY_AREA = 1.0  # there is one scale


def plain_test(detector, data: dict) -> list:
    """Detections of each image, of the data loader without `--tta`."""
    with torch.no_grad():
        samples = detector.test_step({key: value[0] for key, value in data.items()})
    return [sample.pred_instances for sample in samples]


@pytest.mark.parametrize(
    'class_agnostic, score_thr', [(False, 0.05), (True, 0.05), (False, 0.00001)]
)
@draw_until_decided
def test_detections_are_those_of_plain_numpy(
    tmp_path, monkeypatch, class_agnostic, score_thr
):
    """With the paper's configs nearly all boxes are detections, and few vote."""
    monkeypatch.setattr(iterative_boxes, 'CHUNK', 10)  # so that there are several
    seed = random_seed()
    detector = small_detector(seed, class_agnostic, type=HEAD, rerun_score_thr=0.3)
    detector.roi_head.test_cfg.score_thr = score_thr
    data, proposals = batch(tmp_path, seed, SCALE)
    found = plain_test(detector, data)
    for image in range(2):
        head = head_of(detector, data, image, ANY_AREA)
        expected = detect(head, proposals[image], score_thr, rerun_score_thr=0.3)
        assert_same_detections(found[image], expected)


@pytest.mark.parametrize('extractor', [{}, dict(bbox_roi_extractor=ROI_POOL)])
def test_nothing_run_again_leaves_the_plain_detections_but_for_the_vote(
    tmp_path, extractor
):
    seed = random_seed()
    data, _ = batch(tmp_path, seed, SCALE)
    plain = small_detector(seed, **extractor)
    # No box has a score above 1, and none has an IoU above 1 with another.
    options = dict(rerun_score_thr=1.0, vote_iou_thr=1.1)
    iterative = small_detector(seed, type=HEAD, **options, **extractor)
    for one, other in zip(
        plain_test(plain, data), plain_test(iterative, data), strict=True
    ):
        assert len(one) > 3
        for key in ('bboxes', 'scores', 'labels'):
            assert torch.equal(one[key], other[key]), key
    iterative.roi_head.vote_iou_thr = 0.5
    for one, other in zip(
        plain_test(plain, data), plain_test(iterative, data), strict=True
    ):
        assert torch.equal(one.scores, other.scores)
        assert torch.equal(one.labels, other.labels)
        assert not torch.equal(one.bboxes, other.bboxes)


@pytest.mark.parametrize('rescale', [False, True])
def test_without_test_cfg_the_scores_are_the_standard_heads(tmp_path, rescale):
    seed = random_seed()
    data, _ = batch(tmp_path, seed, SCALE)
    found = []
    for options in ({}, dict(type=HEAD)):
        detector = small_detector(seed, **options)
        prepared = detector.data_preprocessor({k: v[0] for k, v in data.items()})
        samples = prepared['data_samples']
        with torch.no_grad():
            found.append(
                detector.roi_head.predict_bbox(
                    detector.extract_feat(prepared['inputs']),
                    [sample.metainfo for sample in samples],
                    [sample.proposals for sample in samples],
                    rcnn_test_cfg=None,
                    rescale=rescale,
                )
            )
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.bboxes, other.bboxes)
        assert torch.equal(one.scores, other.scores)


def test_a_checkpoint_of_the_standard_head_fits():
    plain, iterative = small_detector(0), small_detector(1, type=HEAD)
    iterative.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize('proposals_of_second', [0, 25])
def test_images_without_proposals_and_without_detections(tmp_path, proposals_of_second):
    seed = random_seed()
    detector = small_detector(seed, type=HEAD)
    data, _ = batch(tmp_path, seed, SCALE)
    for sample, num in zip(
        data['data_samples'][0], [0, proposals_of_second], strict=True
    ):
        sample.proposals = sample.proposals[:num]
    first, second = plain_test(detector, data)
    assert first.bboxes.shape == (0, 4)
    assert first.scores.shape == first.labels.shape == (0,)
    assert (len(second) > 0) == (proposals_of_second > 0)

    data, _ = batch(tmp_path, seed, SCALE)
    detector.roi_head.test_cfg.score_thr = 1.0
    assert [len(found) for found in plain_test(detector, data)] == [0, 0]
