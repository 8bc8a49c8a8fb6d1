import os
import pickle
import resource

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.utils import digit_version

import mmdet_ohem  # noqa: F401  allows what MMEngine writes
from mmdet_ohem.checkpoint import (
    check_everything,
    load_checked,
    mmengine_checkpoint,
    newest_checkpoint,
    numbered_checkpoints,
    save_checkpoint,
)

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='PyTorch does not check by default',
)


def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(tmp_path):
    path = tmp_path / 'weights.pth'
    save_checkpoint(dict(state_dict=dict(a=torch.ones(2))), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match='weights.pth c.* be written'):
            save_checkpoint(dict(state_dict=dict(a=torch.ones(100_000))), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ['weights.pth']
    assert load_checked(path)['state_dict']['a'].tolist() == [1, 1]


class Code:
    """Its unpickling would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_loader_that_takes_the_check_off_is_not_used(tmp_path, monkeypatch):
    """As onedl-mmengine's, whose context of safe globals also forgets our own."""

    def load(file, map_location=None):
        with torch.serialization.safe_globals([HistoryBuffer]):
            return torch.load(file, map_location, weights_only=False)

    monkeypatch.setattr(mmengine_checkpoint, '_safe_torch_load', load, raising=False)
    bad, good = tmp_path / 'bad.pth', tmp_path / 'good.pth'
    torch.save(dict(state_dict=Code(tmp_path / 'made')), bad)
    torch.save(dict(state_dict=HistoryBuffer([0.5], [1])), good)
    load(good)
    with pytest.raises(ValueError, match='bad.pth cannot be read as a checkpoint'):
        load_checked(bad)
    assert type(load_checked(good)['state_dict']) is HistoryBuffer
    check_everything()
    with pytest.raises(pickle.UnpicklingError, match='Weights only load failed'):
        mmengine_checkpoint._safe_torch_load(bad, map_location='cpu')
    assert not (tmp_path / 'made').exists()


def test_what_mmengine_saves_loads_with_the_check_on(tmp_path):
    hub = MessageHub('test')
    hub.update_scalar('train/loss', 0.5)
    hub.update_scalar('train/loss', np.float64(1.5))
    hub.update_info('step', np.int64(3))
    path = tmp_path / 'iter_3.pth'
    torch.save(dict(message_hub=hub.state_dict(), state_dict={}), path)

    loaded = torch.load(path, weights_only=True)['message_hub']

    assert loaded['log_scalars']['train/loss'].data[0].tolist() == [0.5, 1.5]
    assert loaded['log_scalars']['train/loss'].mean() == 1.0
    assert loaded['runtime_info']['step'] == 3


class Command:
    def __reduce__(self):
        return print, ('this ran',)


class Reach:
    """getattr(HistoryBuffer.mean, '__globals__'), a way to everything."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


@pytest.mark.parametrize(
    'foreign',
    [
        Command(),
        Reach(HistoryBuffer, '__init__'),
        Reach(HistoryBuffer, '__globals__'),
        Reach(np.ndarray, 'tofile'),
    ],
)
def test_nothing_else_is_let_in(foreign, tmp_path, capsys):
    torch.save(dict(state_dict=foreign), tmp_path / 'foreign.pth')
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        torch.load(tmp_path / 'foreign.pth', weights_only=True)
    assert 'this ran' not in capsys.readouterr().out


def write_checkpoint(path, **others) -> None:
    weights = dict(weight=torch.arange(1000.0))
    torch.save(dict(meta={}, message_hub={}, state_dict=weights, **others), path)


@pytest.fixture
def work_dir(tmp_path):
    """Of a training that has saved 9, 10 and 11, where another had saved 40 before."""
    for age, number in enumerate([11, 10, 9, 40]):
        path = tmp_path / f'iter_{number}.pth'
        write_checkpoint(path)
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_11.pth'))
    return tmp_path


def spoil(work_dir, damage: str) -> None:
    newest, last = work_dir / 'iter_11.pth', work_dir / 'last_checkpoint'
    content = bytearray(newest.read_bytes())
    if damage == 'cut off':
        newest.write_bytes(content[: len(content) // 2])
    elif damage == 'a byte of a weight':
        content[content.index(torch.tensor(500.0).numpy().tobytes())] ^= 1
        newest.write_bytes(content)
    elif damage == 'weights alone':
        torch.save(dict(weight=torch.zeros(1)), newest)
    elif damage == 'gone':
        newest.unlink()
    elif damage == 'empty last_checkpoint':
        last.write_text('')
        newest.unlink()
    elif damage == 'zeros in last_checkpoint':
        last.write_bytes(bytes(40))
        newest.unlink()


def test_the_last_checkpoint_is_the_one_that_is_named(work_dir):
    assert newest_checkpoint(work_dir) == (str(work_dir / 'iter_11.pth'), '')
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_9.pth'))
    assert newest_checkpoint(work_dir) == (str(work_dir / 'iter_9.pth'), '')


@pytest.mark.parametrize(
    'damage, words',
    [
        ('cut off', 'iter_11.pth cannot be read as a checkpoint'),
        ('a byte of a weight', 'iter_11.pth cannot be read as a checkpoint'),
        ('weights alone', 'iter_11.pth holds weights, but not where its training was'),
        ('gone', 'iter_11.pth, which is not there'),
        ('empty last_checkpoint', 'last_checkpoint is empty'),
        ('zeros in last_checkpoint', 'last_checkpoint is empty'),
    ],
)
def test_the_newest_whole_one_stands_in_for_a_damaged_one(damage, words, work_dir):
    spoil(work_dir, damage)
    checkpoint, why = newest_checkpoint(work_dir)
    assert checkpoint == str(work_dir / 'iter_10.pth')
    assert words in why and why.endswith(f'goes on from {checkpoint}.')
    assert '\n' not in why


def test_a_training_that_was_killed_before_it_named_its_first(work_dir):
    (work_dir / 'last_checkpoint').unlink()
    assert newest_checkpoint(work_dir)[0] == str(work_dir / 'iter_11.pth')


def test_where_no_checkpoint_is_whole_nothing_is_thrown_away(work_dir):
    for path in numbered_checkpoints(work_dir):
        path.write_bytes(b'')
    with pytest.raises(ValueError, match='none of .*iter_11.pth.*iter_9.pth'):
        newest_checkpoint(work_dir)


def test_where_there_is_none_the_training_starts_anew(tmp_path):
    assert newest_checkpoint(tmp_path) == (None, '')
    (tmp_path / 'last_checkpoint').write_text('')
    checkpoint, why = newest_checkpoint(tmp_path)
    assert checkpoint is None and 'starts anew' in why


def test_checkpoints_are_ordered_by_number(work_dir):
    (work_dir / 'best_mAP_iter_50.pth').write_bytes(b'')
    names = [path.name for path in numbered_checkpoints(work_dir)]
    assert names == ['iter_9.pth', 'iter_10.pth', 'iter_11.pth', 'iter_40.pth']


def test_a_damaged_weight_is_refused(work_dir):
    path = work_dir / 'iter_11.pth'
    assert load_checked(path)['state_dict']['weight'][500] == 500
    spoil(work_dir, 'a byte of a weight')
    with pytest.raises(ValueError, match='iter_11.pth cannot be read'):
        load_checked(path)
