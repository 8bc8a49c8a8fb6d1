import os
import pickle

import numpy as np
import pytest
from mmengine.fileio import dump
from mmengine.structures import InstanceData
from test_proposal_files import break_file

from mmdet_ohem.proposal_dump import read_dump


def proposals_of_one_image():
    return InstanceData(
        bboxes=np.array([[1, 2, 30, 40], [5.5, 6, 70, 80]], dtype=np.float32),
        scores=np.array([0.9, 0.1], dtype=np.float32),
    )


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_dump_is_read(tmp_path, protocol):
    values = {
        'JPEGImages/000005.jpg': proposals_of_one_image(),
        'JPEGImages/000007.jpg': {'bboxes': np.zeros((0, 4)), 'scores': np.zeros(0)},
    }
    # MMEngine's dump, which DumpProposals calls, writes protocol 2.
    dump(values, str(tmp_path / 'rpn.pkl'), protocol=protocol)
    proposals = read_dump(tmp_path / 'rpn.pkl')
    assert list(proposals) == ['000005', '000007']
    assert proposals['000005'].tolist() == [[1, 2, 30, 40], [5.5, 6, 70, 80]]
    assert proposals['000007'].shape == (0, 4)


def test_dump_of_mmdetections_own_metric_is_read(tmp_path):
    import torch
    from mmdet.evaluation import DumpProposals

    metric = DumpProposals(output_dir=str(tmp_path), proposals_file='rpn.pkl')
    boxes = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 4.0]])
    prediction = {'scores': torch.tensor([0.1, 0.9]), 'bboxes': boxes}
    sample = {'img_path': 'VOC2007/JPEGImages/000005.jpg', 'pred_instances': prediction}
    metric.process([], [sample])
    metric.evaluate(1)
    proposals = read_dump(tmp_path / 'rpn.pkl')
    assert proposals['000005'].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]  # best first


class Malicious:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    'payload, name',
    [
        (Malicious(os.system, 'touch {}'), 'system'),
        (Malicious(eval, "open('{}', 'w')"), 'eval'),
        (Malicious(getattr, 'x', 'y'), 'getattr'),
        (np.array([Malicious(os.system, 'touch {}')], dtype=object), 'system'),
    ],
)
def test_dump_is_never_executed(tmp_path, payload, name):
    trace = tmp_path / 'trace'
    for item in np.atleast_1d(np.array(payload, dtype=object)):
        function, args = item.call
        item.call = function, tuple(str(a).format(trace) for a in args)
    with open(tmp_path / 'evil.pkl', 'wb') as file:
        pickle.dump({'a/b.jpg': payload}, file)
    with pytest.raises(ValueError, match=f'evil.pkl.*{name}'):
        read_dump(tmp_path / 'evil.pkl')
    assert not trace.exists()


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'text', 'missing'])
def test_broken_dump_is_named(tmp_path, damage):
    path = tmp_path / 'broken.pkl'
    dump({'a/b.jpg': proposals_of_one_image()}, str(path))
    break_file(path, damage)
    with pytest.raises((ValueError, FileNotFoundError), match='broken.pkl'):
        read_dump(path)


@pytest.mark.parametrize(
    'values, message',
    [
        ([np.zeros((3, 4))], 'a list'),
        ({'a.jpg': np.zeros((3, 5))}, "'a.jpg' has no 'bboxes'"),
        ({'a.jpg': {'bboxes': np.zeros((3, 5))}}, "'a.jpg'.*\\(3, 5\\)"),
        (dict.fromkeys(['x/a.jpg', 'y/a.jpg'], proposals_of_one_image()), "called 'a'"),
    ],
)
def test_foreign_dump_is_explained(tmp_path, values, message):
    dump(values, str(tmp_path / 'foreign.pkl'))
    with pytest.raises(ValueError, match=f'foreign.pkl.*{message}'):
        read_dump(tmp_path / 'foreign.pkl')
