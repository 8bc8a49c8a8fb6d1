"""Every command and snippet of the README and the docs.

The lines of a ```bash block run here, in the order of `PAGES`, on data of a few images.
The lines of a ```sh block need more than that, or stand for many; `ELSEWHERE` names the
test that runs each. A ```python block is a program or a config and runs here; a ```py
block is a part of a config of another package.
"""

import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.datasets import VOCDataset
from mmdet.evaluation import VOCMetric
from mmdet.registry import HOOKS, METRICS, MODELS
from mmengine.config import Config
from mmengine.registry import VISBACKENDS, init_default_scope
from scipy.io import savemat
from support import small_data
from support.tools import ROOT, run_tool, run_tool_here

from mmdet_ohem import OHEMLoss, OHEMSampler
from mmdet_ohem.datasets.lookalikes import CLASSES, draw_image, write_annotation
from mmdet_ohem.evaluation import FROCMetric
from mmdet_ohem.runs import check_score_thr

DOCS = sorted((ROOT / 'docs').glob('*.md'))
# The README trains what the docs go on with.
PAGES = [ROOT / 'README.md', *DOCS]
BLOCK = re.compile(r'^```(\w+)\n(.*?)^```', re.DOTALL | re.MULTILINE)

# The test files that run what a ```sh block says, by the beginning of the line.
ELSEWHERE = {
    'git clone URL_OF_THIS_REPOSITORY': 'tests/test_packaging.py',
    'make ': 'tests/tools/test_setup.py',
    'pip install': 'tests/test_packaging.py',
    'mim ': 'tests/test_packaging.py',
    'python tools/bootstrap.py': 'tests/runs/test_bootstrap.py',
    'python tools/mine_background.py': 'tests/runs/test_mine.py',
    'tools/train_alternating.sh': 'tests/tools/test_train_alternating.py',
    'python tools/benchmark.py': 'tests/studies/test_iterations.py',
    'python tools/compare_samplers.py': 'tests/compare/test_comparison.py',
    'python tools/convert_caffe.py': 'tests/tools/test_convert_caffe.py',
    'python tools/corrupt_labels.py': 'tests/studies/test_corrupt_labels.py',
    'python tools/draw_pictures.py configs/blood': 'tests/test_own_data_docs.py',
    'python -m pytest -m mmrotate': 'tests/mining/test_mmrotate.py',
    'python tools/make_lookalikes.py': 'tests/mining/test_mmrotate.py',
    'python tools/hardest_images.py CONFIG': 'tests/reports/test_hardest_images.py',
    'python tools/new_data_set.py': 'tests/test_own_data_docs.py',
    'python tools/offline_bootstrap.py': 'tests/studies/test_offline_bootstrap.py',
    'python tools/prepare_proposals.py': 'tests/tools/test_prepare_proposals.py',
    'python tools/publish.py': 'tests/test_own_data_docs.py',
    'python tools/test.py': 'tests/tools/test_train_and_test.py',
    'python tools/train.py configs/blood': 'tests/test_own_data_docs.py',
    'python tools/train.py configs/CONFIG.py': 'tests/tools/test_train_and_test.py',
}
# Parts of a shell line that start no tool.
SHELL = re.compile(r'^(#|cd |for |done|source |tar |export |python3|\.venv/)')

FEW_ITERATIONS = (
    'train_cfg.max_iters=2 train_cfg.val_interval=2 default_hooks.checkpoint.interval=1'
    ' default_hooks.logger.interval=1 custom_hooks.1.interval=1'
)
SMALL_VGG = (
    ' model.roi_head.bbox_head.fc_out_channels=(24,16)'
    ' model.backbone.init_cfg=None model.roi_head.bbox_head.init_cfg=None'
    ' test_dataloader.dataset.pipeline.1.scale=(160,96)'
)
SMALL_VGG_TRAINING = (
    ' train_dataloader.dataset.pipeline.2.scale=(160,96)'
    ' val_dataloader.dataset.pipeline.1.scale=(160,96)'
)


def blocks(language: str, page: Path) -> list[str]:
    return [text for name, text in BLOCK.findall(page.read_text()) if name == language]


def lines(language: str, page: Path) -> list[str]:
    """The commands of a page, one a line; a backslash joins two."""
    text = ''.join(blocks(language, page)).replace('\\\n', '')
    return [line.strip() for line in text.splitlines() if line.strip()]


COMMANDS = [command for page in PAGES for command in lines('bash', page)]


def write_drawn_voc(root: Path, lists: dict[str, list[str]], names) -> None:
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
        corners = rng.integers((1, 1), (30, 50), (30, 2))
        boxes[0, i] = np.hstack([corners, corners + rng.integers(20, 60, (30, 2))])
        images[i] = image_id
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, dict(boxes=boxes.astype(object), images=images[:, None]))


