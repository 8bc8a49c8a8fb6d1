"""What reads files from outside: a good file for each, how it is read, and what
somebody else's program reads there."""

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.datasets import CocoDataset, VOCDataset
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from scipy.io import loadmat, savemat
from support import caffe_reference, small_data

import mmdet_ohem  # noqa: F401  allows what MMEngine writes
from mmdet_ohem.caffe.caffemodel import read_layers
from mmdet_ohem.datasets import image_size, pick_images, read_annotations, read_image
from mmdet_ohem.models import read_checkpoint
from mmdet_ohem.proposals import ProposalStore, read_dump, write_store
from mmdet_ohem.proposals.mat import read_data_set_mat, read_image_mat
from mmdet_ohem.proposals.mcg import read_mcg_mat
from mmdet_ohem.runs import check_data, load_weights

CLASSES = ('cat', 'dog')
IDS = ['000005', '000007', '000009']


def differ(ours, expected) -> str:
    """What is not equal in two answers of lists, dicts and arrays, or ''."""
    if isinstance(expected, dict):
        ours, expected = sorted(ours.items()), sorted(expected.items())
    if isinstance(expected, (list, tuple)):
        if len(ours) != len(expected):
            return f'{len(ours)} instead of {len(expected)} items'
        pairs = zip(ours, expected, strict=True)
        return next((found for a, b in pairs if (found := differ(a, b))), '')
    same = np.array_equal(ours, expected, equal_nan=isinstance(expected, np.ndarray))
    return '' if same else f'{ours!r} instead of {expected!r}'


@dataclass(frozen=True)
class Reader:
    """
    Attributes:
        make: writes good files into an empty folder.
        read: reads the file that was damaged, given it and its folder.
        files: which files are damaged.
        reference: another program's answer, to compare with, of a file that was read.
        is_text: whether words are exchanged too.
        errors: how `read` may refuse a file.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path, Path], object]
    files: str = '*'
    reference: Callable[[Path, Path], object] | None = None
    is_text: bool = False
    errors: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
    differ: Callable = differ


def boxes_of(seed: int, count: int = 12) -> np.ndarray:
    return small_data.draw_boxes(np.random.default_rng(seed), count)


# ------------------------------------------------------------------------- .mat files


def make_data_set_mat(folder: Path) -> None:
    boxes, names = np.empty((1, 3), object), np.empty((3, 1), object)
    for i, name in enumerate(IDS):
        boxes[0, i], names[i, 0] = boxes_of(i).astype(np.uint16) + 1, name
    variables = dict(boxes=boxes, images=names)
    savemat(folder / 'plain.mat', variables)
    savemat(folder / 'packed.mat', variables, do_compression=True)


def scipys_data_set(file: Path, case: Path):
    variables = loadmat(file)
    cells, names = variables['boxes'].ravel(), variables['images'].ravel()
    return [
        (name.item(), as_float32(cell)[:, [1, 0, 3, 2]] - 1)
        for name, cell in zip(names, cells, strict=True)
    ]


def make_image_mat(folder: Path) -> None:
    for i, dtype in enumerate((np.uint16, np.float64, np.uint8)):
        variables = dict(boxes=boxes_of(i).astype(dtype), scores=np.arange(12.0))
        savemat(folder / f'plain{i}.mat', variables)
        savemat(folder / f'packed{i}.mat', variables, do_compression=True)


def as_float32(boxes: np.ndarray) -> np.ndarray:
    return boxes.reshape(-1, 4).astype(np.float32)


# ------------------------------------------------------------------------------ dumps


def make_dump(folder: Path) -> None:
    dump = {
        f'JPEGImages/{name}.jpg': InstanceData(
            bboxes=boxes_of(i).astype(np.float32), scores=np.zeros(12, np.float32)
        )
        for i, name in enumerate(IDS)
    }
    dump['JPEGImages/empty.jpg'] = dict(bboxes=np.zeros((0, 4)))
    for protocol in range(2, 6):
        (folder / f'protocol{protocol}.pkl').write_bytes(pickle.dumps(dump, protocol))


class Unpickler(pickle.Unpickler):
    """Python's own. It admits real classes: for a process that may end in any way."""

    def find_class(self, module: str, name: str):
        if (module, name) == ('_codecs', 'encode'):
            return lambda text, encoding: text.encode(encoding)
        if name in ('InstanceData', 'set', 'bytes', 'ndarray', 'dtype', '_reconstruct'):
            return super().find_class(module, name)
        if name in ('_frombuffer', 'scalar'):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(name)


