import os
import pickle
import struct

import numpy as np
import pytest
from mmengine.fileio import dump
from mmengine.structures import InstanceData
from support.broken_files import break_file

from mmdet_ohem.proposals.mmdet_dump import read_dump


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


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize('dtype', ['<f4', '>f4', '<f8', '<i8', 'u1', '>u2'])
@pytest.mark.parametrize('order', ['C', 'F'])
def test_every_layout_of_an_array_is_read(tmp_path, protocol, dtype, order):
    # Long data stay in the file until they are wanted, short ones do not.
    for count in (0, 1, 3, 5000):
        boxes = np.arange(4 * count).reshape(count, 4) % 251
        boxes = np.array(boxes.astype(dtype), order=order)
        path = tmp_path / 'a.pkl'
        path.write_bytes(pickle.dumps({'a/b.jpg': {'bboxes': boxes}}, protocol))
        np.testing.assert_array_equal(read_dump(path)['b'], boxes)


@pytest.mark.parametrize(
    'name, other', [(b'numpy._core', b'numpy.core'), (b'numpy.core', b'numpy._core')]
)
@pytest.mark.parametrize('protocol', [2, 5])
def test_dumps_of_numpy_1_and_2_are_read(tmp_path, protocol, name, other):
    content = pickle.dumps({'a/b.jpg': proposals_of_one_image()}, protocol)
    if protocol == 5:  # short text has its length before it, and the frame too
        short = (struct.pack('<B', len(b'numpy._core.numeric')), b'numpy._core.numeric')
        assert b''.join(short) in content
        new = struct.pack('<B', len(other + b'.numeric')) + other + b'.numeric'
        content = content.replace(b''.join(short), new)
    else:
        content = content.replace(b'numpy._core', other)
    (tmp_path / 'a.pkl').write_bytes(content)
    assert (other in content) and len(read_dump(tmp_path / 'a.pkl')['b']) == 2


def test_detections_of_test_py_are_explained(tmp_path):
    import torch

    detections = [dict(pred_instances=dict(bboxes=torch.zeros(3, 4)))]
    dump(detections, str(tmp_path / 'out.pkl'))
    with pytest.raises(ValueError, match='out.pkl.*torch.*DumpProposals'):
        read_dump(tmp_path / 'out.pkl')


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


# ----------------------------------------------------------- pickles made by hand

START, STOP = b'\x80\x02', b'.'
INSTANCES = b'cmmengine.structures.instance_data\nInstanceData\n'


def plain(value) -> bytes:
    """The instructions that push a value."""
    return pickle.dumps(value, 2)[2:-1]


def dump_of(boxes: bytes) -> bytes:
    """A dump with one image, whose 'bboxes' the instructions push."""
    return (
        START + b'}(' + plain('a/b.jpg') + b'}' + plain('bboxes') + boxes + b'su' + STOP
    )


def array(state: bytes, arguments=(0,)) -> bytes:
    """A call of NumPy's _reconstruct, filled with a state."""
    return (
        b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n'
        + plain(arguments)
        + b'U\x01bt'.replace(b'U\x01b', plain('b'))
        + b'R'
        + state
    )


def state(shape, dtype: str, data) -> bytes:
    made = b'cnumpy\ndtype\n' + plain((dtype, False, True)) + b'R'
    made += plain((3, '<', None, None, None, -1, -1, 0)) + b'b'
    given = b'c_codecs\nencode\n' + plain((data, 'latin1')) + b'R'
    return b'(' + plain(1) + plain(shape) + made + plain(False) + given + b'tb'


def test_the_pickle_made_by_hand_is_one(tmp_path):
    data = np.arange(8, dtype='<f4').tobytes().decode('latin1')
    (tmp_path / 'good.pkl').write_bytes(dump_of(array(state((2, 4), 'f4', data))))
    assert read_dump(tmp_path / 'good.pkl')['b'].tolist() == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
    ]


