import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmdet.utils import register_all_modules
from mmengine.dataset import Compose
from support.reference import random_boxes

from mmdet_ohem.proposals.loading import LoadStoredProposals
from mmdet_ohem.proposals.store import ProposalStore, write_store

register_all_modules()


def test_missing_store_fails_when_the_pipeline_is_built(tmp_path):
    config = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'none'))
    with pytest.raises(FileNotFoundError, match='none.*prepare_proposals'):
        Compose([config])


# ---------------------------------------------------------------- the pipeline step


def image_results(width, height, gt=(), img_id='000009'):
    """What a pipeline holds after LoadImageFromFile."""
    return dict(
        img=np.zeros((height, width, 3), dtype=np.float32),
        img_id=img_id,
        img_shape=(height, width),
        ori_shape=(height, width),
        instances=[dict(bbox=list(b), bbox_label=0, ignore_flag=0) for b in gt],
    )


def test_step_maps_boxes_as_the_image_was_resized_and_flipped(store):
    pipeline = Compose(
        [
            dict(type='Resize', scale=(160, 210), keep_ratio=False),  # 2x wide, 3x high
            dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            dict(type='mmdet_ohem.LoadStoredProposals', store=str(store)),
            dict(type='PackDetInputs'),
        ]
    )
    proposals = pipeline(image_results(80, 70))['data_samples'].proposals
    # (5, 6, 50, 60) -> (10, 18, 100, 180) -> x mirrored at 160
    np.testing.assert_allclose(
        proposals.bboxes, [[60, 18, 150, 180], [100, 6, 158, 120]], atol=1e-4
    )
    assert proposals.scores.tolist() == [0, 0]


def test_step_clips_to_the_crop_and_drops_what_is_outside(store):
    results = image_results(80, 70)
    results.update(
        img_shape=(30, 20),
        homography_matrix=np.array([[1, 0, -31], [0, 1, -40], [0, 0, 1.0]]),
    )
    results = LoadStoredProposals(str(store))(results)
    # (5, 6, 50, 60) lies at (-26, -34, 19, 20); (1, 2, 30, 40) ends left of the crop
    np.testing.assert_array_equal(results['proposals'], [[0, 0, 19, 20]])
    assert results['proposals_scores'].shape == (1,)


def test_step_goes_on_where_an_image_has_no_boxes(store):
    results = LoadStoredProposals(str(store))(image_results(10, 20, img_id='zebra'))
    assert results['proposals'].shape == (0, 4)
    assert results['proposals_scores'].shape == (0,)


def test_an_opened_store_serves_as_its_folder_does(store):
    loaded = [
        LoadStoredProposals(given)(image_results(80, 70))['proposals']
        for given in (str(store), ProposalStore(store))
    ]
    assert len(loaded[0]) == 2
    np.testing.assert_array_equal(*loaded)


def test_coco_images_are_found_by_their_file_names(tmp_path):
    write_store(
        tmp_path / 'coco',
        [('000000000139', np.array([[1, 2, 30, 40]]), (64, 48))],
        source='by hand',
    )
    results = dict(
        img_id=139,
        img_path='val2017/000000000139.jpg',
        ori_shape=(48, 64),
        img_shape=(48, 64),
    )
    loaded = LoadStoredProposals(str(tmp_path / 'coco')).transform(results)
    np.testing.assert_array_equal(loaded['proposals'], [[1, 2, 30, 40]])


def test_step_refuses_a_store_of_another_data_set(store):
    with pytest.raises(ValueError, match=f'{store}.*another data set.*80x70.*81x70'):
        LoadStoredProposals(str(store))(image_results(81, 70))


def test_step_takes_part_in_printing_a_pipeline(store):
    assert repr(LoadStoredProposals(str(store))) == (
        f"LoadStoredProposals(store='{store}')"
    )


