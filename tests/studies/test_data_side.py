import json
import mmap
import shutil
import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.utils import register_all_modules
from mmengine.dataset import Compose
from studies import data_side as benchmark_data

from mmdet_ohem.proposals.store import write_store

register_all_modules()


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
    """Results of a small run, and what it left in the temporary folder."""
    scratch = tmp_path_factory.mktemp('scratch')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, 'tempdir', str(scratch))
        patch.setattr(benchmark_data, 'PICTURES', 3)
        results = benchmark_data.measure(num_images=50, boxes_per_image=20, rounds=1)
    left = [path.name for path in scratch.iterdir() if 'mmdet_ohem' in path.name]
    return results, left


@pytest.mark.slow
def test_nothing_is_left_behind(measured):
    assert measured[1] == []


@pytest.mark.slow
def test_ratio_is_that_of_the_medians(measured):
    seconds = measured[0]['pipelines']
    ratio = statistics.median(seconds['mmdet']) / statistics.median(seconds['ours'])
    assert measured[0]['ratio'] == pytest.approx(ratio)


@pytest.mark.slow
def test_each_worker_reports_once_and_all_can_be_saved_as_json(measured):
    results = json.loads(json.dumps(measured[0]))
    for way in ('store', 'without_store', 'mmdet', 'without_mmdet'):
        (seen,) = results['observed'][way]
        reports = {name: len(values) for name, values in seen['memory'].items()}
        assert reports == {
            'main': 1,
            'fork 1': 1,
            'fork 4': 4,
            'fork 8': 8,
            'spawn 1': 1,
        }
        assert seen['open'] > 0 and seen['read'] > 0


@pytest.mark.slow
def test_tables_name_what_was_measured(measured):
    text = benchmark_data.tabulate(measured[0])
    for row in (
        'training pipeline, ms per image',
        'opening, ms',
        'reading one image, ms',
        'training process',
        'each worker, fork 8',
        'each worker, spawn 1',
    ):
        assert f'\n| {row} |' in text
    assert '50 images, 20 random boxes' in text


def test_table_of_numbers_made_by_hand():
    """Ours: 30 - 10 clean, 8 - 5 written. Theirs: 1/20 of the images, so 20 times."""

    def seen(seconds_open, clean, written):
        memory = {'main': [[clean, written]], 'fork 1': [[clean, written]]}
        return [dict(open=seconds_open, read=0.001, memory=memory)]

    results = dict(
        num_images=100,
        boxes_per_image=7,
        pictures='p',
        pipelines=dict(ours=[0.010, 0.020, 0.012], mmdet=[0.018, 0.018, 0.030]),
        ratio=1.5,
        scale=20.0,
        observed=dict(
            store=seen(0.002, 30, 8),
            without_store=seen(0.1, 10, 5),
            mmdet=seen(0.3, 10, 9),
            without_mmdet=seen(0.1, 10, 5),
        ),
    )
    text = benchmark_data.tabulate(results)
    assert '| 12.0 (10.0 to 20.0) | 18.0 (18.0 to 30.0) |' in text
    assert '| opening, ms | 2.0 (2.0 to 2.0) | 4000.0 (4000.0 to 4000.0)* |' in text
    ours = '23.0 (23.0 to 23.0) | 3.0'
    assert f'| training process | {ours} | 80.0 (80.0 to 80.0)* |' in text
    # A forked worker shares the data set with its parent: nothing to multiply.
    assert f'| each worker, fork 1 | {ours} | 4.0 (4.0 to 4.0) |' in text


def test_both_pipelines_give_the_same_proposals(tmp_path):
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    corner = rng.uniform(0, 30, (50, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(2, 30, (50, 2))], axis=1)
    boxes = boxes.astype(np.float32)
    write_store(tmp_path / 'store', [('a', boxes, (80, 60))], source='by hand')
    packed = {}
    for key, steps in benchmark_data.pipelines_of(tmp_path / 'store').items():
        np.random.seed(1)
        packed[key] = Compose(steps)(
            dict(
                img_id='a',
                img_path=str(tmp_path / 'a.png'),
                instances=[dict(bbox=[5, 5, 40, 40], bbox_label=0, ignore_flag=0)],
                proposals=dict(bboxes=boxes),
            )
        )
    ours, theirs = packed['ours'], packed['mmdet']
    assert ours['inputs'].equal(theirs['inputs'])
    np.testing.assert_allclose(
        ours['data_samples'].proposals.bboxes,
        theirs['data_samples'].proposals.bboxes,
        atol=1e-3,
    )


def test_memory_that_is_written_counts_and_a_file_is_told_apart(tmp_path):
    path = tmp_path / 'file.npy'
    np.save(path, np.ones(4_000_000))  # 32 MB
    benchmark_data._drop_from_memory(path)
    before = benchmark_data.unshared_memory()
    mapped = np.load(path, mmap_mode='r')
    assert mapped.sum() == 4_000_000
    of_file = np.subtract(benchmark_data.unshared_memory(), before)
    # Not an array: it could get memory that this process had written before.
    written = mmap.mmap(-1, 32_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for _ in range(32):
        written.write(bytes(1_000_000))
    of_both = np.subtract(benchmark_data.unshared_memory(), before)
    np.testing.assert_allclose(of_file, [32, 0], atol=4)
    np.testing.assert_allclose(of_both, [32, 32], atol=4)
    written.close()


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    usage = shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage)
    with pytest.raises(OSError, match=r'4\.2 GB .* 1\.0 GB free: set TMPDIR'):
        benchmark_data.measure()
    assert list(Path(tmp_path).iterdir()) == []


def test_an_interrupt_removes_the_folder(monkeypatch, tmp_path):
    def interrupt(*arguments):
        assert list(tmp_path.iterdir())  # the folder is there
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(benchmark_data, 'PICTURES', 3)
    monkeypatch.setattr(benchmark_data, '_in_fresh_process', interrupt)
    with pytest.raises(KeyboardInterrupt):
        benchmark_data.measure(num_images=50, boxes_per_image=20, rounds=1)
    assert list(tmp_path.iterdir()) == []