def pythons_dump(file: Path, case: Path):
    with open(file, 'rb') as opened:
        dump = Unpickler(opened).load()
    return {
        Path(key).stem: as_float32(np.array(value['bboxes']))
        for key, value in dump.items()
    }


# ------------------------------------------------------------------------------ store


def records():
    return [
        (name, boxes_of(i).astype(np.float32), (120, 90 + i))
        for i, name in enumerate([*IDS, 'zebra'])
    ]


def make_store(folder: Path) -> None:
    write_store(folder / 'a_store', records(), source='by hand')


def read_store(file: Path, case: Path):
    store = ProposalStore(case / 'a_store')
    answers = [(img_id, *store.get(img_id)) for img_id, *_ in records()]
    assert '000006' not in store and len(store) == 4
    store.check()
    return answers


def make_old_store(folder: Path) -> None:
    """Without checksums, so that damage has to be seen where it is read."""
    make_store(folder)
    meta = json.loads((folder / 'a_store' / 'meta.json').read_text())
    del meta['sha256']
    (folder / 'a_store' / 'meta.json').write_text(json.dumps(meta))


def read_old_store(file: Path, case: Path) -> None:
    store = ProposalStore(case / 'a_store')
    for img_id, *_ in records():
        boxes, (width, height) = store.get(img_id)
        assert boxes.dtype == np.float32 and boxes.shape[1:] == (4,)
        assert np.isfinite(boxes).all() and len(boxes) <= 48
        assert width > 0 and height > 0
    store.check()


# ------------------------------------------------------------------------------- Caffe


def make_caffemodel(folder: Path) -> None:
    rng = np.random.default_rng(0)
    layers = [
        (name, 'InnerProduct', [rng.random((3, 5), np.float32), np.ones(3, np.float32)])
        for name in ('fc6', 'fc7', 'cls_score')
    ]
    layers.insert(1, ('relu6', 'ReLU', []))
    caffe_reference.write_caffemodel(folder / 'new.caffemodel', layers)
    for old in (dict(v1=True, old_shape=True), dict(double=True)):
        name = '_'.join(old)
        caffe_reference.write_caffemodel(folder / f'{name}.caffemodel', layers, **old)


def protobufs_layers(file: Path, case: Path):
    net = caffe_reference.NetParameter.FromString(file.read_bytes())
    assert bool(net.layer) != bool(net.layers)  # else the order is not known
    return [
        (
            layer.name,
            [np.array(b.data or b.double_data, np.float32) for b in layer.blobs],
        )
        for layer in [*net.layer, *net.layers]
    ]


# ------------------------------------------------------------------------- annotations


def make_voc(folder: Path) -> None:
    small_data.write_voc(folder, dict(train=IDS), CLASSES)


def read_voc(file: Path, case: Path):
    """What passes the check, MMDetection reads, and its boxes are numbers."""
    dataset = dict(
        data_root=str(case),
        ann_file='ImageSets/Main/train.txt',
        data_prefix=dict(sub_data_root=''),
        metainfo=dict(classes=CLASSES),
    )
    wrapped = dict(type='VOCDataset', **dataset)
    check_data(Config(dict(train_dataloader=dict(dataset=wrapped))), ('train',))
    dataset['data_prefix'] = dict(sub_data_root=str(case))
    return boxes_that_are_read(VOCDataset(**dataset, pipeline=[]))


def read_labelled(annotations: Path, images: Path) -> None:
    for image in read_annotations(annotations, images):
        assert np.isfinite(image.boxes).all() and image.boxes.shape[1:] == (4,)
        assert len(image.boxes) == len(image.names) == len(image.ignored)
        assert all(isinstance(name, str) and name for name in image.names)
        assert all(type(side) is int and side > 0 for side in image.size)


def read_labelled_voc(file: Path, case: Path) -> None:
    read_labelled(case / 'Annotations', case / 'JPEGImages')


def make_coco(folder: Path) -> None:
    small_data.write_coco(folder, 'val2014', CLASSES, 'COCO_val2014_{:012}.jpg')