@pytest.fixture(scope='module')
def clone(tmp_path_factory) -> Path:
    """The repository beside BCCD and VOC2007, of a few images each."""
    clone = tmp_path_factory.mktemp('clone')
    for name in ('configs', 'tools', 'mmdet_ohem', 'docs'):
        (clone / name).symlink_to(ROOT / name)
    ids = [f'{i:06d}' for i in range(6)]
    lists = dict(trainval=ids[:4], test=ids[4:])
    bccd = dict(zip(CLASSES, ('RBC', 'WBC', 'Platelets'), strict=True))
    write_drawn_voc(clone / 'data' / 'bccd', lists, bccd)
    voc = clone / 'data' / 'VOCdevkit' / 'VOC2007'
    small_data.write_voc(voc, small_data.VOC07, VOCDataset.METAINFO['classes'])
    for name, image_ids in small_data.VOC07.items():
        mat = clone / 'data' / 'selective_search_data' / f'voc_2007_{name}.mat'
        write_mat(mat, image_ids)
    return clone


def shortened(command: str) -> str:
    """The page's own words, and what makes them quick after these."""
    _, tool, *_ = command.split()
    options = FEW_ITERATIONS
    if 'vgg' in command:
        options += SMALL_VGG + SMALL_VGG_TRAINING
    if tool == 'tools/benchmark.py':
        command += ' --rounds 1 --num-rois 100'
    if tool == 'tools/compare_samplers.py':
        command += ' --seeds 0 --samplers ohem --budget 2'
    if tool == 'tools/test.py':
        options = SMALL_VGG if 'vgg' in command else ''
    if tool in ('tools/train.py', 'tools/compare_samplers.py', 'tools/test.py'):
        command += (' ' if '--cfg-options' in command else ' --cfg-options ') + options
    return command.removesuffix(' --cfg-options ')


@pytest.mark.slow
def test_every_command_runs(clone, server, monkeypatch):
    monkeypatch.chdir(clone)
    monkeypatch.setattr(sys, 'executable', str(server.python))
    for command in COMMANDS:
        if command.startswith(('make', 'source')):  # the tests run in that .venv
            continue
        for checkpoint in re.findall(r'work_dirs/\S+\.pth', command):
            checkpoint = clone / checkpoint
            if not checkpoint.exists():  # the page trains for more iterations
                shutil.copy(checkpoint.with_name('iter_2.pth'), checkpoint)
        if command.startswith('python'):
            _, tool, *arguments = shlex.split(shortened(command))
            print(f'> {tool} {shlex.join(arguments)}')
            run_tool_here(tool, *arguments)
            continue
        options = f'{FEW_ITERATIONS}{SMALL_VGG}{SMALL_VGG_TRAINING}'
        words = shlex.split(command.replace('=1', f'=1 {options}', 1))
        done = run_tool(*words, python=server.python, cwd=clone, PORT='29519')
        assert done.returncode == 0, f'{command}\n{done.stderr}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.stem)
def test_what_is_not_run_here_is_run_by_another_test(page):
    if page.stem == 'own_data':
        return  # tests/test_own_data_docs.py runs the page
    for line in lines('sh', page):
        if SHELL.match(line):
            continue
        places = [ELSEWHERE[start] for start in ELSEWHERE if line.startswith(start)]
        assert places, f'{page.name}: no test runs {line!r}; make its block ```bash'
        text = (ROOT / places[0]).read_text()
        (tool, *_) = re.findall(r'tools/\w+\.\w+', line) or [line.split()[0]]
        assert Path(tool).stem in text, f'{places[0]} does not run {tool}'


def test_the_make_targets_of_the_pages_exist():
    makefile = (ROOT / 'Makefile').read_text()
    for page in [*PAGES, ROOT / 'CONTRIBUTING.md']:
        for words in re.findall(r'`make (\w+)|^make (\w+)', page.read_text(), re.M):
            assert re.search(rf'^{"".join(words)}:', makefile, re.MULTILINE), words


def test_every_path_in_the_pages_exists():
    for page in [*PAGES, ROOT / 'CONTRIBUTING.md']:
        text = page.read_text()
        for path in re.findall(
            r'`((?:configs|tools|mmdet_ohem|docs|tests)/[^` ]+)`', text
        ):
            assert (ROOT / path).exists(), f'{page.name} names {path}'
        for link in re.findall(r'\]\((?!http)([^)#]+)\)', text):
            assert (page.parent / link).exists(), f'{page.name} links to {link}'