FLIP = dict(
    type='RandomFlip',
    prob=[0.3, 0.3, 0.3],
    direction=['horizontal', 'vertical', 'diagonal'],
)
RESIZE = dict(
    type='RandomChoiceResize', scales=[(480, 300), (333, 222)], keep_ratio=True
)
CROP = dict(
    type='RandomCrop',
    crop_size=(0.3, 0.3),
    crop_type='relative_range',
    allow_negative_crop=True,
)
TURNS = [dict(type=name) for name in ('Rotate', 'ShearX', 'ShearY')]
SHIFTS = [dict(type=name) for name in ('TranslateX', 'TranslateY')]
RECORDED = {
    'resize': [RESIZE, dict(type='Resize', scale=(400, 100), keep_ratio=False)],
    'flip': [RESIZE, FLIP],
    'crop': [CROP, RESIZE, FLIP, CROP, dict(type='Pad', size=(600, 600))],
    'shortest edge': [dict(type='ResizeShortestEdge', scale=250, max_size=500)],
    'fixed shape': [dict(type='FixShapeResize', width=300, height=200)],
    'translate': [*SHIFTS, *SHIFTS, CROP],
    'turn': [*TURNS, FLIP, RESIZE],
    'all': [TURNS[0], CROP, SHIFTS[0], TURNS[1], FLIP, RESIZE, SHIFTS[1], TURNS[2]],
}
UNRECORDED = {
    'RandomShift': [dict(type='RandomShift', prob=1.0)],
    'Expand': [dict(type='Expand', prob=1.0)],
    'Expand, Resize': [dict(type='Expand', prob=1.0), RESIZE, FLIP],
    'MinIoURandomCrop': [dict(type='MinIoURandomCrop')],
    'MinIoURandomCrop, Resize': [dict(type='MinIoURandomCrop'), RESIZE, FLIP],
    'RandomAffine': [dict(type='RandomAffine')],
    'RandomCenterCropPad': [
        dict(
            type='RandomCenterCropPad',
            crop_size=(200, 200),
            # It never ends if no crop can reach a box; with 1.6 one can.
            ratios=(0.6, 0.8, 1.6),
            mean=[0, 0, 0],
            std=[1, 1, 1],
            to_rgb=False,
            test_pad_mode=None,
        )
    ],
}


def run_on_random_images(tmp_path, transforms, boxes_per_image, count):
    """How many of `count` random images the step refuses, and how many it sees."""
    seed = np.random.SeedSequence().entropy % 2**32
    print('seed', seed)
    np.random.seed(seed)  # MMDetection's transforms draw from the global state
    rng = np.random.default_rng(seed)
    width, height = 320, 240
    proposals = random_boxes(rng, 20, width, height)
    write_store(tmp_path / 'store', [('a', proposals, (width, height))], source='test')
    pipeline = Compose([dict(type='LoadAnnotations', with_bbox=True), *transforms])
    step = LoadStoredProposals(str(tmp_path / 'store'))
    refused = seen = 0
    for _ in range(count):
        gt = random_boxes(rng, boxes_per_image, width, height)
        results = pipeline(image_results(width, height, gt.tolist(), img_id='a'))
        if results is None or not len(results['gt_bboxes']):
            continue  # cropped away: MMDetection draws another image
        seen += 1
        try:
            step(results)
        except ValueError as error:
            assert 'homography_matrix' in str(error)
            refused += 1
    return refused, seen


@pytest.mark.parametrize('boxes_per_image', [1, 8])
@pytest.mark.parametrize('name', RECORDED)
def test_transforms_that_record_are_never_refused(tmp_path, name, boxes_per_image):
    refused, seen = run_on_random_images(tmp_path, RECORDED[name], boxes_per_image, 60)
    assert seen > 10 and refused == 0


@pytest.mark.parametrize('boxes_per_image', [1, 8])
@pytest.mark.parametrize('name', UNRECORDED)
def test_transforms_that_do_not_record_are_noticed(tmp_path, name, boxes_per_image):
    refused, seen = run_on_random_images(
        tmp_path, UNRECORDED[name], boxes_per_image, 40
    )
    assert refused > 5


def test_boxes_pasted_from_other_images_are_noticed(store):
    results = image_results(80, 70, gt=[(5, 5, 20, 20)])
    results['gt_bboxes'] = torch.tensor([[5, 5, 20, 20], [30.0, 30, 40, 40]])
    with pytest.raises(ValueError, match='homography_matrix'):
        LoadStoredProposals(str(store))(results)


def test_unrecorded_crop_of_an_image_without_ground_truth_is_noticed(store):
    results = image_results(80, 70)
    results['img_shape'] = (70, 60)
    with pytest.raises(ValueError, match='homography_matrix'):
        LoadStoredProposals(str(store))(results)


def test_annotations_loaded_too_early_in_a_test_pipeline_are_explained(store):
    resize = TRANSFORMS.build(dict(type='Resize', scale=(800, 700), keep_ratio=True))
    load = TRANSFORMS.build(dict(type='LoadAnnotations', with_bbox=True))
    results = load(resize(image_results(80, 70, gt=[(5, 5, 20, 20)])))
    with pytest.raises(ValueError, match='LoadAnnotations after LoadStoredProposals'):
        LoadStoredProposals(str(store))(results)


@pytest.mark.parametrize('box_type', ['hbox', None])
def test_ground_truth_of_no_area_and_plain_arrays_are_no_trouble(store, box_type):
    load = dict(type='LoadAnnotations', with_bbox=True, box_type=box_type)
    results = Compose([load])(image_results(80, 70, gt=[(5, 5, 5, 5), (9, 9, 30, 9)]))
    assert len(LoadStoredProposals(str(store))(results)['proposals']) == 2
