"""From a folder to configs: what tools/new_data_set.py writes, loaded and built."""

import functools
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from support import small_data
from support.tools import ROOT, run_tool_here

import mmdet_ohem.runs
from mmdet_ohem.datasets import draw_image
from mmdet_ohem.runs import check_data

TOOL = 'tools/new_data_set.py'
CASCADE = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py'
MASK = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    """A folder to work in. Selective Search, which test_own_data_docs.py runs, gives
    200 boxes of an image here."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)

    def sample(images, progress):
        return [(image, small_data.draw_boxes(rng, 200)) for image in images]

    monkeypatch.setattr(mmdet_ohem.runs, 'sample_proposals', sample)


@functools.cache
def drawn() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [draw_image(rng)[0] for _ in range(10)]


def write_coco(folder: Path, suffix: str = '.png', with_masks: bool = False) -> None:
    """Ten different images with two objects each, and a category without any."""
    rng = np.random.default_rng(0)
    (folder / 'photos').mkdir(parents=True)
    images, annotations = [], []
    for i in range(10):
        cv2.imwrite(str(folder / 'photos' / f'{i}{suffix}'), drawn()[i])
        images.append(dict(id=i, file_name=f'{i}{suffix}', width=400, height=300))
        for category in (1, 7):
            x, y = rng.integers(0, 200, 2).tolist()
            mask = [[x, y, x + 50, y, x + 50, y + 32]] if with_masks else []
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=i,
                    category_id=category,
                    bbox=[x, y, 50, 32],
                    area=1600,
                    iscrowd=0,
                    segmentation=mask,
                )
            )
    categories = [
        dict(id=i, name=name) for i, name in ((0, 'all'), (7, 'nut'), (1, 'bolt'))
    ]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'all.json').write_text(json.dumps(content))


def ground_truth(dataset: dict) -> dict:
    """Boxes and labels by image file, as MMDetection reads them."""
    init_default_scope('mmdet')
    built = DATASETS.build(dict(dataset, pipeline=[]))
    infos = [built.get_data_info(i) for i in range(len(built))]
    return {
        Path(info['img_path']).name: [
            (*instance['bbox'], instance['bbox_label'])
            for instance in info['instances']
        ]
        for info in infos
    }


def test_voc_xml_with_given_lists_becomes_what_the_example_is(lookalikes, capsys):
    lists = lookalikes / 'ImageSets' / 'Main'
    # A list as people write it, which VOCDataset could not read.
    first, *others = (lists / 'train.txt').read_text().splitlines()
    Path('mine.txt').write_text('\n'.join([first, '', f'{first} ', *others, '']))
    run_tool_here(
        *(TOOL, '--images', lookalikes / 'JPEGImages'),
        *('--annotations', lookalikes / 'Annotations', '--name', 'parts'),
        *('--train-list', 'mine.txt', '--test-list', lists / 'test.txt'),
    )
    printed = capsys.readouterr().out
    assert Path('data/parts/train.txt').is_file()
    assert not Path('data/parts/test.txt').exists()
    assert printed.split()[:5] == ['train', 'test', 'images', '6', '4']
    for words in ('Proposal recall', 'scale = (400, 300)', 'tools/train.py'):
        assert words in printed
    assert 'nearly the same' not in printed
    example = Config.fromfile(ROOT / 'configs' / 'fast_rcnn_small_ohem_lookalikes.py')
    config = Config.fromfile('configs/parts/fast_rcnn_small_ohem_parts.py')
    assert config.classes == tuple(sorted(example.classes))
    assert config.scale == example.scale
    rcnn = config.model.train_cfg.rcnn
    assert rcnn.sampler == dict(type='mmdet_ohem.OHEMSampler', num=config.num)
    assert rcnn.assigner == example.model.train_cfg.rcnn.assigner
    assert config.model.roi_head == example.model.roi_head
    assert config.optim_wrapper == example.optim_wrapper
    for loop, number in (('train', 6), ('test', 4)):
        ours = config[f'{loop}_dataloader'].dataset
        theirs = example[f'{loop}_dataloader'].dataset
        theirs.data_root = f'{lookalikes}/'
        ours.metainfo.classes = theirs.metainfo.classes
        found = ground_truth(ours)
        assert len(found) == number and found == ground_truth(theirs)
    random = Config.fromfile('configs/parts/fast_rcnn_small_parts.py')
    assert random.model.train_cfg.rcnn.sampler.type == 'RandomSampler'
    assert random.model.train_cfg.rcnn.sampler.num == config.num
    assert random.model.train_cfg.rcnn.assigner.neg_iou_thr == (0.1, 0.5)

    with pytest.raises(SystemExit, match='has configs in it.*--overwrite'):
        run_tool_here(TOOL, '--images', '.', '--annotations', '.', '--name', 'parts')


def test_a_coco_file_is_split_and_keeps_what_it_says(capsys):
    write_coco(Path('metal'))
    command = (TOOL, '--images', 'metal/photos', '--annotations', 'metal/all.json')
    run_tool_here(*command, '--name', 'metal', '--test-fraction', 0.3)
    printed = capsys.readouterr().out
    assert 'drawn, with seed 0' in printed and 'num = ' in printed
    whole = json.loads(Path('metal/all.json').read_text())
    parts = [
        json.loads(Path('data/metal', f'{loop}.json').read_text())
        for loop in ('train', 'test')
    ]
    assert [len(part['images']) for part in parts] == [7, 3]
    for key in ('images', 'annotations'):
        both = sorted(sum((part[key] for part in parts), []), key=lambda x: x['id'])
        assert both == whole[key]
    config = Config.fromfile('configs/metal/fast_rcnn_small_metal.py')
    assert config.classes == ('nut', 'bolt')  # in the file's order, without 'all'
    assert config.model.roi_head.bbox_head.num_classes == 2
    found = ground_truth(config.test_dataloader.dataset)
    for info in found.values():
        assert [label for *_, label in info] == [1, 0]
    assert config.test_evaluator.ann_file == 'data/metal/test.json'
    # The proposals are missing, and the help is the data set's own.
    with pytest.raises(FileNotFoundError, match='data/metal/proposals.*prepare_propos'):
        check_data(config, ('train',))
    Path('data/metal/train.json').unlink()
    with pytest.raises(FileNotFoundError, match='new_data_set.py --images metal/pho'):
        check_data(config, ('train',))


def test_copies_across_the_splits_are_warned_of(capsys):
    for part in ('train', 'test'):
        write_coco(Path('x', part))
        for i in range(10):  # other names
            path = Path('x', part, 'photos', f'{i}.png')
            image = cv2.imread(str(path))
            if part == 'test' and i < 8:
                image = np.roll(image, 150, axis=1)[::-1, ::2]
            cv2.imwrite(str(path.with_name(f'{part}{i}.png')), image)
            path.unlink()
        text = Path('x', part, 'all.json').read_text()
        Path('x', part, 'all.json').write_text(
            text.replace('"file_name": "', f'"file_name": "{part}')
        )
    run_tool_here(
        *(TOOL, '--images', 'x/train/photos', 'x/test/photos', '--name', 'x'),
        *('--annotations', 'x/train/all.json', 'x/test/all.json'),
    )
    printed = capsys.readouterr().out
    assert 'WARNING: 2 test images are nearly the same' in printed
    assert 'train9.png  x/test/photos/test9.png' in printed
    assert '--images x/train/photos x/test/photos --annotations x/train' in printed


def test_xml_files_of_png_images_become_coco_files():
    Path('v').mkdir()
    for i, image in enumerate(drawn()[:6]):
        cv2.imwrite(f'v/{i}.png', image)
        small_data.write_xml(Path(f'v/{i}.xml'), [('nut', (20, 30, 60, 80), False)])
    run_tool_here(TOOL, '--images', 'v', '--annotations', 'v', '--name', 'v')
    config = Config.fromfile('configs/v/fast_rcnn_small_v.py')
    dataset = config.train_dataloader.dataset
    assert dataset.type == 'CocoDataset' and len(ground_truth(dataset)) == 5


@pytest.mark.parametrize('base', [CASCADE, MASK], ids=['cascade', 'mask'])
def test_a_detector_of_mmdetection_is_made_ready_to_fine_tune(base):
    write_coco(Path('metal'), with_masks=base == MASK)
    Path('weights.pth').touch()
    command = (TOOL, '--images', 'metal/photos', '--annotations', 'metal/all.json')
    run_tool_here(
        *(*command, '--name', 'metal', '--detector', base),
        *('--load-from', 'weights.pth'),
    )
    stem = Path(base).stem
    config = Config.fromfile(f'configs/metal/{stem}_ohem_metal.py')
    heads = config.model.roi_head
    boxes = heads.bbox_head if base == CASCADE else [heads.bbox_head]
    assert [head.num_classes for head in boxes] == [2] * len(boxes)
    assert base != MASK or heads.mask_head.num_classes == 2
    stages = config.model.train_cfg.rcnn
    stages = stages if base == CASCADE else [stages]
    for stage in stages:
        assert stage.sampler == dict(type='mmdet_ohem.OHEMSampler', num=512)
    assert config.optim_wrapper.optimizer.lr == pytest.approx(0.02 * 2 / 16)
    assert config.auto_scale_lr.base_batch_size == 2
    assert config.load_from == 'weights.pth' and config.model.backbone.init_cfg is None
    assert len(ground_truth(config.train_dataloader.dataset)) == 8
    assert len(ground_truth(config.val_dataloader.dataset)) == 2
    plain = Config.fromfile(f'configs/metal/{stem}_metal.py')
    samplers = plain.model.train_cfg.rcnn
    samplers = samplers if base == CASCADE else [samplers]
    assert {part.sampler.num for part in samplers} == {512}
    check_data(config, ('train', 'val', 'test'))


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--name', 'a/b'], 'give letters'),
        (['--test-fraction', '2'], 'above 0 and below 1'),
        (['--train-list', 'x'], 'go together'),
        (['--load-from', 'x'], 'needs --detector'),
        (
            ['--detector', 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'],
            'no model.roi',
        ),
        (['--detector', MASK], 'trains on masks'),
        (['--detector', 'detic.py'], 'detic.py: OHEM cannot .*type=DeticBBoxHead, who'),
        (['--images', 'nowhere'], 'image nowhere/0.png is missing'),
    ],
)
def test_what_cannot_be_is_one_sentence(flags, words):
    write_coco(Path('metal'))
    Path('detic.py').write_text(
        f'_base_ = {MASK!r}\n'
        "model = dict(roi_head=dict(bbox_head=dict(type='DeticBBoxHead')))\n"
    )
    command = [TOOL, '--images', 'metal/photos', '--annotations', 'metal/all.json']
    with pytest.raises(SystemExit, match=words):
        run_tool_here(*command, '--name', 'x', *flags)
    assert not Path('configs').exists()
    shutil.rmtree('metal')
