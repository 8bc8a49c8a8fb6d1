import json

import cv2
import numpy as np
import pytest
from support.tools import run_tool_here

from mmdet_ohem.visualization.curves import plot_curves, read_curve


def write_log(work_dir, start: str, lines: list[dict], tail: str = '') -> None:
    folder = work_dir / start / 'vis_data'
    folder.mkdir(parents=True)
    text = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (folder / 'scalars.json').write_text(text + tail)


def line(step: int, value: float) -> dict:
    return {'step': step, 'loss': 9, 'mining/loss_all_rois': value}


def test_a_resumed_run_is_one_curve(tmp_path):
    validated = {'step': 20, 'pascal_voc/mAP': 0.5}
    before = [line(10, 3), line(20, 2), validated, line(30, 1.5), line(40, 1.4)]
    write_log(tmp_path, '20260101_000000', before, tail='{"step": 50, "lo')
    # Resumed at iteration 20; what came after it is gone.
    write_log(tmp_path, '20260102_000000', [line(30, 1.6)])
    assert read_curve(tmp_path) == {10: 3, 20: 2, 30: 1.6}
    assert read_curve(tmp_path, 'loss') == {10: 9, 20: 9, 30: 9}


def test_curves_are_drawn_with_their_names(tmp_path):
    curves = {'ohem': {0: 2.0, 100: 0.5}, 'random': {0: 1.0, 100: 1.0}}
    plot_curves(curves, tmp_path / 'new' / 'losses.png')
    picture = cv2.imread(str(tmp_path / 'new' / 'losses.png')).astype(int)
    assert picture.shape[1] > 900
    for blue_green_red in ((180, 119, 31), (14, 127, 255)):  # matplotlib's first two
        assert (np.abs(picture - blue_green_red).max(axis=2) < 30).sum() > 300
    assert not list((tmp_path / 'new').glob('*.partial*'))


def test_the_tool_names_curves_by_folder(tmp_path, capsys):
    for name, value in (('ohem', 0.5), ('random', 0.75)):
        write_log(tmp_path / name, '20260101_000000', [line(10, 3), line(20, value)])
    out = tmp_path / 'losses.png'
    run_tool_here(
        'tools/plot_losses.py', tmp_path / 'ohem', tmp_path / 'random', '--out', out
    )
    said = capsys.readouterr().out
    assert 'ohem: 0.5000 at iteration 20\nrandom: 0.7500 at' in said
    assert 'different lengths' not in said
    assert out.stat().st_size > 10_000


def test_the_tool_says_that_curves_have_different_lengths(tmp_path, capsys):
    write_log(tmp_path / 'long', '20260101_000000', [line(10, 3), line(20, 1)])
    write_log(tmp_path / 'short', '20260101_000000', [line(10, 3)])
    work_dirs = (tmp_path / 'long', tmp_path / 'short')
    run_tool_here('tools/plot_losses.py', *work_dirs, '--out', tmp_path / 'losses.png')
    said = capsys.readouterr().out
    assert 'different lengths: compare them up to iteration 10 alone.' in said


def test_what_is_no_log_of_a_training_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='holds no log of a training'):
        read_curve(tmp_path / 'nothing')
    write_log(tmp_path / 'old', '20260101_000000', [{'step': 1, 'loss': 2.0}])
    with pytest.raises(ValueError, match='no mining/loss_all_rois; it has loss, step'):
        read_curve(tmp_path / 'old')
    write_log(tmp_path / 'broken', '20260101_000000', [], tail='what?\n')
    with pytest.raises(ValueError, match="scalars.json is not MMEngine's log"):
        read_curve(tmp_path / 'broken')
