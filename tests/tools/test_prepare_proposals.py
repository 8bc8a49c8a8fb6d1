import json
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.fileio import dump
from scipy.io import savemat
from support import small_data
from support.tools import heed_interrupts

from mmdet_ohem.proposals.store import ProposalStore

ROOT = Path(__file__).parents[2]


TOOL = ROOT / 'tools' / 'prepare_proposals.py'


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the tool in this process: its output, or the message it exits with."""

    def run(*args):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, args)])
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as exit:
            return str(exit.code)
        return capsys.readouterr().out

    return run


@pytest.fixture
def images(tmp_path):
    """A folder of three images, 100 x 80."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for i, name in enumerate('abc'):
        image = np.full((80, 100, 3), 50 * i, dtype=np.uint8)
        image[20:60, 30 + i : 80] = 255 - 50 * i
        cv2.imwrite(str(folder / f'{name}.png'), image)
    return folder


def test_selective_search_with_a_list_of_ids(images, tmp_path, run):
    (tmp_path / 'train.txt').write_text('c\na 1\n')  # VOC's class lists: 2 columns
    out = tmp_path / 'stores' / 'ss'
    ids = ['--ids', tmp_path / 'train.txt']
    printed = run('selective-search', '--images', images, '--out', out, *ids)
    assert '2 images' in printed and 'boxes read' in printed
    store = ProposalStore(out)
    boxes, size = store.get('c')
    assert size == (100, 80) and len(boxes)
    assert 'a' in store and 'b' not in store
    assert [path.name for path in out.parent.iterdir()] == ['ss']

    again = run('selective-search', '--images', images, '--out', out)
    assert 'exists already' in again and '--overwrite' in again
    (tmp_path / 'train.txt').write_text('d\n')
    other = run('selective-search', '--images', images, '--out', f'{out}2', *ids)
    assert "no image 'd'" in other


def test_a_list_of_ids_beside_annotations_is_refused(images, tmp_path, run):
    small_data.write_voc(tmp_path / 'voc', dict(train=['1', '2']), ['cat'])
    (tmp_path / 'train.txt').write_text('1\n')
    said = run(
        *('selective-search', '--images', tmp_path / 'voc' / 'JPEGImages'),
        *('--annotations', tmp_path / 'voc' / 'Annotations'),
        *('--ids', tmp_path / 'train.txt', '--out', tmp_path / 'store'),
    )
    assert said.startswith('--ids and --annotations do not go together')


def test_files_of_single_images(images, tmp_path, run):
    for name, x in (('a', 10), ('b', 20)):
        boxes = np.array([[x, 0, 50, 50], [x, 0, 50, 50], [0, 0, 1, 60]], np.uint16)
        savemat(tmp_path / f'{name}.mat', {'boxes': boxes})
    files = [tmp_path / 'a.mat', tmp_path / 'b.mat']
    pictures = [images / 'a.png', images / 'b.png']
    out = tmp_path / 'two'
    printed = run('mat', *files, '--images', *pictures, '--out', out)
    assert '2 images, 6 boxes read, 2 kept' in printed
    assert ProposalStore(out).get('a')[0].tolist() == [[10, 0, 50, 50]]
    assert ProposalStore(out).get('b')[0].tolist() == [[20, 0, 50, 50]]

    lone = run('mat', *files, '--images', images / 'a.png', '--out', f'{out}2')
    assert 'one image file for each' in lone
    folder = run('mat', *files, '--images', images, '--out', f'{out}2')
    assert "no variable 'images'" in folder
    assert not Path(f'{out}2').exists()


def test_file_of_a_data_set(images, tmp_path, run):
    cells = np.empty((1, 2), dtype=object)
    cells[0, :] = [np.array([[1, 1, 40, 30]]), np.array([[11, 21, 60, 90]])]
    names = np.array([['a'], ['c']], dtype=object)
    savemat(tmp_path / 'voc.mat', {'boxes': cells, 'images': names})
    run('mat', tmp_path / 'voc.mat', '--images', images, '--out', tmp_path / 'store')
    boxes = ProposalStore(tmp_path / 'store').get('c')[0]
    assert boxes.tolist() == [[20, 10, 89, 59]]

    (images / 'c.png').unlink()
    args = ['--images', images, '--out', tmp_path / 'other']
    assert "no image 'c'" in run('mat', tmp_path / 'voc.mat', *args)


