"""Pictures without objects: the data set, what is struck off, training with them."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATA_SAMPLERS, DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from support import small_data
from support.tools import ROOT

from mmdet_ohem.datasets import (
    FalsePositives,
    read_background,
    with_background,
    write_background,
)
from mmdet_ohem.datasets import background as module
from mmdet_ohem.proposals import write_store
from mmdet_ohem.runs import check_data

CLASSES = ('cat', 'dog')
ERRORS = (OSError, ValueError)
SIZE = dict(width=small_data.WIDTH, height=small_data.HEIGHT)
LOAD = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
STEPS = [
    *LOAD,
    dict(type='Resize', scale=(80, 60), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]


@pytest.fixture
def pool(tmp_path) -> Path:
    """Four pictures, two of them in a folder below."""
    rng = np.random.default_rng(0)
    for name in ('a.jpg', 'b.png', 'c d/1.jpg', 'c d/2.jpg'):
        small_data.write_image(tmp_path / 'pool' / name, rng)
    return tmp_path / 'pool'


def false_positives(pool: Path, img_id: str, *boxes, suffix='.jpg') -> FalsePositives:
    file = str(pool / f'{img_id}{suffix}')
    labels, scores = ['cat'] * len(boxes), [0.9] * len(boxes)
    return FalsePositives(img_id, file, **SIZE, boxes=[*boxes], labels=labels,
                          scores=scores)  # fmt: skip


@pytest.fixture
def mined(pool) -> Path:
    """A background set of three pictures; the second has two false positives."""
    images = [
        false_positives(pool, 'c d/1', [1.4, 2.0, 30.6, 40.0]),
        false_positives(pool, 'a', [5, 6, 50, 60], [70.2, 10.4, 90, 80]),
        false_positives(pool, 'b', [0, 0, 20, 20], suffix='.png'),
    ]
    path = pool.parent / 'mined' / 'background.jsonl'
    write_background(path, dict(classes=CLASSES, images=3), images)
    return path


def build(**others):
    return DATASETS.build(dict(type='mmdet_ohem.BackgroundDataset', **others))


def ids_of(dataset) -> list[str]:
    return [dataset.get_data_info(i)['img_id'] for i in range(len(dataset))]


def test_all_pictures_of_a_folder_a_pattern_or_a_list(pool):
    classes = dict(metainfo=dict(classes=CLASSES))
    dataset = build(img_path=str(pool), **classes)
    assert ids_of(dataset) == ['a', 'b']
    assert dataset.get_data_info(1) == dict(
        img_id='b', img_path=str(pool / 'b.png'), **SIZE,
        instances=[], struck_off=[], sample_idx=1,
    )  # fmt: skip
    assert dataset.metainfo['classes'] == CLASSES

    dataset = build(img_path=f'{pool}/**/*', **classes)
    assert ids_of(dataset) == ['a', 'b', 'c d/1', 'c d/2']
    (pool / 'some.txt').write_text('c d/2.jpg\n\nc d/../a.jpg\nc d/2.jpg\n')
    dataset = build(img_path=str(pool / 'some.txt'), **classes)
    assert ids_of(dataset) == ['a', 'c d/2']


def test_a_background_set_reads_back_and_knows_its_classes(mined, pool):
    first, *_, last = read_background(mined)
    assert first == false_positives(pool, 'c d/1', [1.4, 2.0, 30.6, 40.0])
    assert first.names == ['c d/1 1,2,31,40']
    assert last.img_id == 'b'
    dataset = build(background_set=str(mined))
    assert ids_of(dataset) == ['c d/1', 'a', 'b']
    assert dataset.metainfo['classes'] == CLASSES


def test_what_is_struck_off_stays_out(mined, pool, monkeypatch):
    """A picture, a box beside which there is another, and one of a second set."""
    other = mined.parents[1] / 'later' / mined.name
    images = [false_positives(pool, 'c d/2', [3, 3, 9, 9]),
              false_positives(pool, 'b', [4, 4, 40, 40], suffix='.png')]  # fmt: skip
    write_background(other, dict(classes=CLASSES, images=2), images)
    sets = [str(mined), str(other)]
    pipeline = [LOAD[0]]
    everything = build(background_set=sets, pipeline=pipeline)
    assert ids_of(everything) == ['c d/1', 'a', 'b', 'c d/2']
    plain = {data['img_id']: data['img'] for data in everything}

    (mined.parent / 'struck_off.txt').write_text('\nc d/1\na 70,10,90,80 \n')
    (other.parent / 'struck_off.txt').write_text('c d/2 3,3,9,9\n')
    logged = []
    monkeypatch.setattr(module, 'print_log', lambda *words: logged.append(words))
    dataset = build(background_set=sets, pipeline=pipeline)
    said = (
        '2 pictures to train on, 2 struck off; in those that stay 1 boxes are painted'
    )
    said = f'{sets[0]} and {sets[1]}: {said} over.'
    assert logged == [(said, 'current')]
    assert ids_of(dataset) == ['a', 'b']
    found = {data['img_id']: data['img'] for data in dataset}
    assert np.array_equal(found['b'], plain['b'])
    inside = np.zeros(plain['a'].shape[:2], bool)
    inside[10:81, 70:91] = True
    assert np.array_equal(found['a'][~inside], plain['a'][~inside])
    mean = plain['a'].reshape(-1, 3).mean(axis=0).astype(np.uint8)
    assert (found['a'][inside] == mean).all()

    (other.parent / 'struck_off.txt').write_text('b 4,4,40,40\nb 0,0,20,20\n')
    assert ids_of(build(background_set=sets)) == ['a', 'c d/2']


@pytest.mark.parametrize('line', ['nobody', 'a 1,2,3,4', 'a 5,6,50', 'a  ', 'c'])
def test_an_unknown_name_among_what_is_struck_off_is_named(mined, line):
    (mined.parent / 'struck_off.txt').write_text(f'b\n{line}\n')
    if line.strip() == 'a':
        assert ids_of(build(background_set=str(mined))) == ['c d/1']
        return
    with pytest.raises(ERRORS, match=f"struck_off.txt names '{line}', which is no pic"):
        build(background_set=str(mined))


def test_pictures_of_one_name_in_two_pools_are_refused(mined, pool):
    later = mined.parents[1] / 'later' / mined.name
    image = false_positives(pool, 'b', [4, 4, 40, 40], suffix='.png')
    write_background(later, dict(classes=CLASSES, images=1), [image])
    assert ids_of(build(background_set=[str(mined), str(later)]))  # the same picture
    image.file = str(pool / 'a.jpg')
    write_background(later, dict(classes=CLASSES, images=1), [image])
    with pytest.raises(ERRORS, match=r'b.png and .*a.jpg are both called b in their'):
        build(background_set=[str(mined), str(later)])
    image.file = 'gone.jpg'
    write_background(later, dict(classes=CLASSES, images=1), [image])
    with pytest.raises(ERRORS, match=r'gone.jpg of the background set .*later/'):
        build(background_set=[str(mined), str(later)])


def test_bad_sets_are_one_sentence(mined, pool):
    good = mined.read_text()
    lines = good.splitlines()
    with pytest.raises(ERRORS, match='no background set nowhere.jsonl: make it with'):
        build(background_set='nowhere.jsonl')
    cases = {
        '': 'background.jsonl is no background set',
        'no JSON\n': 'background.jsonl is no background set',
        '[' * 100000: 'background.jsonl is no background set',
        '{"format": "other", "images": 3, "classes": []}': 'is no background set',
        '\n'.join(lines[:3]): 'has 2 of its 3 pictures',
        good[:-20]: 'Line 4 of the background set .* is damaged',
        good.replace('20]', 'NaN]'): 'Line 4 .* is damaged .a box is not four',
        good.replace('["cat"]', '[]'): 'Line 2 .* is damaged .*differ in number',
        good.replace('"width": 120', '"width": 0'): 'Line 2 .*a size or a score',
        good.replace('"a"', '7'): 'Line 3 .*a name is no text',
        good.replace('"file"', '"path"'): 'Line 2 .* is damaged',
    }
    for text, words in cases.items():
        mined.write_text(text)
        with pytest.raises(ERRORS, match=words):
            build(background_set=str(mined))
    mined.write_text(good)
    with pytest.raises(ERRORS, match=r'other classes \(cat, dog\) than .* \(dog, cat'):
        build(background_set=str(mined), metainfo=dict(classes=('dog', 'cat')))
    with pytest.raises(ERRORS, match='needs either img_path'):
        build(background_set=str(mined), img_path=str(pool))
    with pytest.raises(ERRORS, match='img_path needs metainfo=dict'):
        build(img_path=str(pool))
    (mined.parent / 'struck_off.txt').write_text('a\nb\nc d/1\n')
    with pytest.raises(ERRORS, match='no false positive to train on, or all are str'):
        build(background_set=str(mined))
    (mined.parent / 'struck_off.txt').unlink()
    (pool / 'a.jpg').unlink()
    with pytest.raises(ERRORS, match='a.jpg of the background set .* is missing'):
        build(background_set=str(mined))


def test_bad_pools_are_one_sentence(pool):
    classes = dict(metainfo=dict(classes=CLASSES))
    (pool / 'none.txt').write_text('\n')
    (pool / 'gone.txt').write_text('a.jpg\ntypo/1.jpg\n')
    cases = {
        'c': 'c is not there',
        '*.gif': 'is not there',
        'empty': 'empty has no picture in it',
        'none.txt': 'none.txt names no picture',
        'gone.txt': '^1 of the 2 pictures .*gone.txt .* not there, .*/typo/1.jpg first',
    }
    (pool / 'empty').mkdir()
    for name, words in cases.items():
        with pytest.raises(ERRORS, match=words):
            build(img_path=str(pool / name), **classes)
    (pool / 'a.png').write_text('no picture')
    with pytest.raises(ERRORS, match=r'a.jpg and .*a.png have the same image id'):
        build(img_path=str(pool), **classes)
    (pool / 'a.jpg').unlink()
    with pytest.raises(ERRORS, match=r'a.png cannot be read as an image'):
        build(img_path=str(pool), **classes)


# ------------------------------------------------------------------ beside other data


@pytest.fixture
def own(tmp_path) -> dict:
    """The loader of a data set in VOC layout, three images."""
    small_data.write_voc(tmp_path / 'own', small_data.VOC07, CLASSES)
    dataset = dict(
        type='VOCDataset',
        data_root=f'{tmp_path}/own/',
        data_prefix=dict(sub_data_root=''),
        ann_file='ImageSets/Main/trainval.txt',
        metainfo=dict(classes=CLASSES),
        pipeline=STEPS,
    )
    return dict(batch_size=4, num_workers=0, dataset=dataset)


def config_of(loader: dict, **others) -> Config:
    others.setdefault('train_cfg', dict(type='IterBasedTrainLoop', max_iters=4))
    return Config(dict(train_dataloader=loader, **others))


def test_a_share_of_each_batch_is_background(own, mined):
    loader = with_background(own, share=0.25, background_set=str(mined))
    assert loader.pop('_delete_')
    check_data(config_of(loader), ('train',))
    dataset = DATASETS.build(loader['dataset'])
    assert dataset.metainfo['classes'] == CLASSES
    sampler = DATA_SAMPLERS.build(
        loader['sampler'], default_args=dict(dataset=dataset, seed=0)
    )
    indices = list(islice(iter(sampler), 80))
    for start in range(0, 80, 4):
        batch = [dataset[i]['data_samples'] for i in indices[start : start + 4]]
        is_background = [len(s.gt_instances) + len(s.ignored_instances) == 0
                         for s in batch]  # fmt: skip
        assert sum(is_background) == 1
    # Without a share both are shuffled together.
    loader = with_background(own, background_set=str(mined))
    assert 'sampler' not in loader and len(DATASETS.build(loader['dataset'])) == 6


@pytest.mark.parametrize('share, least', [(0.2, 5), (0.01, 100)])
def test_a_share_that_gives_no_image_is_refused(own, pool, share, least):
    """MMDetection's sampler would never come back."""
    words = f'batch of 4 images holds none of .*batch_size to at least {least}'
    with pytest.raises(ERRORS, match=words):
        with_background(own, share=share, img_path=str(pool))
    larger = with_background(dict(own, batch_size=least), share, img_path=str(pool))
    assert larger['sampler']['batch_size'] == least
    by_hand = dict(larger, sampler=dict(larger['sampler'], batch_size=least - 1))
    with pytest.raises(ERRORS, match=f'batch_size to at least {least}'):
        check_data(config_of(by_hand), ('train',))
    changed = dict(larger, batch_size=2)  # as --cfg-options would
    with pytest.raises(ERRORS, match=f'batch_size is 2, and its .* batches of {least}'):
        check_data(config_of(changed), ('train',))


