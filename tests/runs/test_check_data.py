import json
import os

import pytest
from mmdet.datasets import CocoDataset, VOCDataset
from mmengine.config import Config
from support import small_data
from support.tools import ROOT

from mmdet_ohem.proposals.store import write_store
from mmdet_ohem.runs.check_data import check_data

ERRORS = (OSError, ValueError)
BOX = '<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40.5</ymax></bndbox>'


def test_data_are_looked_for_inside_wrappers(tmp_path):
    (tmp_path / 'here.txt').touch()
    here = dict(data_root=str(tmp_path), ann_file='here.txt')
    gone = dict(data_root=str(tmp_path), ann_file='gone.txt')
    wrapped = dict(dataset=dict(type='RepeatDataset', dataset=dict(datasets=[here])))
    cfg = Config(dict(train_dataloader=wrapped, val_dataloader=None))
    check_data(cfg, ('train', 'val', 'test'))

    wrapped['dataset']['dataset']['datasets'].append(gone)
    cfg = Config(dict(train_dataloader=wrapped, data_help='Fetch it there.'))
    with pytest.raises(ERRORS, match='gone.txt, the list of train.*Fetch it there'):
        check_data(cfg, ('train',))


def test_the_help_for_a_missing_folder_is_its_own(tmp_path):
    config = Config.fromfile(ROOT / 'configs' / 'fast_rcnn_small_bccd.py')
    train = config.train_dataloader.dataset
    train.data_root = str(tmp_path / 'bccd/')
    config.data_help = {train.data_root: 'Fetch it there.'}
    with pytest.raises(ERRORS, match='is missing. Fetch it there'):
        check_data(config, ('train',))
    # A folder of the user's own in a config that inherits the example's.
    config = Config.fromfile(ROOT / 'configs' / 'fast_rcnn_small_bccd.py')
    config.train_dataloader.dataset.data_root = str(tmp_path / 'mine/')
    with pytest.raises(ERRORS) as error:
        check_data(config, ('train',))
    assert 'BCCD' not in str(error.value)
    assert 'Correct train_dataloader.dataset.data_root and ann' in str(error.value)


def test_an_unknown_class_is_named_with_its_file(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'JPEGImages').mkdir()
    for name in ('one', 'two'):
        (tmp_path / 'JPEGImages' / f'{name}.jpg').touch()
    (tmp_path / 'list.txt').write_text('one\n')
    (tmp_path / 'Annotations' / 'one.xml').write_text(
        f'<annotation><object><name>cat</name>{BOX}<part><name>head</name></part>'
        '</object><object><name>platlet</name></object></annotation>'
    )
    dataset = dict(
        type='VOCDataset',
        metainfo=dict(classes=('cat', 'platelet')),
        data_root=str(tmp_path),
        ann_file='list.txt',
    )
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    with pytest.raises(
        ERRORS,
        match=r"one.xml.*'platlet'.*train_dataloader.dataset.metainfo.clas",
    ):
        check_data(cfg, ('train',))
    cfg.ignored_classes = ('platlet',)
    check_data(cfg, ('train',))

    (tmp_path / 'list.txt').write_text('one\ntwo\n')
    with pytest.raises(ERRORS, match='two.xml is missing'):
        check_data(cfg, ('train',))


@pytest.mark.parametrize('scope', ['', 'mmdet.'])
def test_a_transform_that_moves_boxes_unrecorded_is_named(scope, tmp_path):
    (tmp_path / 'list.txt').touch()
    write_store(tmp_path / 'store', [('a', [[0, 0, 5, 5]], (9, 9))], source='by hand')
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'store'))
    inner = dict(data_root=str(tmp_path), ann_file='list.txt')

    def check(pipeline, *outer):
        dataset = dict(inner, pipeline=[dict(type='RandomFlip'), *pipeline])
        mixed = dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[*outer])
        check_data(Config(dict(train_dataloader=dict(dataset=mixed))), ('train',))

    moves = dict(type=f'{scope}InstaBoost')
    check([moves])  # no stored proposals, no trouble
    check([load])
    for pipelines in (
        [[moves, load]],
        [[dict(type='RandomApply', transforms=[moves]), load]],
        [[load], dict(type=f'{scope}Mosaic')],
    ):
        with pytest.raises(ERRORS, match='train_dataloader.*moves boxes.*homo'):
            check(*pipelines)