def read_coco(file: Path, case: Path):
    dataset = dict(
        data_root=str(case),
        ann_file='annotations/instances_val2014.json',
        data_prefix=dict(img='val2014/'),
        metainfo=dict(classes=CLASSES),
    )
    wrapped = dict(type='CocoDataset', **dataset)
    check_data(Config(dict(train_dataloader=dict(dataset=wrapped))), ('train',))
    return boxes_that_are_read(CocoDataset(**dataset, pipeline=[]))


def boxes_that_are_read(dataset) -> None:
    for i in range(len(dataset)):
        for instance in dataset.get_data_info(i)['instances']:
            box = np.array(instance['bbox'], np.float32)
            assert box.shape == (4,) and np.isfinite(box).all()


# ------------------------------------------------------------------------------ images


def make_images(folder: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)
    for suffix in ('jpg', 'png', 'bmp', 'webp', 'ppm'):
        cv2.imwrite(str(folder / f'a.{suffix}'), picture)


def read_picture(file: Path, case: Path):
    width, height = image_size(file)
    image = read_image(file)
    if image is None:
        raise ValueError(f'{file} is no image')
    assert image.shape == (height, width, 3) and image.dtype == np.uint8


def make_list(folder: Path) -> None:
    (folder / 'list.txt').write_text('\n'.join(IDS))
    for name in IDS:
        (folder / f'{name}.jpg').touch()


# ------------------------------------------------------------------------- checkpoints


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))


def make_checkpoint(folder: Path) -> None:
    hub = MessageHub('campaign')
    for i in range(3):
        hub.update_scalar('train/loss', np.float64(i))
    hub.update_info('step', np.int64(3))
    meta = dict(epoch=0, iter=3, dataset_meta=dict(classes=CLASSES))
    weights = small_model().state_dict()
    checkpoint = dict(meta=meta, state_dict=weights, message_hub=hub.state_dict())
    torch.save(checkpoint, folder / 'iter_3.pth')


def make_weights(folder: Path) -> None:
    torch.save(small_model().state_dict(), folder / 'new.pth')
    torch.save(
        small_model().state_dict(),
        folder / 'old.pth',
        _use_new_zipfile_serialization=False,
    )


READERS = [
    Reader(
        'mat',
        make_data_set_mat,
        lambda file, case: list(read_data_set_mat(file)),
        reference=scipys_data_set,
    ),
    Reader(
        'mat_of_an_image',
        make_image_mat,
        lambda file, case: read_image_mat(file),
        reference=lambda file, case: as_float32(loadmat(file)['boxes']),
    ),
    Reader(
        'mcg',
        make_image_mat,
        lambda file, case: read_mcg_mat(file),
        reference=lambda file, case: (
            as_float32(loadmat(file)['boxes'])[:, [1, 0, 3, 2]] - 1
        ),
    ),
    Reader(
        'dump',
        make_dump,
        lambda file, case: read_dump(file),
        reference=pythons_dump,
    ),
    Reader(
        'store',
        make_store,
        read_store,
        reference=lambda file, case: records(),
        errors=(ValueError, FileNotFoundError, KeyError),
    ),
    Reader(
        'old_store',
        make_old_store,
        read_old_store,
        errors=(ValueError, FileNotFoundError, KeyError),
    ),
    Reader(
        'caffemodel',
        make_caffemodel,
        lambda file, case: [
            (name, [blob.ravel() for blob in blobs])
            for name, blobs in read_layers(file)
        ],
        reference=protobufs_layers,
    ),
    Reader('voc', make_voc, read_voc, files='*.[xt][mx][lt]', is_text=True),
    Reader('coco', make_coco, read_coco, files='*.json', is_text=True),
    Reader('labelled_voc', make_voc, read_labelled_voc, files='*.xml', is_text=True),
    Reader(
        'labelled_coco',
        make_coco,
        lambda file, case: read_labelled(file, case / 'val2014'),
        files='*.json',
        is_text=True,
    ),
    Reader('image', make_images, read_picture),
    Reader(
        'list',
        make_list,
        lambda file, case: pick_images(case, [file]),
        files='*.txt',
        is_text=True,
    ),
    Reader(
        'checkpoint',
        make_checkpoint,
        lambda file, case: load_weights(small_model(), file),
    ),
    Reader(
        'weights',
        make_weights,
        lambda file, case: read_checkpoint(str(file), 'fetch it again'),
    ),
]
