"""The background set of a detector and a pool, and its page."""

import json
import os
import re
import shutil
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS
from mmengine.config import Config
from support.tools import (
    run_tool_here,
    save_untrained,
    small_config,
    small_rpn_config,
)

from mmdet_ohem.datasets import draw_image, read_background, read_made_by
from mmdet_ohem.proposals import ProposalStore
from mmdet_ohem.runs import mine

TOOL = 'tools/mine_background.py'
NAMES = ['a.jpg', 'broken.jpg', 'c d/2.png', 'c d/10.jpg', 'e.jpg', 'f.jpg', 'g.jpg']


@pytest.fixture(scope='module')
def detector(lookalikes, tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp('rpn')
    config = small_rpn_config(folder / 'rpn.py', lookalikes)
    return config, save_untrained(Config.fromfile(config), folder / 'weights.pth')


@pytest.fixture(scope='module')
def pool(tmp_path_factory) -> Path:
    """Seven files, one of them broken."""
    pool = tmp_path_factory.mktemp('pool')
    (pool / 'c d').mkdir()
    for seed, name in enumerate(NAMES):
        image, _ = draw_image(np.random.default_rng(100 + seed))
        cv2.imwrite(str(pool / name), image[:150, : 200 + seed])
    (pool / 'broken.jpg').write_text('no picture')
    return pool


def mine_here(detector, pool, out, *others) -> Path:
    run_tool_here(TOOL, *detector, pool, '--out', out, *others)
    return Path(out) / 'background.jsonl'


def plain_loop(detector, pool: Path, score_thr: float, most: int) -> list:
    """What MMDetection's own inference gives, (name, boxes, labels, scores) of each
    picture, hardest first."""
    model = init_detector(str(detector[0]), str(detector[1]), device='cpu')
    classes = ('washer', 'nut', 'gear')
    found = []
    for name in sorted(NAMES):
        if name == 'broken.jpg':
            continue
        pred = inference_detector(model, str(pool / name)).pred_instances
        kept = [
            ([round(x, 1) for x in box], classes[label], round(score, 4))
            for box, label, score in zip(
                pred.bboxes.tolist(),
                pred.labels.tolist(),
                pred.scores.tolist(),
                strict=True,
            )
            if score >= score_thr
        ][:most]
        if kept:
            found.append((name, *map(list, zip(*kept, strict=True))))
    return sorted(found, key=lambda image: -image[3][0])


def test_the_set_is_what_a_plain_loop_finds(detector, pool, tmp_path, capsys):
    path = mine_here(detector, f'{pool}/**/*', tmp_path / 'out')
    said = capsys.readouterr()
    expected = plain_loop(detector, pool, 0.3, 10)
    assert 3 <= len(expected) and max(len(boxes) for _, boxes, *_ in expected) > 3
    found = [
        (os.path.relpath(i.file, pool), i.boxes, i.labels, i.scores)
        for i in read_background(path)
    ]
    assert found == expected
    made_by = read_made_by(path)
    number = sum(len(boxes) for _, boxes, *_ in expected)
    assert made_by['pictures'] == 6 and made_by['false_positives'] == number
    assert made_by['surest'] == expected[0][3][0]
    for image in read_background(path):
        assert image.img_id == os.path.splitext(os.path.relpath(image.file, pool))[0]
        height, width = cv2.imread(image.file).shape[:2]
        assert (image.width, image.height) == (width, height)
    assert f'Skipped {pool}/broken.jpg: it cannot be read' in said.err
    assert f'{number} false positives of score 0.3' in said.out
    # This detector makes its own proposals: the false positives join them.
    names = {'background.jsonl', 'background.html', 'proposals'}
    assert {file.name for file in path.parent.iterdir()} == names
    store = ProposalStore(path.parent / 'proposals')
    for image in read_background(path):
        boxes, size = store.get(image.img_id)
        assert size == (image.width, image.height)
        np.testing.assert_allclose(boxes, image.boxes)

    few = mine_here(
        detector, f'{pool}/**/*', tmp_path / 'few', '--max-per-image', 2,
        '--score-thr', 0.5,
    )  # fmt: skip
    expected = plain_loop(detector, pool, 0.5, 2)
    assert [i.boxes for i in read_background(few)] == [
        boxes for _, boxes, *_ in expected
    ]


class Killed(BaseException):
    """As kill -9, it is caught by nothing."""


def test_a_run_that_was_killed_goes_on(detector, pool, tmp_path, monkeypatch, capsys):
    """After each picture, and in the middle of the line that tells of it; on the way
    no picture is looked at twice."""
    pattern = f'{pool}/**/*'
    expected = mine_here(detector, pattern, tmp_path / 'unbroken').read_text()
    looked_at = []
    run = mine.PictureDetector.run

    def killed_soon(self, paths, workers=None):
        for path, found in zip(paths[:2], run(self, paths[:2], workers), strict=True):
            looked_at.append(os.path.relpath(path, pool))
            yield found
        raise Killed

    monkeypatch.setattr(mine.PictureDetector, 'run', killed_soon)
    out = tmp_path / 'out'
    for _ in range(3):
        with pytest.raises(Killed):
            mine_here(detector, pattern, out)
        assert not (out / 'background.jsonl').exists()
        with open(out / 'partial' / 'results.jsonl', 'a') as file:
            file.write('[5, {"img_id": "half a li')
        with open(out / 'partial' / 'results.bin', 'ab') as file:
            file.write(b'boxes of nobody')
    monkeypatch.setattr(mine.PictureDetector, 'run', run)
    assert mine_here(detector, pattern, out).read_text() == expected
    assert looked_at == sorted(NAMES)[:6]
    assert not (out / 'partial').exists()
    # What is done stays, and is not done again.
    monkeypatch.setattr(mine.PictureDetector, 'run', None)
    assert mine_here(detector, pattern, out).read_text() == expected


def test_several_processes_give_the_same_set(detector, pool, tmp_path):
    pattern = f'{pool}/**/*'
    expected = mine_here(detector, pattern, tmp_path / 'one').read_text()
    several = mine_here(detector, pattern, tmp_path / 'two', '--jobs', 2)
    assert several.read_text() == expected


def test_the_proposals_of_the_pictures_come_along(lookalikes, pool, tmp_path, capsys):
    config = small_config(
        tmp_path / 'small.py', lookalikes, 'fast_rcnn_small_lookalikes.py'
    )
    checkpoint = save_untrained(Config.fromfile(config), tmp_path / 'weights.pth')
    path = mine_here((config, checkpoint), pool, tmp_path / 'out')
    said = re.search(r'at IoU 0.7 or more for (\S+)% of', capsys.readouterr().out)
    images = list(read_background(path))
    store = ProposalStore(path.parent / 'proposals')
    assert len(images) == len(store) > 2
    found = []
    for image in images:
        boxes, size = store.get(image.img_id)
        assert size == (image.width, image.height) and len(boxes) > 20
        boxes, own = np.split(boxes, [len(boxes) - len(image.boxes)])
        assert np.allclose(own, image.boxes)
        for x1, y1, x2, y2 in image.boxes:  # plain IoU
            low = np.maximum(boxes[:, :2], [x1, y1])
            high = np.minimum(boxes[:, 2:], [x2, y2])
            common = np.prod(np.clip(high - low, 0, None), axis=1)
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
            ious = common / (areas + (x2 - x1) * (y2 - y1) - common)
            found.append(ious.max() >= 0.7)
    assert float(said[1]) == pytest.approx(100 * np.mean(found), abs=0.051)

    dataset = DATASETS.build(
        dict(
            type='mmdet_ohem.BackgroundDataset',
            background_set=str(path),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='mmdet_ohem.LoadStoredProposals', store=str(store.path)),
            ],
        )
    )
    assert len(dataset[0]['proposals']) == len(store.get(images[0].img_id)[0])