def test_proposals_read_before_the_image_is_resized_are_refused(tmp_path):
    (tmp_path / 'list.txt').touch()
    write_store(tmp_path / 'store', [('a', [[0, 0, 5, 5]], (9, 9))], source='by hand')
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'store'))
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]

    def check(*pipeline):
        dataset = dict(data_root=str(tmp_path), ann_file='list.txt', pipeline=pipeline)
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))

    check(dict(type='Resize'), load, dict(type='PackDetInputs'))
    check(dict(type='TestTimeAug', transforms=[flips, [load]]))
    with pytest.raises(ERRORS, match='Resize after LoadStoredProposals'):
        check(load, dict(type='mmdet.Resize'), dict(type='PackDetInputs'))
    with pytest.raises(ERRORS, match='RandomFlip after LoadStoredProposals'):
        check(dict(type='TestTimeAug', transforms=[[load], flips]))


def test_a_missing_proposal_store_is_one_sentence(tmp_path):
    (tmp_path / 'list.txt').touch()
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'gone'))
    dataset = dict(data_root=str(tmp_path), ann_file='list.txt', pipeline=[load])
    with pytest.raises(ERRORS, match='gone.*prepare_proposals.py'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))


def test_class_names_may_stand_in_a_file(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'JPEGImages').mkdir()
    (tmp_path / 'JPEGImages' / 'one.jpg').touch()
    (tmp_path / 'list.txt').write_text('one\n')
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    (tmp_path / 'Annotations' / 'one.xml').write_text(
        f'<annotation><object><name>dog</name>{BOX}</object></annotation>'
    )
    dataset = dict(
        type='mmdet.XMLDataset',
        metainfo=dict(classes=str(tmp_path / 'names.txt')),
        data_root=str(tmp_path),
        ann_file='list.txt',
    )
    check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))


@pytest.mark.parametrize(
    'old, new, words',
    [
        ('<xmax>30</xmax>', f'<xmax>{text}</xmax>', "xmax.*class 'dog'")
        for text in ('nan', '-inf', '1e300', 'wide', '')
    ]
    + [
        ('<xmax>30</xmax>', '', "xmax of an object of class 'dog' is 'None'"),
        (BOX, '', "xmin of an object of class 'dog' is 'None'"),
        ('<name>dog</name>', '', 'object of class None'),
        ('<difficult>0', '<difficult>no', "'difficult' of an object of class 'dog'"),
        ('<width>90', '<width>9O', 'size of the image is no number'),
        ('<height>80</height>', '', 'size of the image is no number'),
        (
            '<annotation>',
            '<?xml version="1.0" encoding="x-none"?><annotation>',
            'whole',
        ),
        ('<annotation>', f'<annotation>{"<a>" * 1000}', 'whole XML'),
    ],
)
def test_an_annotation_that_mmdetection_cannot_read_is_named(tmp_path, old, new, words):
    for folder in ('Annotations', 'JPEGImages'):
        (tmp_path / folder).mkdir()
    (tmp_path / 'JPEGImages' / 'one.jpg').touch()
    (tmp_path / 'list.txt').write_text('one\n')
    content = (
        '<annotation><size><width>90</width><height>80</height></size><object>'
        f'<name>dog</name><difficult>0</difficult>{BOX}</object></annotation>'
    )
    dataset = dict(
        type='VOCDataset',
        metainfo=dict(classes=('cat', 'dog')),
        data_root=str(tmp_path),
        ann_file='list.txt',
    )
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    annotation = tmp_path / 'Annotations' / 'one.xml'
    annotation.write_text(content)
    check_data(cfg, ('train',))
    annotation.write_text(content.replace(old, new))
    with pytest.raises(ERRORS, match=f'one.xml.*{words}'):
        check_data(cfg, ('train',))
    annotation.unlink()
    os.mkfifo(annotation)
    with pytest.raises(ERRORS, match='one.xml is missing'):
        check_data(cfg, ('train',))


@pytest.mark.parametrize(
    'content, words', [(b'\xff\n', 'is no list of images'), (b'', 'has no images')]
)
def test_a_list_without_names_of_images_is_named(tmp_path, content, words):
    (tmp_path / 'list.txt').write_bytes(content)
    dataset = dict(type='VOCDataset', data_root=str(tmp_path), ann_file='list.txt')
    with pytest.raises(ERRORS, match=f'list.txt {words}'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))


# ---------------------------------------------- the data sets of the paper, with a flaw