@pytest.mark.parametrize('share', [25, 1.0, 0, -0.5, float('nan')])
def test_a_share_that_is_no_fraction_is_refused(own, pool, share):
    with pytest.raises(ERRORS, match=f'share is {share}; it must be the fraction'):
        with_background(own, share=share, img_path=str(pool))


@pytest.mark.parametrize(
    'source_ratio, words',
    [([-24, 25], r'source_ratio is \[-24, 25\], .* negative'), ([1, 0], 'to more, or')],
)
def test_a_ratio_by_hand_that_never_fills_a_batch_is_refused(
    own, pool, source_ratio, words
):
    loader = with_background(own, share=0.5, img_path=str(pool))
    loader['sampler']['source_ratio'] = source_ratio
    with pytest.raises(ERRORS, match=words):
        check_data(config_of(loader), ('train',))


def test_a_share_needs_a_loop_of_iterations(own, pool):
    loader = with_background(own, share=0.5, img_path=str(pool))
    for loop in (dict(type='EpochBasedTrainLoop', max_epochs=2), dict(by_epoch=True)):
        with pytest.raises(ERRORS, match='never ends an epoch: set train_cfg'):
            check_data(config_of(loader, train_cfg=loop), ('train',))


@pytest.mark.parametrize(
    'step, mended',
    [
        (dict(type='RandomCrop', crop_size=(8, 8)), dict(allow_negative_crop=True)),
        (dict(type='mmdet.FilterAnnotations'), dict(keep_empty=False)),
        (dict(type='Albu', skip_img_without_anno=True), dict(skip_img_without_anno=0)),
    ],
)
def test_a_transform_that_drops_background_is_named(own, pool, step, mended):
    def check(step, outside=False):
        pipeline = [*LOAD, *([] if outside else [step])]
        loader = with_background(own, img_path=str(pool), pipeline=pipeline)
        if outside:
            loader['dataset'] = dict(
                type='MultiImageMixDataset', dataset=loader['dataset'], pipeline=[step]
            )
        check_data(config_of(loader), ('train',))

    (key,) = mended
    for outside in (False, True):
        with pytest.raises(ERRORS, match=f'drops every picture of Back.*: set {key}='):
            check(step, outside)
        check(dict(step, **mended), outside)
    # The user's own images may be dropped.
    own['dataset']['pipeline'] = [*LOAD, step]
    loader = with_background(own, img_path=str(pool), pipeline=LOAD)
    check_data(config_of(loader), ('train',))


