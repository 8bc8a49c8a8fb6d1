import base64
import csv
import json
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope
from support.reference import iou
from support.rotated_boxes import corners
from support.tools import run_tool_here, small_config

from mmdet_ohem.reports.hardest_images import (
    Hard,
    Report,
    find_hardest,
    read_spoilt,
)
from mmdet_ohem.reports.hardest_page import write_report

RANDOM = 'fast_rcnn_small_lookalikes.py'


def build(lookalikes, folder, flip_prob: float):
    """A detector, its training set, and two checkpoints of random weights."""
    init_default_scope('mmdet')
    cfg = Config.fromfile(small_config(folder / 'random.py', lookalikes, RANDOM))
    cfg.train_dataloader.dataset.pipeline[3].prob = flip_prob
    detector = MODELS.build(cfg.model)
    checkpoints = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        detector.init_weights()
        torch.nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=1)
        checkpoints.append(str(folder / f'iter_{seed + 1}.pth'))
        torch.save(dict(state_dict=detector.state_dict()), checkpoints[-1])
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    return detector, dataset, checkpoints


def box_loss_by_hand(detector, data, k: int) -> tuple[float, np.ndarray]:
    """Loss and probabilities of ground-truth box k as a RoI: its target is 0."""
    batch = detector.data_preprocessor(pseudo_collate([data]), training=True)
    gt = batch['data_samples'][0].gt_instances
    roi = torch.cat([torch.zeros(1, 1), gt.bboxes[k : k + 1]], dim=1)
    head = detector.roi_head
    with torch.no_grad():
        feats = detector.extract_feat(batch['inputs'])
        logits, deltas = head.bbox_head(head.bbox_roi_extractor(feats, roi))
    label = int(gt.labels[k])
    delta = deltas.reshape(-1, 4)[label]
    loss = F.cross_entropy(logits, gt.labels[k : k + 1])
    loss += torch.where(delta.abs() < 1, delta**2 / 2, delta.abs() - 0.5).sum()
    return float(loss), logits.softmax(dim=1)[0].numpy()


@pytest.mark.parametrize('flip_prob', [0.0, 1.0])
def test_boxes_have_their_own_loss_at_every_checkpoint(lookalikes, tmp_path, flip_prob):
    detector, dataset, checkpoints = build(lookalikes, tmp_path, flip_prob)
    report = find_hardest(detector, dataset, checkpoints)
    classes = [*dataset.metainfo['classes'], 'background']

    assert len(report.images) == len(dataset) == 6
    losses = [box.loss for box in report.boxes]
    assert losses == sorted(losses, reverse=True)
    found = {(box.img_id, *box.box): box for box in report.boxes}
    for c, checkpoint in enumerate(checkpoints):
        weights = torch.load(checkpoint, weights_only=True)['state_dict']
        detector.load_state_dict(weights)
        for i in range(len(dataset)):
            info = dataset.get_data_info(i)
            for k, instance in enumerate(info['instances']):
                box = found[(info['img_id'], *instance['bbox'])]
                loss, probabilities = box_loss_by_hand(detector, dataset[i], k)
                assert box.losses[c] == pytest.approx(loss, rel=1e-3)
                assert box.label == classes[instance['bbox_label']]
                if c == 1:
                    assert box.says == classes[probabilities.argmax()]
                    assert box.score == pytest.approx(probabilities.max(), rel=1e-3)
    assert len(found) == sum(
        len(dataset.get_data_info(i)['instances']) for i in range(len(dataset))
    )
    assert report.spots
    for spot in report.spots:
        assert spot.label == 'background' != spot.says
        assert 1 <= spot.mined == sum(loss > 0 for loss in spot.losses)


def test_spots_lie_far_from_every_labelled_box(lookalikes, tmp_path):
    """From difficult ones too, which are background in training."""
    data = tmp_path / 'data'
    shutil.copytree(lookalikes, data)
    for path in (data / 'Annotations').iterdir():
        easy, difficult = '<difficult>0<', '<difficult>1<'
        path.write_text(path.read_text().replace(easy, difficult, 1))
    detector, dataset, checkpoints = build(data, tmp_path, 0.0)
    report = find_hardest(detector, dataset, checkpoints)
    assert report.spots
    num_ignored = 0
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        boxes = [instance['bbox'] for instance in info['instances']]
        assert sorted(report.labelled[info['img_path']]) == sorted(boxes)
        num_ignored += sum(instance['ignore_flag'] for instance in info['instances'])
        for spot in report.spots:
            if spot.img_id == info['img_id']:
                # Boxes of a report are rounded to tenths of a pixel.
                assert max(iou(spot.box, box) for box in boxes) < 0.101
    assert num_ignored == len(dataset)


