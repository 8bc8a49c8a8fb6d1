"""The tool, and what it says about files that it cannot convert."""

import os
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from support import caffe_reference as caffe
from support.caffe_reference import SMALL, blobs_of
from support.tools import ROOT, run_tool_here, small_config

from mmdet_ohem.caffe.convert import convert
from mmdet_ohem.datasets.lookalikes import CLASSES

TOOL = 'tools/convert_caffe.py'


@pytest.fixture(scope='module')
def vggm(tmp_path_factory):
    """A good file of VGG_CNN_M_1024's detector."""
    path = tmp_path_factory.mktemp('caffe') / 'vggm.caffemodel'
    caffe.write_caffemodel(path, caffe.layer_list('vggm', blobs_of('vggm', 'detector')))
    return path


def refusal(source, folder) -> str:
    """The message; nothing may be written."""
    before = set(os.listdir(folder))
    with pytest.raises((OSError, ValueError)) as error:
        convert(str(source), str(folder / 'out.pth'))
    assert set(os.listdir(folder)) == before
    message = str(error.value)
    assert str(source) in message and '\n' not in message
    return message


def test_the_tool_prints_what_it_took_left_and_missed(tmp_path, capsys):
    source = tmp_path / 'imagenet.caffemodel'
    layers = caffe.layer_list('vggm', blobs_of('vggm', 'classifier'))
    caffe.write_caffemodel(source, layers)
    run_tool_here(TOOL, source, tmp_path / 'out.pth')
    said = capsys.readouterr().out
    assert 'VGG_CNN_M_1024, ImageNet classifier' in said
    assert 'taken: conv1, conv2, conv3, conv4, conv5, fc6, fc7\n' in said
    assert 'left: fc8 (1000, 16)\n' in said
    assert 'cls_score, bbox_pred' in said
    assert "'bgr_to_rgb': False" in said
    assert sorted(os.listdir(tmp_path)) == ['imagenet.caffemodel', 'out.pth']


def test_the_tool_refuses_in_one_line(tmp_path, capsys):
    (tmp_path / 'net.caffemodel').write_bytes(b'')
    with pytest.raises(SystemExit, match='^.* is empty: download it again.$'):
        run_tool_here(TOOL, tmp_path / 'net.caffemodel', tmp_path / 'out.pth')
    assert not ''.join(capsys.readouterr())
    assert os.listdir(tmp_path) == ['net.caffemodel']


def test_a_file_cut_off_anywhere(tmp_path, vggm):
    whole = vggm.read_bytes()
    seed = 0
    print(f'seed {seed}')
    places = np.random.default_rng(seed).integers(1, len(whole), 12).tolist()
    # Between two layers nothing is broken, but layers are missing.
    tags = [
        whole.rindex(b'\xa2\x06', 0, whole.index(name))
        for name in (b'relu5', b'cls_score', b'bbox_pred')
    ]
    for place in [*places, *tags, len(whole) // 2, 1, 2]:
        source = tmp_path / 'cut.caffemodel'
        source.write_bytes(whole[:place])
        assert 'cut off' in refusal(source, tmp_path), place


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'name: "VGG_CNN_M_1024"\nlayer {\n  name: "conv1"\n}\n',
        b'<html>404 Not Found</html>\n' * 100,
        b'Dies ist keine Datei mit Gewichten.\n' * 100,
        b'\x89HDF\r\n\x1a\n' + bytes(1000),
        bytes(range(256)) * 10,
        b'\xa2\x06' + b'\x80' * 5 + b'\x20',  # a layer of a terabyte
        b'\x08' * 7 + b'\xff' * 20,
    ],
)
def test_other_files(tmp_path, content):
    source = tmp_path / 'net.caffemodel'
    source.write_bytes(content)
    refusal(source, tmp_path)


def without(layers, name):
    return [layer for layer in layers if layer[0] != name]


def zeros(name, *shape):
    blobs = [np.zeros(shape, np.float32), np.zeros(shape[0], np.float32)]
    return (name, 'Convolution' if len(shape) == 4 else 'InnerProduct', blobs)


CAFFENET = [
    zeros('conv1', 96, 3, 11, 11),
    zeros('conv2', 256, 48, 5, 5),
    zeros('conv3', 384, 256, 3, 3),
    zeros('conv4', 384, 192, 3, 3),
    zeros('conv5', 256, 192, 3, 3),
    zeros('fc6', 4, 9216),
    zeros('fc7', 4, 4),
    zeros('fc8', 10, 4),
]