def test_own_images_without_objects_that_are_left_out_are_said(own, tmp_path):
    own['dataset']['filter_cfg'] = dict(filter_empty_gt=True)
    empty = tmp_path / 'own' / 'Annotations' / '000007.xml'
    empty.write_text('<annotation></annotation>')
    words = '1 of the 3 images of .*trainval.txt have no object and are left out'
    with pytest.warns(UserWarning, match=words):
        check_data(config_of(own), ('train',))

    content = small_data.write_coco(tmp_path, 'train2014', CLASSES, '{}.jpg')
    kept = [a for a in content['annotations'] if a['image_id'] != 25]
    path = tmp_path / 'annotations' / 'instances_train2014.json'
    path.write_text(json.dumps(dict(content, annotations=kept)))
    own['dataset'] = dict(
        type='CocoDataset',
        data_root=str(tmp_path),
        ann_file='annotations/instances_train2014.json',
        data_prefix=dict(img='train2014'),
        filter_cfg=dict(filter_empty_gt=True),
    )
    with pytest.warns(UserWarning, match='1 of the 3 images .*filter_empty_gt=False'):
        check_data(config_of(own), ('train',))


def test_data_of_other_classes_and_missing_proposals_are_named(own, mined, tmp_path):
    own['dataset']['metainfo'] = dict(classes=('cat', 'cow', 'dog'))
    del own['dataset']['pipeline']
    loader = with_background(own, background_set=str(mined), metainfo={}, pipeline=[])
    words = r'joins data of the classes cat, cow, dog with .*others \(cat, dog\)'
    with pytest.raises(ERRORS, match=words):
        check_data(config_of(loader), ('train',))

    own['dataset']['metainfo'] = dict(classes=CLASSES)
    for name, ids in dict(one=['a'], both=['a', 'b', 'c d/1']).items():
        records = [(i, np.array([[0, 0, 9, 9]]), (120, 90)) for i in ids]
        write_store(tmp_path / name, records, source='by hand')
    own['dataset']['pipeline'] = [
        *LOAD,
        dict(type='mmdet_ohem.LoadStoredProposals', store='nowhere'),
    ]
    mine = dict(background_set=str(mined))
    good = with_background(own, store=str(tmp_path / 'both'), **mine)
    good['dataset'] = good['dataset']['datasets'][1]  # the other lacks its store
    check_data(config_of(good), ('train',))
    assert DATASETS.build(good['dataset'])[0]['proposals'].tolist() == [[0, 0, 9, 9]]
    bad = with_background(own, store=str(tmp_path / 'one'), **mine)
    bad['dataset'] = bad['dataset']['datasets'][1]
    words = 'lacks 2 of the 3 images of .*background.jsonl.*with_background store='
    with pytest.raises(ERRORS, match=words):
        check_data(config_of(bad), ('train',))