def test_the_page_shows_each_box_with_the_name_to_strike_off(detector, pool, tmp_path):
    path = mine_here(detector, f'{pool}/**/*', tmp_path / 'out', '--num', 2)
    page = (path.parent / 'background.html').read_text()
    assert f'<code>{path.parent}/struck_off.txt</code>' in page
    assert 'The first 2 pictures are shown' in page
    first, second, *others = read_background(path)
    names = [unescape(name) for name in re.findall('<td><code>(.*?)</code>', page)]
    shown = [
        word
        for image in (first, second)
        for n in image.names
        for word in (n, image.img_id)
    ]
    assert names == shown and page.count('base64,') == len(shown) / 2
    dataset = dict(type='mmdet_ohem.BackgroundDataset', background_set=str(path))
    (path.parent / 'struck_off.txt').write_text('\n'.join(first.names))
    left = DATASETS.build(dataset)
    ids = [left.get_data_info(i)['img_id'] for i in range(len(left))]
    assert ids == [image.img_id for image in (second, *others)]


# -------------------------------------------------------------------------- bad input


def test_images_of_the_data_sets_are_refused_whatever_they_are_called(
    detector, lookalikes, pool, tmp_path
):
    copy = shutil.copytree(pool, tmp_path / 'pool')
    for name, image_list in dict(x='train', y='test').items():
        path = lookalikes / 'ImageSets' / 'Main' / f'{image_list}.txt'
        image_id = path.read_text().split()[-1]
        shutil.copy(lookalikes / 'JPEGImages' / f'{image_id}.jpg', copy / f'{name}.jpg')
    shutil.copy(copy / 'a.jpg', copy / f'{image_id}.jpg')  # the name is no matter
    words = f'^2 of the 8 pictures .*, .*/x.jpg first, which is {lookalikes}/'
    with pytest.raises(SystemExit, match=words):
        mine_here(detector, copy, tmp_path / 'out')
    listed = (tmp_path / 'out' / 'refused.txt').read_text().split()
    assert listed == [str(copy / 'x.jpg'), str(copy / 'y.jpg')]
    for file in listed:
        Path(file).unlink()
    mine_here(detector, copy, tmp_path / 'out')


