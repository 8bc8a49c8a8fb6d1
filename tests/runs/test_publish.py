"""A published detector: what is in it, and that another process loads it."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.registry import init_default_scope
from support.tools import ROOT, run_tool_here

from mmdet_ohem.runs import load_detector, publish

CONFIG = ROOT / 'configs' / 'fast_rcnn_small_ohem_lookalikes.py'
VALIDATION = {'pascal_voc/mAP': 0.75, 'step': 6}


@pytest.fixture
def work_dir(tmp_path):
    """What a training of 6 iterations leaves, with random weights."""
    config = Config.fromfile(CONFIG)
    config.test_dataloader.dataset.data_root = 'nowhere/'
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(config.model)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1, momentum=0.9)
    meta = dict(
        cfg=config.pretty_text,
        dataset_meta=dict(classes=('washer', 'nut', 'gear')),
        epoch=0,
        iter=6,
        mmengine_version='0.10.7',
        experiment_name='run_20260101',
    )
    content = dict(
        meta=meta,
        state_dict=detector.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}),
    )
    folder = tmp_path / 'my_run'
    (folder / '20260101' / 'vis_data').mkdir(parents=True)
    torch.save(content, folder / 'iter_6.pth')
    lines = [{'loss': 1.0, 'step': 3}, {'pascal_voc/mAP': 0.5, 'step': 3}, VALIDATION]
    log = ''.join(f'{json.dumps(line)}\n' for line in lines)
    (folder / '20260101' / 'vis_data' / 'scalars.json').write_text(log)
    return folder


def test_the_folder_holds_weights_config_log_and_a_card(work_dir, tmp_path, capsys):
    checkpoint, out = work_dir / 'iter_6.pth', tmp_path / 'out'
    run_tool_here('tools/publish.py', checkpoint, '--out', out)
    (folder,) = out.iterdir()
    assert str(folder) in capsys.readouterr().out
    weights = folder / f'{folder.name}.pth'
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert folder.name == f'my_run-{digest[:8]}'
    # No class is allowed in a process that knows nothing of this package.
    script = f'import torch; print(*torch.load({str(weights)!r}, weights_only=True))'
    loaded = subprocess.run([sys.executable, '-c', script], capture_output=True)
    assert loaded.stdout.decode().split() == ['state_dict', 'meta']
    assert json.loads((folder / 'log.json').read_text().splitlines()[-1]) == VALIDATION
    card = (folder / 'README.md').read_text()
    for words in (
        '0.75',
        'mmdet_ohem.OHEMSampler, num=64',
        'washer, nut, gear',
        '| 6 |',
    ):
        assert words in card
    assert '0.5 |' not in card

    trained = torch.load(checkpoint, weights_only=False)['state_dict']
    detector = load_detector(folder)
    assert detector.dataset_meta['classes'] == ('washer', 'nut', 'gear')
    for name, values in detector.state_dict().items():
        assert torch.equal(values, trained[name]), name

    with pytest.raises(FileExistsError, match='these weights are published'):
        publish(checkpoint, out, 'my_run')
    assert list(out.iterdir()) == [folder]


def test_the_map_of_a_comparison_is_on_the_card(work_dir, tmp_path):
    (work_dir / '20260101' / 'vis_data' / 'scalars.json').write_text('')
    folder = publish(work_dir / 'iter_6.pth', tmp_path / 'a', 'x')
    assert 'No mAP was logged' in (folder / 'README.md').read_text()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_6.pth'))
    result = dict(metric='pascal_voc/mAP', mAP=0.625)
    (work_dir / 'result.json').write_text(json.dumps(result))
    folder = publish(work_dir / 'iter_6.pth', tmp_path / 'b', 'x')
    assert '| pascal_voc/mAP | 0.625 |' in (folder / 'README.md').read_text()


def test_damaged_weights_are_refused(work_dir, tmp_path):
    folder = publish(work_dir / 'iter_6.pth', tmp_path / 'out', 'x')
    weights = folder / f'{folder.name}.pth'
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match='is damaged'):
        load_detector(folder)
    with pytest.raises(ValueError, match='tools/publish.py wrote'):
        load_detector(tmp_path)


def test_what_is_no_checkpoint_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / 'iter_1.pth').write_text('no checkpoint')
    with pytest.raises(ValueError, match='iter_1.pth is no checkpoint'):
        publish(tmp_path / 'iter_1.pth', tmp_path / 'out', 'x')
    assert not (tmp_path / 'out').exists()
    torch.save(dict(state_dict={}), tmp_path / 'iter_1.pth')
    with pytest.raises(ValueError, match='with its config'):
        publish(tmp_path / 'iter_1.pth', tmp_path / 'out', 'x')
