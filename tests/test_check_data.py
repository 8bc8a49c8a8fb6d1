import json

import pytest
import small_data
from conftest import ROOT
from mmdet.datasets import CocoDataset, VOCDataset
from mmengine.config import Config

from mmdet_ohem.check_data import check_data
from mmdet_ohem.proposal_store import write_store


def test_data_are_looked_for_inside_wrappers(tmp_path):
    (tmp_path / 'here.txt').touch()
    here = dict(data_root=str(tmp_path), ann_file='here.txt')
    gone = dict(data_root=str(tmp_path), ann_file='gone.txt')
    wrapped = dict(dataset=dict(type='RepeatDataset', dataset=dict(datasets=[here])))
    cfg = Config(dict(train_dataloader=wrapped, val_dataloader=None))
    check_data(cfg, ('train', 'val', 'test'))

    wrapped['dataset']['dataset']['datasets'].append(gone)
    cfg = Config(dict(train_dataloader=wrapped, data_help='Fetch it there.'))
    with pytest.raises(SystemExit, match='gone.txt, the list of train.*Fetch it there'):
        check_data(cfg, ('train',))


def test_an_unknown_class_is_named_with_its_file(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'JPEGImages').mkdir()
    for name in ('one', 'two'):
        (tmp_path / 'JPEGImages' / f'{name}.jpg').touch()
    (tmp_path / 'list.txt').write_text('one\n')
    (tmp_path / 'Annotations' / 'one.xml').write_text(
        '<annotation><object><name>cat</name><part><name>head</name></part></object>'
        '<object><name>platlet</name></object></annotation>'
    )
    dataset = dict(
        type='VOCDataset',
        metainfo=dict(classes=('cat', 'platelet')),
        data_root=str(tmp_path),
        ann_file='list.txt',
    )
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    with pytest.raises(
        SystemExit, match=r"one.xml.*'platlet'.*train_dataloader.dataset.metainfo.clas"
    ):
        check_data(cfg, ('train',))
    cfg.ignored_classes = ('platlet',)
    check_data(cfg, ('train',))

    (tmp_path / 'list.txt').write_text('one\ntwo\n')
    with pytest.raises(SystemExit, match='two.xml is missing'):
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
        with pytest.raises(SystemExit, match='train_dataloader.*moves boxes.*homo'):
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
    with pytest.raises(SystemExit, match='Resize after LoadStoredProposals'):
        check(load, dict(type='mmdet.Resize'), dict(type='PackDetInputs'))
    with pytest.raises(SystemExit, match='RandomFlip after LoadStoredProposals'):
        check(dict(type='TestTimeAug', transforms=[[load], flips]))


def test_a_missing_proposal_store_is_one_sentence(tmp_path):
    (tmp_path / 'list.txt').touch()
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'gone'))
    dataset = dict(data_root=str(tmp_path), ann_file='list.txt', pipeline=[load])
    with pytest.raises(SystemExit, match='gone.*prepare_proposals.py'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))


def test_class_names_may_stand_in_a_file(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'JPEGImages').mkdir()
    (tmp_path / 'JPEGImages' / 'one.jpg').touch()
    (tmp_path / 'list.txt').write_text('one\n')
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    (tmp_path / 'Annotations' / 'one.xml').write_text(
        '<annotation><object><name>dog</name></object></annotation>'
    )
    dataset = dict(
        type='mmdet.XMLDataset',
        metainfo=dict(classes=str(tmp_path / 'names.txt')),
        data_root=str(tmp_path),
        ann_file='list.txt',
    )
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
        SystemExit,
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
        SystemExit,
        match='voc_2007_trainval lacks 2 of the 2 images of .*VOC2007/ImageSets/Main/'
        'test.txt, .*000001.jpg first.*test_dataloader.dataset.pipeline',
    ):
        check_data(config, ('test',))

    config = load('coco')
    config.train_dataloader.dataset.pipeline[4].store = 'data/coco/mcg/val2014'
    with pytest.raises(SystemExit, match='val2014 lacks 3 of the 3 .*train2014.json'):
        check_data(config, ('train',))


def test_a_store_that_lacks_one_image_is_not_complete(data):
    config = load('voc07')
    store = 'data/some'
    small_data.write_proposals(store, small_data.VOC07['trainval'][:-1])
    config.train_dataloader.dataset.pipeline[4].store = store
    with pytest.raises(SystemExit, match='lacks 1 of the 3 images.*000009.jpg'):
        check_data(config, ('train',))


def test_a_missing_image_is_named_with_its_list(data):
    with pytest.raises(SystemExit, match='data/coco/val2014/COCO_val2014_.*is missing'):
        (data / 'coco' / 'val2014').unlink()
        check_data(load('coco'), ('val',))
    (data / 'VOCdevkit' / 'VOC2007').unlink()
    lists = dict(trainval=['000005'])
    small_data.write_voc(data / 'VOCdevkit' / 'VOC2007', lists, ['dog'])
    (data / 'VOCdevkit' / 'VOC2007' / 'JPEGImages' / '000005.jpg').unlink()
    with pytest.raises(SystemExit, match='JPEGImages/000005.jpg is missing.*trainval'):
        check_data(load('voc07'), ('train',))


def test_map_needs_annotations(data):
    config = load('voc12')
    config.test_evaluator = dict(type='VOCMetric', metric='mAP')
    with pytest.raises(
        SystemExit, match='Main/test.txt .*no mAP.*test_evaluator.*VOCServerFiles'
    ):
        check_data(config, ('test',))
    config.test_dataloader.dataset.type = 'VOCDataset'
    with pytest.raises(SystemExit, match='2008_000001.xml is missing.*voc12.py does'):
        check_data(config, ('test',))

    config = load('coco_testdev')
    config.test_evaluator.format_only = False
    with pytest.raises(
        SystemExit, match='test-dev2015.json .*no AP.*test_evaluator.format_only=True'
    ):
        check_data(config, ('test',))


def test_training_needs_annotations(data):
    config = load('coco')
    config.train_dataloader.dataset.update(
        ann_file='annotations/image_info_test-dev2015.json',
        data_prefix=dict(img='test2015/'),
    )
    with pytest.raises(SystemExit, match='no annotations to train on'):
        check_data(config, ('train',))


def test_a_broken_annotation_file_is_one_sentence(data):
    broken = data / 'broken.json'
    config = load('coco')
    config.train_dataloader.dataset.ann_file = str(broken)
    for content in ('{"images": [', json.dumps(dict(pictures=[]))):
        broken.write_text(content)
        with pytest.raises(SystemExit, match='broken.json is no COCO annotation file'):
            check_data(config, ('train',))
