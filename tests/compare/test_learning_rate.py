"""The learning rate of each sampler, chosen on a validation split, with tools that only
pretend to train."""

import shutil

import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from support import small_data
from support.tools import ROOT, run_tool_here

from mmdet_ohem.compare import compare
from mmdet_ohem.compare.learning_rate import best_rates, rates_table, split_config

CONFIG = ROOT / 'configs' / 'fast_rcnn_small_ohem_lookalikes.py'
CLASSES = ('washer', 'nut', 'gear')
LISTS = dict(train=['1', '2'], val=['3'], trainval=['1', '2', '3'], test=['8', '9'])
SPLIT = ('ImageSets/Main/train.txt', 'ImageSets/Main/val.txt')
TRAIN = """
import json, shutil, sys
from pathlib import Path
work_dir = Path(sys.argv[4])
log = work_dir / '20260101' / 'vis_data'
log.mkdir(parents=True)
line = json.dumps(dict(step=20, loss=1.0, time=0.25))
(log / 'scalars.json').write_text(line + chr(10))
shutil.copy(Path(__file__).with_name('iter_20.pth'), work_dir)
(work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_20.pth'))
"""
# Random sampling is best at 0.04, others at 0.01.
TEST = """
import json, runpy, sys
from pathlib import Path
config = runpy.run_path(sys.argv[1])
lr = config['optim_wrapper']['optimizer']['lr']
sampler = config['model']['train_cfg']['rcnn']['sampler']['type']
score = 0.9 - abs(lr - (0.04 if sampler == 'RandomSampler' else 0.01))
folder = Path(sys.argv[4], '20260101')
folder.mkdir(parents=True)
(folder / '20260101.json').write_text(json.dumps({'pascal_voc/mAP': score}))
"""


@pytest.fixture
def root(tmp_path):
    small_data.write_voc(tmp_path / 'data', LISTS, CLASSES)
    return tmp_path / 'data'


@pytest.fixture
def config(root) -> Config:
    config = Config.fromfile(CONFIG)
    for loader in (config.train_dataloader, config.test_dataloader):
        loader.dataset.data_root = f'{root}/'
    config.train_dataloader.dataset.update(
        ann_file='ImageSets/Main/trainval.txt',
        # As configs/_base_/datasets/bccd.py has it.
        filter_cfg=dict(filter_empty_gt=False, bbox_min_size=1),
    )
    config.background_dataloader = config.test_dataloader
    return config


def ids_of(dataset) -> list[str]:
    built = DATASETS.build(dict(dataset, pipeline=[]))
    return [built.get_data_info(i)['img_id'] for i in range(len(built))]


def test_each_sampler_has_its_own_best(config, tmp_path):
    tools = tmp_path / 'tools'
    tools.mkdir()
    (tools / 'train.py').write_text(TRAIN)
    (tools / 'test.py').write_text(TEST)
    torch.save(dict(meta={}, message_hub={}, state_dict={}), tools / 'iter_20.pth')
    out, said = tmp_path / 'out', []
    arguments = (['random-bg0', 'ohem'], [5], out, tools)
    options = dict(jobs=2, lrs=[0.01, 0.04], select=SPLIT, say=said.append)
    results = compare(config, *arguments, **options)
    assert [(r['sampler'], r['seed'], r['lr']) for r in results] == [
        ('random-bg0', 5, 0.04),
        ('ohem', 5, 0.01),
    ]

    tried = sorted((out / 'learning_rates').glob('*.py'))
    assert len(tried) == 4
    for path in tried:
        made = Config.fromfile(path)
        assert f'lr{made.optim_wrapper.optimizer.lr:g}' in path.stem
        assert made.randomness.seed == 5
        assert ids_of(made.train_dataloader.dataset) == ['1', '2']
        assert ids_of(made.test_dataloader.dataset) == ['3']
    for path in out.glob('*.py'):
        made = Config.fromfile(path)
        assert made.optim_wrapper.optimizer.lr == (
            0.01 if 'ohem' in path.stem else 0.04
        )
        assert ids_of(made.train_dataloader.dataset) == ['1', '2', '3']
        assert ids_of(made.test_dataloader.dataset) == ['8', '9']

    text = (out / 'table.md').read_text()
    assert (
        '| sampler | lr | seeds |' in text and '| random, bg_lo 0 | 0.04 | 1 |' in text
    )
    text = (out / 'learning_rates.md').read_text()
    assert '| random, bg_lo 0 | 0.870 | **0.900** |' in text
    assert '| **mmdet_ohem.OHEMSampler** | **0.900** | 0.870 |' in text
    assert 'Of random-bg0, ohem the best is the lowest or the highest' in text

    said.clear()
    assert compare(config, *arguments, **options) == results
    assert not any(': train' in line for line in said)


