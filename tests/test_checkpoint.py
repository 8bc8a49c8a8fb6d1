import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.utils import digit_version

import mmdet_ohem  # noqa: F401  allows what MMEngine writes

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='PyTorch does not check by default',
)


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