def test_a_checkpoint_of_another_config_is_named(lookalikes, tmp_path):
    detector, dataset, _ = build(lookalikes, tmp_path, 0.0)
    torch.save(dict(state_dict={'other': torch.zeros(1)}), tmp_path / 'other.pth')
    with pytest.raises(ValueError, match='other.pth does not fit the config'):
        find_hardest(detector, dataset, [str(tmp_path / 'other.pth')])


def test_a_broken_image_is_named(lookalikes, tmp_path):
    data = tmp_path / 'data'
    shutil.copytree(lookalikes, data)
    detector, dataset, checkpoints = build(data, tmp_path, 0.0)
    broken = dataset.get_data_info(2)['img_path']
    with open(broken, 'w') as file:
        file.write('no image')
    with pytest.raises(ValueError, match=f'{broken} cannot be read as an image'):
        find_hardest(detector, dataset, checkpoints[:1])


class References(HTMLParser):
    """What a page would load, and its texts."""

    def __init__(self):
        super().__init__()
        self.found, self.texts, self.tags = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for key, value in attrs if key in ('src', 'href')]

    def handle_data(self, data):
        self.texts.append(data)

    def thumbnails(self) -> list[np.ndarray]:
        """(H, W, 3) int RGB."""
        codes = [found.partition(',')[2] for found in self.found]
        files = [np.frombuffer(base64.b64decode(code), np.uint8) for code in codes]
        return [cv2.imdecode(file, 1)[..., ::-1].astype(int) for file in files]


def is_green(picture: np.ndarray) -> np.ndarray:
    """(H, W) bool; JPEG washes the colour of a thin line out."""
    return picture[..., 1] - picture[..., 0] > 30


def is_orange(picture: np.ndarray) -> np.ndarray:
    return picture[..., 0] - picture[..., 2] > 60


def test_every_thumbnail_shows_the_ground_truth(tmp_path):
    path = str(tmp_path / 'grey.png')
    cv2.imwrite(path, np.full((160, 160, 3), 200, np.uint8))
    labelled = [[10.0, 10, 50, 50], [20.0, 90, 60, 130]]
    box = Hard('grey', path, [1.0], labelled[0], 'cat')
    spot = Hard('grey', path, [1.0], [60.0, 90, 100, 130], 'background', says='cat')
    image = Hard('grey', path, [1.0])
    report = Report(['iter_1.pth'], [box], [spot], [image], {path: labelled})
    write_report(report, tmp_path / 'report')
    page = References()
    page.feed((tmp_path / 'report' / 'hardest.html').read_text())
    of_box, of_spot, of_image = page.thumbnails()

    # The whole picture at its own size: both boxes and nothing else.
    lines = np.zeros((160, 160), bool)
    for x1, y1, x2, y2 in np.array(labelled, int):
        lines[y1 : y2 + 1, [x1, x2]] = lines[[y1, y2], x1 : x2 + 1] = True
    assert is_green(of_image)[lines].mean() > 0.9
    near = cv2.dilate(lines.astype(np.uint8), np.ones((9, 9))) > 0
    assert is_green(of_image)[~near].mean() < 0.01 and not is_orange(of_image).any()
    # 80 px of the picture, twice as large: the spot in the middle, a box at its left.
    assert of_spot.shape == (160, 160, 3)
    assert is_orange(of_spot)[40:121, [40, 120]].mean() > 0.9
    assert is_green(of_spot)[[40, 120], :35].mean() > 0.9
    # 70 px of the picture: its own box from (10, 10) on.
    assert is_green(of_box)[24:114, 23].mean() > 0.9 and not is_orange(of_box).any()


def test_the_page_needs_nothing_but_itself(tmp_path):
    image = tmp_path / 'a & b.png'
    cv2.imwrite(str(image), np.full((90, 120, 3), 200, np.uint8))
    box = Hard(
        'a & b', str(image), [2.0, 1.0], [10, 20, 60, 80], '<cat>', 2, 'dog', 0.9
    )
    spot = Hard(
        'a & b', str(image), [0.0, 0.5], [0, 0, 9, 9], 'background', 1, 'dog', 1
    )
    report = Report(
        ['iter_1.pth', 'iter_2.pth'],
        boxes=[box] * 3,
        spots=[spot],
        images=[Hard('a & b', str(image), [1.0, 2.0])],
    )
    write_report(report, tmp_path / 'report', num=2)
    assert sorted(path.name for path in (tmp_path / 'report').iterdir()) == [
        'hardest.csv',
        'hardest.html',
        'hardest.json',
    ]
    page = References()
    page.feed((tmp_path / 'report' / 'hardest.html').read_text())
    assert len(page.found) == 2 + 1 + 1  # two of the boxes, a spot, an image
    assert all(found.startswith('data:image/jpeg;base64,') for found in page.found)
    assert not {'script', 'link', 'iframe'} & set(page.tags)
    for text in ('<cat>', 'dog 0.90', '1.50', '2 of 2', '1 of 2', 'a & b'):
        assert text in page.texts, text

    saved = json.loads((tmp_path / 'report' / 'hardest.json').read_text())
    assert saved['checkpoints'] == ['iter_1.pth', 'iter_2.pth']
    assert len(saved['boxes']) == 3 and saved['boxes'][0]['loss'] == 1.5
    with open(tmp_path / 'report' / 'hardest.csv') as file:
        rows = list(csv.DictReader(file))
    assert [row['list'] for row in rows] == ['boxes'] * 3 + ['spots', 'images']
    assert rows[1]['rank'] == '2' and rows[1]['losses'] == '2.0000 1.0000'
    assert [rows[0][key] for key in ('x1', 'y1', 'x2', 'y2')] == [
        '10',
        '20',
        '60',
        '80',
    ]


