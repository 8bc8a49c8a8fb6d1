"""Every command and snippet of the README, run in order on data of a few images."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from scipy.io import savemat

from mmdet_ohem import OHEMLoss, OHEMSampler
from mmdet_ohem.lookalikes import CLASSES, draw_image, write_annotation

README = (ROOT / 'README.md').read_text()
COMMANDS = [
    line
    for block in re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
    for line in block.splitlines()
]
# What makes a command short; the README's own words stay in front.
FEW_ITERATIONS = (
    'train_cfg.max_iters=2 train_cfg.val_interval=2 default_hooks.checkpoint.interval=2'
    ' default_hooks.logger.interval=1 custom_hooks.1.interval=1'
)
SMALL_VGG = (
    ' train_dataloader.dataset.pipeline.2.scale=(160,96)'
    ' model.backbone.init_cfg=None model.roi_head.bbox_head.init_cfg=None'
    ' default_hooks.checkpoint.save_optimizer=False'
)


def write_voc(root: Path, lists: dict[str, list[str]], names: dict[str, str]) -> None:
    """A data set in VOC layout, drawn like the demo's, with other class names."""
    for folder in ('Annotations', 'ImageSets/Main', 'JPEGImages'):
        (root / folder).mkdir(parents=True)
    for image_list, image_ids in lists.items():
        path = root / 'ImageSets' / 'Main' / f'{image_list}.txt'
        path.write_text(''.join(f'{image_id}\n' for image_id in image_ids))
        for image_id in image_ids:
            image, objects = draw_image(np.random.default_rng(int(image_id)))
            cv2.imwrite(str(root / 'JPEGImages' / f'{image_id}.jpg'), image)
            objects = [(names[name], box) for name, box in objects]
            write_annotation(root / 'Annotations' / f'{image_id}.xml', objects)


def write_mat(path: Path, image_ids: list[str]) -> None:
    """Selective Search boxes as Fast R-CNN distributes them: y1, x1, y2, x2 from 1."""
    rng = np.random.default_rng(0)
    boxes, images = (
        np.empty((1, len(image_ids)), object),
        np.empty_like(image_ids, object),
    )
    for i, image_id in enumerate(image_ids):
        corners = rng.integers((1, 1), (150, 200), (50, 2))
        boxes[0, i] = np.hstack([corners, corners + rng.integers(20, 80, (50, 2))])
        images[i] = image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, dict(boxes=boxes.astype(object), images=images[:, None]))


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> Path:
    """The repository beside BCCD and VOC2007, of six images each."""
    clone = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'tools', 'mmdet_ohem'):
        (clone / name).symlink_to(ROOT / name)
    ids = [f'{i:06d}' for i in range(6)]
    lists = dict(trainval=ids[:4], test=ids[4:])
    bccd = dict(zip(CLASSES, ('RBC', 'WBC', 'Platelets'), strict=True))
    write_voc(clone / 'data' / 'bccd', lists, bccd)
    voc = dict(zip(CLASSES, ('car', 'person', 'sofa'), strict=True))
    write_voc(clone / 'data' / 'VOCdevkit' / 'VOC2007', lists, voc)
    for name, image_ids in lists.items():
        write_mat(
            clone / 'data' / 'selective_search_data' / f'voc_2007_{name}.mat', image_ids
        )
    return clone


def shortened(command: str) -> str:
    options = FEW_ITERATIONS + (SMALL_VGG if 'vgg' in command else '')
    if 'faster_rcnn_vgg' in command:
        options += ' model.train_cfg.rpn.allowed_border=-1'  # no anchor fits 160 x 96
    if 'benchmark.py' in command:
        command += ' --rounds 1 --num-rois 100'
    if 'compare_samplers' in command:
        command += ' --seeds 0 --samplers ohem --budget 2'
    if 'train' in command.split()[0] or re.search(r'train.py|compare', command):
        command += f' --cfg-options {options}'
    return command


@pytest.mark.slow
def test_every_command_runs(clone):
    environment = dict(
        os.environ,
        PATH=f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        OMP_NUM_THREADS='1',
        PORT='29519',
    )
    for command in COMMANDS:
        if command.startswith(('make', 'source')):  # the tests run in that .venv
            continue
        for checkpoint in re.findall(r'work_dirs/\S+\.pth', command):
            checkpoint = clone / checkpoint
            if not checkpoint.exists():  # the README trains for more iterations
                shutil.copy(checkpoint.with_name('iter_2.pth'), checkpoint)
        done = subprocess.run(
            shlex.split(shortened(command).replace('(', '"(').replace(')', ')"')),
            cwd=clone,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f'{command}\n{done.stderr}'


def test_make_has_the_targets_that_the_readme_names():
    targets = set(re.findall(r'`make (\w+)`|^make (\w+)', README, re.MULTILINE))
    makefile = (ROOT / 'Makefile').read_text()
    for target in {one or other for one, other in targets}:
        assert re.search(rf'^{target}:', makefile, re.MULTILINE), target


def detector_of(tmp_path: Path, base: str, snippet: str):
    """What a config builds that inherits MMDetection's own and adds a snippet."""
    (tmp_path / 'mine.py').write_text(f"_base_ = 'mmdet::{base}'\n{snippet}")
    config = Config.fromfile(tmp_path / 'mine.py')
    init_default_scope('mmdet')
    config.model.backbone.init_cfg = None
    return MODELS.build(config.model)


def test_the_python_snippets_do_what_the_readme_says(tmp_path):
    snippets = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
    one_line, cascade, one_stage, inherited = snippets

    detector = detector_of(
        tmp_path, 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py', one_line
    )
    sampler = detector.roi_head.bbox_sampler
    assert isinstance(sampler, OHEMSampler) and sampler.num == 512

    detector = detector_of(
        tmp_path, 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py', cascade
    )
    samplers = detector.roi_head.bbox_sampler
    assert [sampler.stage for sampler in samplers] == [0, 1, 2]
    assert all(isinstance(sampler, OHEMSampler) for sampler in samplers)

    detector = detector_of(
        tmp_path, 'retinanet/retinanet_r50_fpn_1x_coco.py', one_stage
    )
    assert isinstance(detector.bbox_head.loss_cls, OHEMLoss)
    assert type(detector.bbox_head).__name__ == 'AllLevelsRetinaHead'

    (tmp_path / 'mine.py').write_text(inherited)
    ours = Config.fromfile(ROOT / 'configs' / 'fast_rcnn_vgg16_ohem_voc07.py')
    assert Config.fromfile(tmp_path / 'mine.py').model == ours.model


def test_every_path_in_the_readme_exists():
    for path in re.findall(r'`((?:configs|tools|mmdet_ohem|docs)/[\w./]+)`', README):
        assert (ROOT / path).exists(), path
    modules = re.findall(r'`(\w+\.py)`', README)
    assert 'roi_pool.py' in modules
    for module in modules:
        assert (ROOT / 'mmdet_ohem' / module).exists(), module
    for path in re.findall(r'\]\((docs/[^)]+)\)', README):
        assert (ROOT / path).exists(), path