# -------------------------------------------------------------------------- training


def fast_rcnn_vgg(num_classes: int) -> dict:
    config = Config.fromfile(ROOT / 'configs' / 'fast_rcnn_vgg16_voc07.py')
    head = config.model.roi_head.bbox_head
    head.update(fc_out_channels=(24, 16), num_classes=num_classes, init_cfg=None)
    config.model.backbone.init_cfg = None
    return config.model


def faster_rcnn_fpn(num_classes: int) -> dict:
    from mmengine.hub import get_config

    model = get_config('mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py').model
    model.backbone.update(depth=18, init_cfg=None)
    model.neck.update(in_channels=[64, 128, 256, 512])
    model.roi_head.bbox_head.update(num_classes=num_classes, fc_out_channels=16)
    return model


SAMPLERS = dict(
    random=dict(type='RandomSampler', num=16, pos_fraction=0.25),
    mmdet=dict(type='OHEMSampler', num=16, pos_fraction=0.25),
    ours=dict(type='mmdet_ohem.OHEMSampler', num=16),
)


@pytest.mark.parametrize('sampler', SAMPLERS)
@pytest.mark.parametrize('make', [fast_rcnn_vgg, faster_rcnn_fpn])
def test_a_batch_with_and_one_of_background_alone_is_trained_on(
    make, sampler, own, mined, tmp_path
):
    rng = np.random.default_rng(0)
    stores = {}
    for name, ids in dict(
        own=small_data.VOC07['trainval'], mined=['a', 'b', 'c d/1']
    ).items():
        records = [(i, small_data.draw_boxes(rng, 40), (120, 90)) for i in ids]
        stores[name] = str(tmp_path / f'proposals_{name}')
        write_store(stores[name], records, source='at random')
    model = make(len(CLASSES))
    model.train_cfg.rcnn.sampler = SAMPLERS[sampler]
    is_fast = model.type == 'FastRCNN'
    if is_fast:
        load = dict(type='mmdet_ohem.LoadStoredProposals', store=stores['own'])
        own['dataset']['pipeline'] = [*STEPS[:-1], load, STEPS[-1]]
    loader = with_background(
        own, 0.25, stores['mined'] if is_fast else None, background_set=str(mined)
    )
    loader.pop('_delete_')
    check_data(config_of(loader), ('train',))
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(model).train()
    batch = next(iter(Runner.build_dataloader(loader, seed=0)))
    numbers = [len(s.gt_instances) for s in batch['data_samples']]
    assert sum(number == 0 for number in numbers) == 1, numbers
    background = DATASETS.build(loader['dataset']).datasets[1]
    alone = pseudo_collate([background[0], background[1]])
    for data in (batch, alone):
        losses = detector(**detector.data_preprocessor(data, True), mode='loss')
        total, values = detector.parse_losses(losses)
        assert torch.isfinite(total) and values['loss_cls'] > 0
        detector.zero_grad()
        total.backward()
        gradient = (detector.roi_head.bbox_head.fc_cls.weight.grad).abs().sum()
        assert torch.isfinite(gradient) and gradient > 0
    assert values['loss_bbox'] == 0


def test_a_config_inherits_and_takes_it(mined, tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text(
        f"""
_base_ = {str(ROOT / 'configs' / 'faster_rcnn_vgg16_ohem_voc07.py')!r}

from mmdet_ohem.datasets import with_background

train_dataloader = with_background(
    _base_.train_dataloader, share=0.5, background_set={str(mined)!r}, store='mined'
)
"""
    )
    loader = Config.fromfile(path).train_dataloader
    assert '_delete_' not in loader
    assert loader.dataset.type == 'ConcatDataset' and 'data_root' not in loader.dataset
    voc, background = loader.dataset.datasets
    assert voc.type == 'VOCDataset' and background.background_set == str(mined)
    *steps, last = voc.pipeline
    load = dict(type='mmdet_ohem.LoadStoredProposals', store='mined')
    assert background.pipeline == [*steps, load, last]
    assert loader.sampler.source_ratio == [1, 1] and loader.batch_size == 2