def test_the_tool_finds_the_checkpoints_of_a_work_dir(lookalikes, tmp_path, capsys):
    build(lookalikes, tmp_path, 0.0)
    (tmp_path / 'iter_2.pth').rename(tmp_path / 'iter_10.pth')
    corrupted = tmp_path / 'corrupted.json'
    corrupted.write_text('[]')
    run_tool_here(
        'tools/hardest_images.py',
        tmp_path / 'random.py',
        tmp_path,
        '--work-dir',
        tmp_path / 'report',
        '--corrupted',
        corrupted,
    )
    said = capsys.readouterr().out
    assert '0 of 0 wrong labels' in said and 'the network says' in said
    saved = json.loads((tmp_path / 'report' / 'hardest.json').read_text())
    names = [path.rpartition('/')[2] for path in saved['checkpoints']]
    assert names == ['iter_1.pth', 'iter_10.pth']

    with pytest.raises(SystemExit, match='There is no checkpoint nothing.pth'):
        run_tool_here('tools/hardest_images.py', tmp_path / 'random.py', 'nothing.pth')
    corrupted.write_text('[')
    with pytest.raises(SystemExit, match='corrupted.json holds no list of spoilt lab'):
        run_tool_here(
            *('tools/hardest_images.py', tmp_path / 'random.py', tmp_path),
            *('--corrupted', corrupted),
        )
    with pytest.raises(SystemExit, match='The device cuda:99 is not there'):
        run_tool_here(
            *('tools/hardest_images.py', tmp_path / 'random.py', tmp_path),
            *('--device', 'cuda:99'),
        )


@pytest.mark.parametrize(
    'content',
    [
        '[',
        '{}',
        '[' * 100_000,
        '[1]',
        '[{"img_id": "a", "box": [0, 0, 9, NaN], "given": null}]',
        '[{"img_id": "a", "box": [0, 0, 9, 9]}]',
        '[{"img_id": 1, "box": [0, 0, 9, 9], "given": "cat"}]',
    ],
    ids=range(7),
)
def test_what_is_no_list_of_spoilt_labels_is_refused(content, tmp_path):
    path = tmp_path / 'corrupted.json'
    path.write_text('[{"img_id": "a", "box": [0, 0, 9, 9], "given": null}]')
    assert len(read_spoilt(path)) == 1
    path.write_text(content)
    with pytest.raises(ValueError, match='corrupted.json holds no list of spoilt'):
        read_spoilt(path)


def test_turned_boxes_are_written_by_their_corners_and_drawn_as_they_lie(tmp_path):
    image = tmp_path / 'a.png'
    cv2.imwrite(str(image), np.full((90, 120, 3), 200, np.uint8))
    boxes = dict(
        turned=[60, 45, 40, 10, 0.6],
        quadrilateral=[20, 30, 60, 20, 64, 36, 24, 46],
        upright=[20, 30, 60, 70],
    )
    hard = [Hard('a', str(image), [1.0], box, name) for name, box in boxes.items()]
    report = Report(['iter_1.pth'], boxes=hard, images=[Hard('a', str(image), [1.0])])
    write_report(report, tmp_path / 'report')
    with open(tmp_path / 'report' / 'hardest.csv') as file:
        *rows, row = csv.DictReader(file)
    names = [f'{axis}{i}' for i in range(1, 5) for axis in 'xy']
    assert [row[name] for name in names] == [''] * 8  # a whole image
    for row, box in zip(rows, boxes.values(), strict=True):
        assert np.allclose(
            np.float64([row[name] for name in names]), np.ravel(corners(box)), atol=0.06
        )
    page = References()
    page.feed((tmp_path / 'report' / 'hardest.html').read_text())
    for drawn, box in zip(page.thumbnails(), boxes.values(), strict=False):
        ink = np.argwhere(is_green(drawn))[:, ::-1].astype(np.float32)
        (_, sides, _), points = cv2.minAreaRect(ink), np.reshape(corners(box), (4, 2))
        wanted = np.linalg.norm(points[1:3] - points[:2], axis=1)
        assert max(sides) / min(sides) == pytest.approx(
            max(wanted) / min(wanted), rel=0.2
        )