@pytest.fixture(scope='module')
def complete(tmp_path_factory):
    root = tmp_path_factory.mktemp('complete')
    small_data.write_everything(
        root, VOCDataset.METAINFO['classes'], CocoDataset.METAINFO['classes']
    )
    return root


@pytest.fixture
def data(complete, tmp_path, monkeypatch):
    """data/, to spoil: what is not renamed or written to is shared."""
    (tmp_path / 'data').mkdir()
    for folder in ('VOCdevkit', 'coco'):
        (tmp_path / 'data' / folder).mkdir()
        for part in (complete / 'data' / folder).iterdir():
            (tmp_path / 'data' / folder / part.name).symlink_to(part)
    monkeypatch.chdir(tmp_path)
    return tmp_path / 'data'


def load(name: str) -> Config:
    return Config.fromfile(ROOT / 'configs' / f'fast_rcnn_vgg16_ohem_{name}.py')


@pytest.mark.parametrize(
    'name', ['voc07', 'voc0712', 'voc12', 'voc07pp12', 'coco', 'coco_trainval']
)
def test_complete_data_pass(data, name):
    check_data(load(name), ('train', 'val', 'test'))


def test_another_year_is_named(data):
    (data / 'VOCdevkit' / 'VOC2007').unlink()
    with pytest.raises(
        ERRORS,
        match=r'VOC2007/ImageSets/Main/trainval.txt, the list of train images, is '
        r'missing \(of the years, data/VOCdevkit has VOC2012 alone\). Download',
    ):
        check_data(load('voc07'), ('train',))
    check_data(load('voc12'), ('train', 'test'))


def test_proposals_of_another_split_are_named_with_the_key(data):
    config = load('voc07')
    step = config.test_dataloader.dataset.pipeline[2]
    step.store = config.train_dataloader.dataset.pipeline[4].store
    with pytest.raises(
        ERRORS,
        match='voc_2007_trainval lacks 2 of the 2 images of .*VOC2007/ImageSets/Main/'
        'test.txt, .*000001.jpg first.*test_dataloader.dataset.pipeline',
    ):
        check_data(config, ('test',))

    config = load('coco')
    config.train_dataloader.dataset.pipeline[4].store = 'data/coco/mcg/val2014'
    with pytest.raises(ERRORS, match='val2014 lacks 3 of the 3 .*train2014.json'):
        check_data(config, ('train',))


def test_a_store_that_lacks_one_image_is_not_complete(data):
    config = load('voc07')
    store = 'data/some'
    small_data.write_proposals(store, small_data.VOC07['trainval'][:-1])
    config.train_dataloader.dataset.pipeline[4].store = store
    with pytest.raises(ERRORS, match='lacks 1 of the 3 images.*000009.jpg'):
        check_data(config, ('train',))


def test_a_missing_image_is_named_with_its_list(data):
    with pytest.raises(ERRORS, match='data/coco/val2014/COCO_val2014_.*is missing'):
        (data / 'coco' / 'val2014').unlink()
        check_data(load('coco'), ('val',))
    (data / 'VOCdevkit' / 'VOC2007').unlink()
    lists = dict(trainval=['000005'])
    small_data.write_voc(data / 'VOCdevkit' / 'VOC2007', lists, ['dog'])
    (data / 'VOCdevkit' / 'VOC2007' / 'JPEGImages' / '000005.jpg').unlink()
    with pytest.raises(ERRORS, match='JPEGImages/000005.jpg is missing.*trainval'):
        check_data(load('voc07'), ('train',))


def test_map_needs_annotations(data):
    config = load('voc12')
    config.test_evaluator = dict(type='VOCMetric', metric='mAP')
    with pytest.raises(
        ERRORS,
        match='Main/test.txt .*no mAP.*test_evaluator.*VOCServerFiles',
    ):
        check_data(config, ('test',))
    config.test_dataloader.dataset.type = 'VOCDataset'
    with pytest.raises(ERRORS, match='2008_000001.xml is missing.*voc12.py does'):
        check_data(config, ('test',))

    config = load('coco_testdev')
    config.test_evaluator.format_only = False
    with pytest.raises(
        ERRORS,
        match='test-dev2015.json .*no AP.*test_evaluator.format_only=True',
    ):
        check_data(config, ('test',))