# ---------------------------------------------------------------------- the snippets


def detector_of(tmp_path: Path, base: str, snippet: str):
    """What a config builds that inherits MMDetection's own and adds a snippet."""
    (tmp_path / 'mine.py').write_text(f"_base_ = 'mmdet::{base}'\n{snippet}")
    config = Config.fromfile(tmp_path / 'mine.py')
    init_default_scope('mmdet')
    config.model.backbone.init_cfg = None
    return MODELS.build(config.model)


def test_the_snippets_of_the_readme_do_what_it_says(tmp_path):
    one_line, cascade, inherited = blocks('python', ROOT / 'README.md')

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

    (tmp_path / 'mine.py').write_text(inherited)
    ours = Config.fromfile(ROOT / 'configs' / 'fast_rcnn_vgg16_ohem_voc07.py')
    assert Config.fromfile(tmp_path / 'mine.py').model == ours.model


def test_the_snippets_for_classifiers_run_and_learn():
    programs = blocks('python', ROOT / 'docs' / 'classifier.md')
    assert len(programs) == 2
    for program in programs:
        names = {}
        exec(program, names)
        right = names['classifier'](names['images']).argmax(dim=1) == names['labels']
        assert right[names['labels'] >= 0].float().mean() > 0.9


def test_the_snippet_for_retinanet_mines_over_all_levels(tmp_path):
    page = ROOT / 'docs' / 'classifier.md'
    (snippet,) = [text for text in blocks('py', page) if 'AllLevels' in text]
    detector = detector_of(tmp_path, 'retinanet/retinanet_r50_fpn_1x_coco.py', snippet)
    assert isinstance(detector.bbox_head.loss_cls, OHEMLoss)
    assert type(detector.bbox_head).__name__ == 'AllLevelsRetinaHead'


def test_the_config_of_a_cascade_on_bccd_builds(tmp_path):
    (snippet,) = blocks('python', ROOT / 'docs' / 'detectors.md')
    (tmp_path / 'cascade.py').write_text(
        snippet.replace("'fast_rcnn_small", f"'{ROOT}/configs/fast_rcnn_small")
    )
    init_default_scope('mmdet')
    detector = MODELS.build(Config.fromfile(tmp_path / 'cascade.py').model)
    samplers = detector.roi_head.bbox_sampler
    assert [type(sampler) for sampler in samplers] == [OHEMSampler] * 3


def test_the_config_that_measures_false_positives(tmp_path):
    (snippet,) = blocks('python', ROOT / 'docs' / 'measuring_false_positives.md')
    (tmp_path / 'mine.py').write_text(
        snippet.replace("'fast_rcnn_small", f"'{ROOT}/configs/fast_rcnn_small")
    )
    config = Config.fromfile(tmp_path / 'mine.py')
    first, second = map(METRICS.build, config.test_evaluator)
    assert isinstance(first, VOCMetric) and isinstance(second, FROCMetric)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_score_thr(config, ('test',))


def test_the_hooks_and_backends_of_the_page_on_mining_are_there():
    hooks, backends = blocks('python', ROOT / 'docs' / 'seeing.md')
    init_default_scope('mmdet')
    for hook in Config.fromstring(hooks, '.py').custom_hooks:
        assert HOOKS.get(hook.type), hook.type
    for backend in Config.fromstring(backends, '.py').vis_backends:
        assert VISBACKENDS.get(backend.type), backend.type


def test_the_config_with_pictures_without_objects_trains_on_them(tmp_path):
    (snippet,) = blocks('python', ROOT / 'docs' / 'false_positives.md')
    (tmp_path / 'mine.py').write_text(
        snippet.replace("'fast_rcnn_small", f"'{ROOT}/configs/fast_rcnn_small")
    )
    loader = Config.fromfile(tmp_path / 'mine.py').train_dataloader
    own, background = loader.dataset.datasets
    assert own.type == 'VOCDataset' and loader.sampler.source_ratio == [3, 1]
    *others, store, pack = background.pop('pipeline')
    assert others == own.pipeline[:-2] and pack == own.pipeline[-1]
    assert store.store == 'work_dirs/mined/proposals'
    hook, by_hand, platelets = blocks('py', ROOT / 'docs' / 'false_positives.md')
    assert Config.fromstring(platelets, '.py').ignored_classes == ('RBC', 'WBC')
    (hook,) = Config.fromstring(hook, '.py').default_hooks.values()
    assert HOOKS.build(hook)
    expected = eval(by_hand, dict(classes=own.metainfo.classes, train_pipeline=[]))
    assert background == {k: v for k, v in expected.items() if k != 'pipeline'}
