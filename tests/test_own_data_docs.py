"""The commands of docs/own_data.md, in order and in this process, on ten images in COCO
format: from unpacked data to a trained detector, its pictures and the comparison."""

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from support.tools import ROOT, run_tool_here

import mmdet_ohem.compare.comparison
from mmdet_ohem.datasets import read_annotations

PAGE = (ROOT / 'docs' / 'own_data.md').read_text()
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r'```sh\n(.*?)```', PAGE, re.DOTALL)
    for line in block.splitlines()
]
# A short training logs each iteration.
SHORT = ['--cfg-options', 'default_hooks.logger.interval=1']
SHORT += ['custom_hooks.1.interval=1']


@pytest.fixture
def clone(lookalikes, tmp_path, monkeypatch) -> Path:
    """A folder beside whose configs and tools lie data/blood and a checkpoint."""
    for name in ('configs', 'tools', 'mmdet_ohem'):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / 'configs').unlink()
    (tmp_path / 'configs').mkdir()
    photos = tmp_path / 'data' / 'blood' / 'photos'
    shutil.copytree(lookalikes / 'JPEGImages', photos)
    images, annotations = [], []
    found = read_annotations(lookalikes / 'Annotations', photos)
    for image_id, image in enumerate(found):
        width, height = image.size
        images.append(
            dict(id=image_id, file_name=image.file.name, width=width, height=height)
        )
        for (x1, y1, x2, y2), name in zip(image.boxes, image.names, strict=True):
            annotations.append(
                dict(
                    id=len(annotations),
                    image_id=image_id,
                    category_id=('nut', 'gear', 'washer').index(name),
                    bbox=[x1, y1, x2 - x1, y2 - y1],
                    area=(x2 - x1) * (y2 - y1),
                    iscrowd=0,
                )
            )
    categories = [dict(id=i, name=n) for i, n in enumerate(('nut', 'gear', 'washer'))]
    content = dict(images=images, annotations=annotations, categories=categories)
    (tmp_path / 'data' / 'blood' / 'labels.json').write_text(json.dumps(content))
    (tmp_path / 'checkpoints').mkdir()
    (tmp_path / 'checkpoints' / 'faster_rcnn_r50_fpn_1x_coco.pth').touch()
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    return tmp_path


def run_all_here(runs, tools, free, say, bar=None) -> list[str]:
    """The runs of a comparison in this process, which spares four times the imports."""
    for run in runs:
        run_tool_here('tools/train.py', run.config_file, '--work-dir', run.folder)
        run.logs.save_highest(runs_at_a_time=1)
        checkpoint = (run.folder / 'last_checkpoint').read_text()
        test = ('--work-dir', run.folder / 'test')
        run_tool_here('tools/test.py', run.config_file, checkpoint, *test)
        run.save_result()
    return []


def shortened(words: list[str]) -> list[str]:
    """The page's command with less to do; its own words stay in front."""
    if 'train.py' in words[1]:
        return [*words, '--budget', '2', *SHORT]
    if 'compare' in words[1]:
        return [*words, '--samplers', 'ohem', '--seeds', '0', '--budget', '2']
    if 'draw' in words[1]:
        return [*words, '--num', '1']
    return words


@pytest.mark.slow
def test_every_command_of_the_page_runs(clone, monkeypatch, capsys):
    monkeypatch.setattr(mmdet_ohem.compare.comparison, 'run_all', run_all_here)
    for python, tool, *rest in map(shortened, COMMANDS):
        assert python == 'python'
        run_tool_here(tool, *rest)
        if 'train.py' in tool:  # the page trains for more iterations
            work_dir = Path('work_dirs', Path(rest[0]).stem)
            shutil.copy(work_dir / 'iter_2.pth', work_dir / 'iter_600.pth')
    printed = capsys.readouterr().out
    assert printed.count('Proposal recall: ') == 2
    shown = re.search(r'Wrote pictures of the detections to (\S+)\.\n', printed)[1]
    assert len(list(Path(shown).glob('*.jpg'))) == 2  # a fifth of ten images
    work_dir = Path('work_dirs/fast_rcnn_small_ohem_blood')
    assert cv2.imread(str(work_dir / 'mined.png')).shape[1] == 2 * 800  # and early
    table = Path('work_dirs/compare/fast_rcnn_small_ohem_blood/table.md').read_text()
    assert 'mmdet_ohem.OHEMSampler' in table
    (card,) = Path('published').glob('blood-*/README.md')
    assert 'coco/bbox_mAP_50' in card.read_text()
    assert Path(
        'configs/blood_r50/faster-rcnn_r50_fpn_1x_coco_ohem_blood_r50.py'
    ).exists()


def test_the_way_takes_six_commands_at_most():
    way = [words[1] for words in COMMANDS if 'blood_r50' not in words]
    assert way == [
        'tools/new_data_set.py',
        'tools/prepare_proposals.py',
        'tools/train.py',
        'tools/test.py',
        'tools/draw_pictures.py',
        'tools/compare_samplers.py',
        'tools/publish.py',  # for others
    ]
