import csv
import json
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import run_tool, small_config
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from mmdet_ohem.hardest_images import Hard, Report, find_hardest
from mmdet_ohem.hardest_page import write_report

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
    for spot in report.spots:
        assert spot.label == 'background' != spot.says
        assert 1 <= spot.mined == sum(loss > 0 for loss in spot.losses)


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


def test_the_tool_finds_the_checkpoints_of_a_work_dir(lookalikes, tmp_path):
    build(lookalikes, tmp_path, 0.0)
    (tmp_path / 'iter_2.pth').rename(tmp_path / 'iter_10.pth')
    corrupted = tmp_path / 'corrupted.json'
    corrupted.write_text('[]')
    run = run_tool(
        'tools/hardest_images.py',
        tmp_path / 'random.py',
        tmp_path,
        '--work-dir',
        tmp_path / 'report',
        '--corrupted',
        corrupted,
    )
    assert run.returncode == 0, run.stderr
    assert '0 of 0 wrong labels' in run.stdout and 'the network says' in run.stdout
    saved = json.loads((tmp_path / 'report' / 'hardest.json').read_text())
    names = [path.rpartition('/')[2] for path in saved['checkpoints']]
    assert names == ['iter_1.pth', 'iter_10.pth']

    missing = run_tool('tools/hardest_images.py', tmp_path / 'random.py', 'nothing.pth')
    assert missing.returncode != 0
    assert 'There is no checkpoint nothing.pth' in missing.stderr