def test_a_split_has_the_images_and_proposals_of_the_training_set(config, root):
    for loader, store in (
        (config.train_dataloader, 'of the training set'),
        (config.test_dataloader, 'of the test set'),
    ):
        for step in loader.dataset.pipeline:
            if 'store' in step:
                step.store = store
    moved = root.with_name('elsewhere')
    shutil.copytree(root, moved)
    for path in (moved / 'JPEGImages').iterdir():
        path.write_bytes(path.read_bytes() + b'0')  # other images
    config.test_dataloader.dataset.data_root = f'{moved}/'
    split = split_config(config, *SPLIT)
    dataset = split.test_dataloader.dataset
    assert dataset.data_root == f'{root}/' and dataset.test_mode
    names = [step.type for step in dataset.pipeline]
    assert names == [s.type for s in config.test_dataloader.dataset.pipeline]
    stores = [step.store for step in dataset.pipeline if 'store' in step]
    assert stores == ['of the training set']
    assert 'background_dataloader' not in split
    assert config.test_dataloader.dataset.data_root == f'{moved}/'


def test_cocos_evaluator_reads_the_annotations_of_the_split(tmp_path):
    names = ('train2014', 'val2014', 'test2015')
    for name in names:
        small_data.write_coco(tmp_path, name, CLASSES, f'{name}_{{}}.jpg')
        for path in (tmp_path / name).iterdir():  # or all sets had equal images
            path.write_bytes(path.read_bytes() + name.encode())
    dataset = dict(type='CocoDataset', data_root=str(tmp_path), pipeline=[])
    train, val, test = (
        dict(
            dataset,
            ann_file=f'annotations/instances_{name}.json',
            data_prefix=dict(img=f'{name}/'),
        )
        for name in names
    )
    config = Config(
        dict(
            train_dataloader=dict(dataset=train),
            test_dataloader=dict(dataset=test),
            test_evaluator=dict(type='CocoMetric', ann_file='the/test/set.json'),
        )
    )
    split = split_config(config, train['ann_file'], val['ann_file'])
    path = str(tmp_path / 'annotations' / 'instances_val2014.json')
    assert split.test_evaluator.ann_file == path


@pytest.mark.parametrize(
    'val, words',
    [
        ('train', 'is an image of .*train.txt, which the learning rates are trained'),
        ('test', "3.jpg of the validation .* of the config's test set .*9.jpg"),
    ],
)
def test_images_on_which_nothing_may_be_chosen_are_refused(val, words, config, root):
    if val == 'test':  # by content: the names differ
        images = root / 'JPEGImages'
        shutil.copy(images / '3.jpg', images / '9.jpg')
        val = 'val'
    with pytest.raises(ValueError, match=words):
        split_config(config, SPLIT[0], f'ImageSets/Main/{val}.txt')


def test_several_data_sets_are_refused(config):
    part = config.train_dataloader.dataset
    config.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, part])
    with pytest.raises(ValueError, match='one data set with an annotation .* has 2'):
        split_config(config, *SPLIT)


def test_a_joined_test_set_is_looked_through(config, root):
    part = config.test_dataloader.dataset
    config.test_dataloader.dataset = dict(
        type='ConcatDataset',
        datasets=[dict(part, ann_file='ImageSets/Main/test.txt'), part],
    )
    split = split_config(config, *SPLIT)
    assert ids_of(split.test_dataloader.dataset) == LISTS['val']
    images = root / 'JPEGImages'
    shutil.copy(images / '3.jpg', images / '9.jpg')
    with pytest.raises(ValueError, match="of the config's test set .*9.jpg"):
        split_config(config, *SPLIT)


@pytest.mark.parametrize(
    'words', [['--lr', '0.01', '0.02'], ['--select', 'train.txt', 'val.txt']]
)
def test_learning_rates_and_a_split_go_together(words):
    with pytest.raises(SystemExit, match='--lr and --select go together'):
        run_tool_here('tools/compare_samplers.py', CONFIG, *words)


def test_a_best_within_the_range_is_not_doubted():
    results = [
        dict(sampler='ohem', lr=lr, mAP=score)
        for lr, score in ((0.01, 0.5), (0.02, 0.6), (0.04, 0.6), (0.08, 0.1))
    ]
    assert best_rates(results) == dict(ohem=0.02)
    assert 'beyond' not in rates_table(results, 'a', 'b')