def test_training_needs_annotations(data):
    config = load('coco')
    config.train_dataloader.dataset.update(
        ann_file='annotations/image_info_test-dev2015.json',
        data_prefix=dict(img='test2015/'),
    )
    with pytest.raises(ERRORS, match='no annotations to train on'):
        check_data(config, ('train',))


def test_a_broken_annotation_file_is_one_sentence(data):
    broken = data / 'broken.json'
    config = load('coco')
    config.train_dataloader.dataset.ann_file = str(broken)
    for content in ('{"images": [', json.dumps(dict(pictures=[]))):
        broken.write_text(content)
        with pytest.raises(ERRORS, match='broken.json is no COCO annotation file'):
            check_data(config, ('train',))


def test_a_folder_of_dota_is_read(tmp_path):
    """MMRotate's DOTADataset: text files in a folder, images in another."""
    dataset = dict(
        type='mmrotate.DOTADataset',
        data_root=str(tmp_path),
        ann_file='annfiles/',
        data_prefix=dict(img_path='images/'),
    )
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    for folder in ('annfiles', 'images'):
        (tmp_path / folder).mkdir()
        with pytest.raises(ERRORS, match='annfiles, the list of train images, is mis'):
            check_data(cfg, ('train',))
    (tmp_path / 'annfiles' / 'P0001.txt').touch()
    with pytest.raises(ERRORS, match='images/P0001.png is missing'):
        check_data(cfg, ('train',))
    (tmp_path / 'images' / 'P0001.png').touch()
    check_data(cfg, ('train',))

    cfg.test_dataloader = dict(dataset=dict(dataset, ann_file=''))  # images alone
    check_data(cfg, ('test',))
    cfg.train_dataloader.dataset.ann_file = ''
    with pytest.raises(ERRORS, match='no annotations to train on'):
        check_data(cfg, ('train',))


@pytest.mark.parametrize(
    'part, key, value, words',
    [
        (
            'annotations',
            'bbox',
            [1, 2, float('nan'), 4],
            r'bbox of annotation 2 is \[1,',
        ),
        ('annotations', 'bbox', [1, 2, float('inf'), 4], 'bbox of annotation 2'),
        ('annotations', 'bbox', [1, 2, '30', 4], 'bbox of annotation 2'),
        ('annotations', 'bbox', [1, 2, 30], 'bbox of annotation 2'),
        ('annotations', 'bbox', None, 'bbox of annotation 2'),
        ('annotations', 'bbox', 'gone', "KeyError: 'bbox'"),
        ('annotations', 'area', 'large', 'area of annotation 2'),
        ('annotations', 'category_id', [1], 'category_id of annotation 2'),
        ('annotations', 'image_id', 'gone', "KeyError: 'image_id'"),
        ('annotations', 'id', 1, 'two annotations have the id 1'),
        ('images', 'width', 'gone', "KeyError: 'width'"),
        ('images', 'height', 0, 'size of image'),
        ('images', 'file_name', 7, 'TypeError'),
        ('categories', 'name', 7, 'a category has no name or no id'),
        ('categories', 'id', {}, 'a category has no name or no id'),
    ],
)
def test_an_entry_that_mmdetection_cannot_read_is_named(data, part, key, value, words):
    config = load('coco')
    dataset = config.train_dataloader.dataset
    content = json.loads((data / 'coco' / dataset.ann_file).read_text())
    entry = content[part][1]
    if value == 'gone':
        del entry[key]
    else:
        entry[key] = value
    dataset.ann_file = str(data / 'broken.json')
    (data / 'broken.json').write_text(json.dumps(content))
    with pytest.raises(ERRORS, match=f'broken.json is no COCO annotation.*{words}'):
        check_data(config, ('train',))


def test_annotations_that_mmdetection_leaves_out_may_stay(data):
    config = load('coco')
    dataset = config.train_dataloader.dataset
    content = json.loads((data / 'coco' / dataset.ann_file).read_text())
    content['annotations'][0].update(ignore=True, bbox=None)
    content['annotations'].append(dict(id=1, image_id='other', category_id=0))
    dataset.ann_file = str(data / 'part.json')
    (data / 'part.json').write_text(json.dumps(content))
    check_data(config, ('train',))


def test_json_that_is_nested_deeply_is_one_sentence(data):
    config = load('coco')
    config.train_dataloader.dataset.ann_file = str(data / 'deep.json')
    (data / 'deep.json').write_text('[' * 100_000)
    with pytest.raises(ERRORS, match='deep.json is no COCO annotation file'):
        check_data(config, ('train',))
