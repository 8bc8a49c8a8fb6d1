"""A checkpoint that holds code is one sentence, whatever tool loads it."""

import pickle

import pytest
import torch
from mmengine.utils import digit_version
from support.tools import run_tool_here, small_config

OHEM = 'fast_rcnn_small_ohem_lookalikes.py'

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='PyTorch does not check by default',
)


class Code:
    """Pickled, it opens a file for writing when it is read."""

    def __init__(self, trace) -> None:
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), 'w')


@pytest.fixture(scope='module')
def config(lookalikes, tmp_path_factory):
    return small_config(tmp_path_factory.mktemp('config') / 'ohem.py', lookalikes, OHEM)


COMMANDS = {
    'train --resume': 'tools/train.py CONFIG --work-dir OUT --resume FILE',
    'train load_from': 'tools/train.py CONFIG --work-dir OUT '
    '--cfg-options load_from=FILE',
    'test': 'tools/test.py CONFIG FILE --work-dir OUT',
    'demo': 'tools/demo.py IMAGES --config CONFIG --checkpoint FILE --work-dir OUT '
    '--device cpu',
    'draw_pictures': 'tools/draw_pictures.py CONFIG FILE --work-dir OUT',
    'hardest_images': 'tools/hardest_images.py CONFIG FILE --work-dir OUT',
    'convert_caffe': 'tools/convert_caffe.py FILE OUT/new.pth',
}


@pytest.mark.parametrize('layout', ['zip', 'before 1.6', 'pickle'])
@pytest.mark.parametrize('command', COMMANDS)
def test_code_in_a_checkpoint_is_never_run(
    lookalikes, config, tmp_path, command, layout
):
    trace, file = tmp_path / 'trace', tmp_path / 'evil.pth'
    # Behind what a tool may look at first.
    checkpoint = dict(meta={}, state_dict={}, message_hub={}, more=Code(trace))
    if layout == 'pickle':
        file.write_bytes(pickle.dumps(checkpoint))
    else:
        is_zip = layout == 'zip'
        torch.save(checkpoint, file, _use_new_zipfile_serialization=is_zip)
    words = dict(
        CONFIG=str(config),
        FILE=str(file),
        OUT=str(tmp_path / 'out'),
        IMAGES=str(lookalikes / 'JPEGImages'),
    )
    line = COMMANDS[command]
    for word, value in words.items():
        line = line.replace(word, value)
    with pytest.raises(SystemExit) as exit:
        run_tool_here(*line.split())
    assert not trace.exists()
    assert 'evil.pth' in exit.value.code and '\n' not in exit.value.code


def test_the_code_runs_where_nobody_checks(tmp_path):
    pickle.loads(pickle.dumps(Code(tmp_path / 'trace'))).close()
    assert (tmp_path / 'trace').exists()