@pytest.mark.parametrize(
    ('change', 'word'),
    [
        (lambda layers: CAFFENET, r'conv1 in .*\(96, 3, 11, 11\).*\(96, 3, 7, 7\)'),
        (
            lambda layers: [zeros('conv1', 6, 1, 5, 5), zeros('ip', 10, 6)],
            'neither fc8',
        ),
        (lambda layers: [*layers, zeros('conv3_4', 256, 256, 3, 3)], 'VGG19'),
        (lambda layers: without(layers, 'conv4'), 'no weights conv4'),
        (lambda layers: without(layers, 'fc7'), 'no weights fc7'),
        (lambda layers: without(layers, 'cls_score'), 'no weights cls_score'),
        (lambda layers: [*layers, zeros('fc7', 16, 25)], r'fc7 in .*\(16, 25\)'),
        (lambda layers: [*layers, zeros('fc6', 24, 25088)], r'fc6 in .*\(24, 18432\)'),
        (lambda layers: [*layers, zeros('bbox_pred', 80, 16)], r'\(80, 16\).*\(84, 16'),
        (
            lambda layers: [*layers, ('fc7', 'InnerProduct', [np.zeros((16, 24))])],
            '1 blobs',
        ),
        (
            # VGG_CNN_S: other strides, and a wider fc7
            lambda layers: [
                *without(without(layers, 'cls_score'), 'bbox_pred'),
                zeros('fc7', 4096, 24),
                zeros('fc8', 10, 4096),
            ],
            'VGG_CNN_S',
        ),
    ],
)
def test_another_network_or_shape(tmp_path, change, word):
    layers = caffe.layer_list('vggm', blobs_of('vggm', 'detector'))
    source = tmp_path / 'net.caffemodel'
    caffe.write_caffemodel(source, change(layers))
    with pytest.raises(ValueError, match=word):
        convert(str(source), str(tmp_path / 'out.pth'))
    refusal(source, tmp_path)


@pytest.mark.parametrize('shape', [(1 << 20, 1 << 20), (-2, -2), (3,), ()])
def test_a_shape_that_its_values_do_not_fill(tmp_path, shape):
    net = caffe.NetParameter()
    layer = net.layer.add(name='fc6', type='InnerProduct')
    caffe.add_blob(layer.blobs.add(), np.ones(4, np.float32))
    layer.blobs[0].shape.dim[:] = shape
    source = tmp_path / 'net.caffemodel'
    source.write_bytes(net.SerializeToString())
    assert 'of 4 values' in refusal(source, tmp_path)


def test_wrong_paths(tmp_path, vggm):
    assert 'no file' in refusal(tmp_path / 'missing.caffemodel', tmp_path)
    for target, word in [('out.pt', 'end in .pth'), ('out.caffemodel', 'end in .pth')]:
        with pytest.raises(ValueError, match=word):
            convert(str(vggm), str(tmp_path / target))
    torch.save({}, tmp_path / 'same.pth')
    with pytest.raises(ValueError, match='is the source itself'):
        convert(str(tmp_path / 'same.pth'), str(tmp_path / 'same.pth'))


class Attack:
    def __reduce__(self):
        return os.mkdir, (os.environ['ATTACK'],)


def half_a_checkpoint(path):
    torch.save({'features.0.weight': torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def more_bytes_than_the_file(path):
    """Compressed, 40 MB of zeros make a file of under 100 kB."""
    large = path.with_suffix('.large')
    torch.save({'classifier.0.weight': torch.zeros(10_000_000)}, large)
    with zipfile.ZipFile(large) as old, zipfile.ZipFile(path, 'w', 8) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    large.unlink()


@pytest.mark.parametrize(
    'write',
    [
        half_a_checkpoint,
        more_bytes_than_the_file,
        lambda path: path.write_bytes(b''),
        lambda path: path.write_text('<html>404</html>'),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({'state_dict': 3}, path),
        lambda path: torch.save({'layer1.0.weight': torch.zeros(3)}, path),
        lambda path: torch.save({'features.0.weight': Attack()}, path),
        lambda path: torch.save({'classifier.0.weight': torch.zeros(4, 4)}, path),
    ],
)
def test_broken_or_foreign_checkpoints(tmp_path, monkeypatch, write):
    monkeypatch.setenv('ATTACK', str(tmp_path / 'attacked'))
    source = tmp_path / 'vgg16.pth'
    write(source)
    refusal(source, tmp_path)  # also sees that no folder was made


@pytest.mark.slow
def test_from_caffemodel_to_the_table_of_test_py(tmp_path, lookalikes, capfd):
    blobs = caffe.random_blobs('vggm', SMALL, 'detector', classes=len(CLASSES))
    source, target = tmp_path / 'net.caffemodel', tmp_path / 'net.pth'
    caffe.write_caffemodel(source, caffe.layer_list('vggm', blobs))
    run_tool_here(TOOL, source, target)
    base = ROOT / 'configs' / '_base_' / 'models' / 'fast_rcnn_vggm.py'
    model = Config.fromfile(base).model.to_dict()
    model['roi_head']['bbox_head'].update(
        fc_out_channels=SMALL, num_classes=len(CLASSES)
    )
    config = small_config(
        tmp_path / 'config.py',
        lookalikes,
        'fast_rcnn_small_ohem_lookalikes.py',
        f'model = dict(_delete_=True, **{model!r})',
    )
    run_tool_here('tools/test.py', config, target, '--work-dir', tmp_path / 'work')
    log = ''.join(capfd.readouterr())
    assert '| mAP ' in log
    assert 'do not match exactly' not in log and 'size mismatch' not in log