def test_mcg_keeps_the_best_of_what_is_left_after_cleaning(images, tmp_path, run):
    mats = tmp_path / 'mat' / 'more'
    mats.mkdir(parents=True)
    best_first = [  # y1, x1, y2, x2, from 1
        [1, 1, 40, 30],
        [1, 1, 40, 30],  # the best again
        [5, 5, 6, 60],  # one pixel high
        [11, 21, 60, 90],
        [2, 2, 70, 80],
    ]
    for name in 'abc':
        savemat(mats / f'{name}.mat', {'boxes': np.array(best_first, np.uint16)})
    out = tmp_path / 'store'
    args = ['mcg', tmp_path / 'mat', '--images', images, '--out', out, '--top-k', 2]
    printed = run(*args)
    assert '3 images, 15 boxes read, 6 kept' in printed and 'the best 2' in printed
    boxes, size = ProposalStore(out).get('b')
    assert boxes.tolist() == [[0, 0, 29, 39], [20, 10, 89, 59]] and size == (100, 80)

    (mats / 'b.mat').unlink()
    assert 'has no b.mat' in run(*args[:-2], '--overwrite')
    assert '--top-k is 0' in run(*args[:-1], 0, '--overwrite')


def test_dump_replaces_a_store_when_asked(images, tmp_path, run):
    out = tmp_path / 'store'
    run('selective-search', '--images', images, '--out', out)
    dump({'x/b.jpg': {'bboxes': np.array([[0, 0, 9, 7.5]])}}, str(tmp_path / 'rpn.pkl'))
    args = ['dump', tmp_path / 'rpn.pkl', '--images', images, '--out', out]
    assert '--overwrite' in run(*args)
    run(*args, '--overwrite')
    assert ProposalStore(out).get('b')[0].tolist() == [[0, 0, 9, 7.5]]
    assert '1 boxes read, 0 kept' in run(*args, '--overwrite', '--min-size', '8')


@pytest.mark.parametrize('min_size', ['nan', 'inf', '-1'])
def test_a_side_that_is_no_length_is_refused(images, tmp_path, run, min_size):
    args = ['--images', images, '--out', tmp_path / 'store', f'--min-size={min_size}']
    assert '--min-size is' in run('selective-search', *args)
    assert not (tmp_path / 'store').exists()


def test_an_image_name_that_is_not_utf8_is_one_sentence(images, tmp_path, run):
    (images / 'a.png').rename(images / os.fsdecode(b'caf\xe9.png'))
    said = run('selective-search', '--images', images, '--out', tmp_path / 'store')
    assert 'is not UTF-8: rename' in said


def test_check_says_whether_a_store_is_whole(images, tmp_path, run):
    out = tmp_path / 'store'
    (tmp_path / 'rpn.pkl').write_bytes(
        pickle.dumps({'x/b.jpg': {'bboxes': np.array([[0, 0, 9, 7.5]])}})
    )
    run('dump', tmp_path / 'rpn.pkl', '--images', images, '--out', out)
    assert run('check', out) == f'{out} is whole: 1 images, as they were written.\n'

    boxes = (out / 'boxes.npy').read_bytes()
    (out / 'boxes.npy').write_bytes(boxes[:-1] + b'\1')
    assert 'boxes.npy is not what was written' in run('check', out)
    (out / 'boxes.npy').write_bytes(boxes)
    meta = json.loads((out / 'meta.json').read_text())
    del meta['sha256']
    (out / 'meta.json').write_text(json.dumps(meta))
    assert 'older version, without checksums' in run('check', out)
    assert 'There is no proposal store' in run('check', tmp_path / 'nothing')


def test_interrupted_search_goes_on_where_it_stopped(tmp_path, run):
    images, out = tmp_path / 'images', tmp_path / 'store'
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        noise = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
        noise = cv2.resize(noise, (400, 320))
        cv2.imwrite(str(images / f'{i:02}.png'), noise)
    args = ['selective-search', '--images', images, '--out', out, '--workers', '1']
    # A session of its own: Ctrl-C reaches every process of the tool, as in a terminal.
    tool = subprocess.Popen(
        [sys.executable, str(TOOL), *map(str, args)],
        env={**os.environ, 'PYTHONPATH': str(ROOT)},
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )
    partial = tmp_path / 'store.partial'
    deadline = time.time() + 300
    while len(list(partial.glob('fast-*/*.npy'))) < 2 and time.time() < deadline:
        time.sleep(0.02)
    os.killpg(tool.pid, signal.SIGINT)
    errors = tool.communicate(timeout=60)[1].decode()
    assert tool.returncode == 1 and 'goes on' in errors and 'Traceback' not in errors
    done = len(list(partial.glob('fast-*/*.npy')))
    assert 2 <= done < 12 and not out.exists()

    assert f'{done} of 12 images were done before' in run(*args)
    assert len(ProposalStore(out)) == 12 and not partial.exists()
