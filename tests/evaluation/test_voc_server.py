import os
import tarfile

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, METRICS
from mmengine.registry import init_default_scope
from support import small_data

CLASSES = ('cat', 'dog', 'person')


def predict(seed: int, count: int) -> dict:
    """A data sample of the model, as MMEngine hands it to a metric."""
    rng = np.random.default_rng(seed)
    return dict(
        img_id=f'2008_{seed:06}',
        pred_instances=dict(
            labels=torch.from_numpy(rng.integers(0, 2, count)),
            scores=torch.from_numpy(rng.random(count, np.float32)),
            bboxes=torch.from_numpy(100 * rng.random((count, 4), np.float32)),
        ),
    )


def write(out_dir, samples: list[dict]) -> None:
    metric = METRICS.build(dict(type='mmdet_ohem.VOCServerFiles', out_dir=str(out_dir)))
    metric.dataset_meta = dict(classes=CLASSES)
    for sample in samples:
        metric.process({}, [sample])
    assert metric.evaluate(size=len(samples)) == {}


def read(text: str) -> list[tuple]:
    lines = [line.split() for line in text.splitlines()]
    return [(img_id, *map(float, numbers)) for img_id, *numbers in lines]


def test_the_files_parse_back_to_the_detections(tmp_path):
    samples = [predict(seed, count) for seed, count in ((1, 30), (2, 0), (3, 5))]
    write(tmp_path, samples)
    expected = {name: [] for name in CLASSES}
    for sample in samples:
        found = sample['pred_instances']
        for label, score, box in zip(*found.values(), strict=True):
            row = (sample['img_id'], float(score), *(box + 1).tolist())  # from 1
            expected[CLASSES[label]].append(row)
    assert expected['cat'] and expected['dog'] and not expected['person']

    folder = tmp_path / 'results' / 'VOC2012' / 'Main'
    assert len(os.listdir(folder)) == len(CLASSES)
    for name, rows in expected.items():
        read_back = read((folder / f'comp4_det_test_{name}.txt').read_text())
        assert [row[0] for row in read_back] == [row[0] for row in rows]
        for row, expected_row in zip(read_back, rows, strict=True):
            assert row[1] == pytest.approx(expected_row[1], abs=1e-7)
            assert row[2:] == pytest.approx(expected_row[2:], abs=0.0051)


def test_a_line_worked_out_by_hand(tmp_path):
    found = dict(labels=[1], scores=[0.00002], bboxes=[[0.0, 9.5, 49.0, 99.25]])
    sample = dict(
        img_id='2008_000001',
        pred_instances={key: torch.tensor(value) for key, value in found.items()},
    )
    write(tmp_path, [sample])
    path = tmp_path / 'results' / 'VOC2012' / 'Main' / 'comp4_det_test_dog.txt'
    assert path.read_text() == '2008_000001 0.0000200 1.00 10.50 50.00 100.25\n'


def test_the_archive_holds_the_same_files_and_the_next_replaces_it(tmp_path):
    write(tmp_path, [predict(1, 30)])
    write(tmp_path, [predict(2, 9)])
    with tarfile.open(tmp_path / 'results.tar.gz') as archive:
        names = archive.getnames()
        texts = {name: archive.extractfile(name).read().decode() for name in names}
    assert names == [f'results/VOC2012/Main/comp4_det_test_{c}.txt' for c in CLASSES]
    assert texts == {name: (tmp_path / name).read_text() for name in names}
    assert {row[0] for text in texts.values() for row in read(text)} == {'2008_000002'}
    assert sorted(os.listdir(tmp_path)) == ['results', 'results.tar.gz']


def test_no_folder_is_said_at_the_first_image():
    metric = METRICS.build(dict(type='mmdet_ohem.VOCServerFiles'))
    with pytest.raises(ValueError, match='out_dir .* is not set'):
        metric.process({}, [predict(1, 3)])


@pytest.mark.parametrize('has_other_annotations', [False, True])
def test_images_are_listed_without_their_annotations(tmp_path, has_other_annotations):
    root = tmp_path / 'VOC2012'
    lists = dict(test=['2008_000001', '2008_000004'])
    annotated = ['test'] if has_other_annotations else []
    small_data.write_voc(root, lists, CLASSES, annotated)
    init_default_scope('mmdet')
    images = DATASETS.build(
        dict(
            type='mmdet_ohem.VOCImages',
            data_root=str(tmp_path),
            data_prefix=dict(sub_data_root='VOC2012/'),
            ann_file='VOC2012/ImageSets/Main/test.txt',
            test_mode=True,
            pipeline=[],
        )
    )
    assert len(images) == 2 and images.metainfo['dataset_type'] == 'VOC2012'
    info = images[1]
    assert info['img_id'] == '2008_000004' and info['instances'] == []
    assert (info['width'], info['height']) == (small_data.WIDTH, small_data.HEIGHT)
    assert info['img_path'] == str(root / 'JPEGImages' / '2008_000004.jpg')