INTERFACE = dict(
    __array_interface__=dict(shape=(4, 4), typestr='|O', data=(4096, False), version=3)
)
EVIL = dict(
    # NumPy would follow a pointer of the file's choice.
    array_interface=dump_of(INSTANCES + b')\x81' + plain(INTERFACE) + b'b'),
    # Whatever was in memory before.
    uninitialised=dump_of(array(b'', (1000, 4))),
    ndarray=dump_of(b'cnumpy\nndarray\n' + plain(((1000, 4), 'f4')) + b'R'),
    # The class, and a function, of the whole process.
    build_on_class=dump_of(INSTANCES + plain(dict(keys=1)) + b'b'),
    build_on_function=dump_of(
        b'cnumpy.core.numeric\n_frombuffer\n' + plain(dict(__defaults__=(1,))) + b'b'
    ),
    slots=dump_of(INSTANCES + b')\x81' + plain((None, dict(fields=1))) + b'b'),
    # Hashing it recurses without a limit.
    deep_key=START + b'}' + b')' + b'\x85' * 200_000 + b'Ns' + STOP,
    deep_value=START + b'(' * 1_000_000 + b')' + b't' * 1_000_000 + STOP,
    colliding_keys=START
    + b'}('
    + b''.join(
        b'\x8a\x0b' + (i * (2**61 - 1)).to_bytes(11, 'little') + b'N'
        for i in range(1000)
    )
    + b'u'
    + STOP,
    memo=dump_of(b'Nr\xff\xff\xff\xff'),
    long_text=START + b'X\xff\xff\xff\xff' + STOP,
    long_bytes=START + b'\x8e' + b'\xff' * 8 + STOP,
    huge=dump_of(array(state((2**31 - 1, 2**31 - 1), 'f4', 'x'))),
    overflow=dump_of(array(state((2**62, 4), 'f8', 'x'))),
    negative=dump_of(array(state((-1, 4), 'f4', 'x' * 16))),
    true=dump_of(array(state((True, 4), 'f4', 'x' * 16))),
    other_length=dump_of(array(state((2, 4), 'f4', 'x' * 16))),
    no_latin1=dump_of(array(state((1, 4), 'f4', '\u0100' * 8))),
    objects=dump_of(array(state((1, 4), 'O8', 'x' * 32))),
    object_list=dump_of(array(state((1, 4), 'O', 'x' * 32))),
    sub_array=dump_of(array(state((1,), '(1,4)f4', 'x' * 16))),
    dtype_of_a_dict=dump_of(array(state((1, 4), {}, 'x' * 16))),
    dtype_of_a_deep_tuple=dump_of(
        array(
            state((1, 4), 'name', 'x' * 16).replace(
                plain('name'), b')' + b'\x85' * 200_000
            )
        )
    ),
    void=dump_of(array(state((1, 4), 'V4', 'x' * 16))),
    text=dump_of(array(state((1, 4), 'U1', 'x' * 16))),
    complex=dump_of(array(state((1, 4), 'c8', 'x' * 32))),
    odd_arguments=dump_of(
        b'cnumpy.core.multiarray\nscalar\n' + plain((1, 2, 3)) + b'R'
    ),
    frombuffer=dump_of(
        b'cnumpy.core.numeric\n_frombuffer\n'
        + plain((b'x' * 16, 'f4', (1, 4), 'K'))
        + b'R'
    ),
    scalar=dump_of(b'cnumpy.core.multiarray\nscalar\n' + plain(('f4', 'xxxx')) + b'R'),
    own_dict=START + b'}q\x00' + plain('bboxes') + b'h\x00s' + STOP,
    other_codec=dump_of(b'c_codecs\nencode\n' + plain(('x', 'rot13')) + b'R'),
    extension=START + b'\x82\x01' + STOP,
    persistent=START + b'Pname\n' + STOP,
    instance=START + b'(ios\nsystem\n' + STOP,
    obj=START + b'(cos\nsystem\no' + STOP,
    buffer=START + b'\x97' + STOP,
    new_with_arguments=dump_of(INSTANCES + plain((1,)) + b'\x81'),
    dotted_name=START + b'\x8c\x05numpy\x8c\x10ndarray.__init__\x93' + STOP,
    ansi=START + b'c\x1b[31mos\nsystem\n' + STOP,
    nothing=START + STOP,
    protocol_0=b'(dp0\n.',
)


@pytest.mark.parametrize('name', EVIL)
def test_pickles_made_to_harm_are_refused(tmp_path, name):
    path = tmp_path / 'evil.pkl'
    path.write_bytes(EVIL[name])
    before = dict(vars(InstanceData))
    with pytest.raises(ValueError, match='evil.pkl') as refusal:
        read_dump(path)
    assert dict(vars(InstanceData)) == before
    assert len(str(refusal.value)) < 400 + len(str(path))
    assert str(refusal.value).isprintable()


def test_one_array_for_many_images_is_refused(tmp_path):
    boxes = np.zeros((100_000, 4), np.float32)
    many = {f'{i}.jpg': dict(bboxes=boxes) for i in range(10_000)}  # 16 GB
    (tmp_path / 'many.pkl').write_bytes(pickle.dumps(many, 2))
    with pytest.raises(ValueError, match='many.pkl.*share an array'):
        read_dump(tmp_path / 'many.pkl')


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