def test_bad_input_is_one_sentence(detector, pool, tmp_path, capsys):
    config, checkpoint = detector
    (tmp_path / 'empty').mkdir()
    cases = {
        (checkpoint, tmp_path / 'empty'): 'empty has no picture in it',
        (checkpoint, tmp_path / 'nothing'): 'nothing is not there',
        (tmp_path / 'gone.pth', pool): '^There is no checkpoint .*gone.pth.$',
        (config, pool): 'rpn.py cannot be read as a checkpoint',
        (checkpoint, pool / 'broken.jpg'): '^No picture of .*broken.jpg can be read',
    }
    for i, ((weights, pictures), words) in enumerate(cases.items()):
        with pytest.raises(SystemExit, match=words):
            mine_here((config, weights), pictures, tmp_path / str(i))
    for flag in ('--jobs', '--max-per-image'):
        with pytest.raises(SystemExit):
            mine_here(detector, pool, tmp_path / 'out', flag, 0)
        assert 'whole number from 1 on, not 0' in capsys.readouterr().err
    out = tmp_path / 'out'
    path = mine_here(detector, pool, out, '--score-thr', 1.1)
    said = capsys.readouterr().out
    surest = max(
        i[3][0] for i in plain_loop(detector, pool, 0.05, 1) if '/' not in i[0]
    )
    assert 'fires in none of the 4 pictures at a score of 1.1' in said
    assert f'its surest detection has {surest:.2g}. If' in said
    assert list(read_background(path)) == []
    with pytest.raises(
        SystemExit, match='out has a background set, .* another score_thr'
    ):
        mine_here(detector, pool, out)
    with pytest.raises(SystemExit, match='another pool: choose another --out'):
        mine_here(detector, pool / 'c d', out, '--score-thr', 1.1)
    with pytest.raises(ValueError, match='no false positive to train on'):
        DATASETS.build(
            dict(type='mmdet_ohem.BackgroundDataset', background_set=str(path))
        )


def test_a_half_made_set_of_another_threshold_is_not_mixed(detector, pool, tmp_path):
    out = tmp_path / 'out'
    (out / 'partial').mkdir(parents=True)
    made_by = dict(read_made_by(mine_here(detector, pool, tmp_path / 'other')))
    (out / 'partial' / 'made_by.json').write_text(
        json.dumps(dict(made_by, score_thr=1))
    )
    with pytest.raises(SystemExit, match='another score_thr: choose another --out'):
        mine_here(detector, pool, out)
