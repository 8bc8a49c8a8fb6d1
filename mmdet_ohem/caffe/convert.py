"""Weights of VGG16 and VGG_CNN_M_1024 from other files, under this project's names.

Sources are Caffe's ImageNet classifiers, Fast R-CNN detectors trained with Caffe, such
as the released OHEM models, and the VGG16 files of torchvision and OpenMMLab.

Layers bear Caffe's names in here.
"""

import os
from dataclasses import dataclass

import numpy as np
import torch

from mmdet_ohem.caffe.caffemodel import read_layers
from mmdet_ohem.caffe.networks import (
    DETECTOR,
    FULLY_CONNECTED,
    VGG16,
    VGG19_CONV,
    VGG_CNN_M_1024,
    Layers,
    Network,
    check_shapes,
    recognise,
)
from mmdet_ohem.checkpoint import save_checkpoint
from mmdet_ohem.models import read_checkpoint

CAFFE_INPUT = dict(
    mean=[102.9801, 115.9465, 122.7717], std=[1.0, 1.0, 1.0], bgr_to_rgb=False
)
TORCHVISION_INPUT = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
)
# SSD's configs in MMDetection; the file is Caffe's with the input channels turned.
OPENMMLAB_INPUT = dict(
    mean=[123.675, 116.28, 103.53], std=[1.0, 1.0, 1.0], bgr_to_rgb=True
)

# target_stds of the configs' DeltaXYWHBBoxCoder
_STDS = np.array([0.1, 0.1, 0.2, 0.2], dtype=np.float32)
# End of the layer names in the RoI network that only ranks, in the release's
# train.prototxt. It shares its weights, which a snapshot may hold once or twice.
_READ_ONLY = '_readonly'
_TORCHVISION_FC = {'classifier.0': 'fc6', 'classifier.3': 'fc7', 'classifier.6': 'fc8'}


@dataclass(frozen=True)
class Conversion:
    """What `convert` found; layers bear the names of the source.

    Attributes:
        title: network and kind of model.
        taken: layers that are in the new file.
        left: layers with weights that are not, with their shapes.
        missing: layers of our detector that the source does not have.
        data_preprocessor: the input that the weights want, as keys of
            MMDetection's DetDataPreprocessor.
    """

    title: str
    taken: list[str]
    left: list[str]
    missing: list[str]
    data_preprocessor: dict


def convert(source: str, target: str) -> Conversion:
    """Write the weights in `source` as a checkpoint of our FastRCNN.

    The new file holds `backbone.*` and `roi_head.bbox_head.*`, for `load_from`, for
    `tools/test.py`, and for `init_cfg=dict(type='mmdet_ohem.ConvertedWeights')`.

    A detector from Caffe has the background first; here it is last, and has no box.
    Its `bbox_pred` predicts plain deltas, for Fast R-CNN multiplies the deviations of
    the targets into the weights it saves (`snapshot` in its `train.py`). They are
    divided out again, so that one config, with its coder's deviations, serves to train
    and to test.

    Args:
        source (str): a `.caffemodel`, or a `.pth` of torchvision's or OpenMMLab's
            VGG16.
        target (str): the `.pth` to write; replaced if it exists.

    Raises:
        ValueError: the source is broken, or is none of the networks.
        OSError: a file cannot be read or written.
    """
    if not os.path.isfile(source):
        raise FileNotFoundError(f'There is no file {source} to convert.')
    if os.path.splitext(target)[1] != '.pth':
        raise ValueError(f'The new file must end in .pth, not {target}.')
    if os.path.exists(target) and os.path.samefile(source, target):
        raise ValueError(f'{target} is the source itself: name another new file.')
    if os.path.splitext(source)[1] in ('.pth', '.pt'):
        layers, left, data_preprocessor = _read_pth(source)
    else:
        layers, left = _read_caffemodel(source)
        data_preprocessor = CAFFE_INPUT
    network = recognise(layers, source)
    for name in layers.keys() - {*network.convs, *FULLY_CONNECTED}:
        left.append(_describe(name, layers.pop(name)))
    check_shapes(layers, network, source)

    title = f'{network.name}, ImageNet classifier'
    if 'cls_score' in layers:
        classes = layers['cls_score'][1].size - 1
        title = f'{network.name}, Fast R-CNN detector of {classes} classes'
    if 'fc8' in layers:  # the 1000 classes of ImageNet
        left.append(_describe('fc8', layers.pop('fc8')))
    missing = [name for name in ('fc6', 'fc7', *DETECTOR) if name not in layers]
    conversion = Conversion(title, list(layers), left, missing, data_preprocessor)
    meta = dict(network=title, data_preprocessor=data_preprocessor)
    save_checkpoint(dict(state_dict=_state_dict(layers, network), meta=meta), target)
    return conversion


def _describe(name: str, blobs: list[np.ndarray]) -> str:
    return f'{name} {blobs[0].shape}'


def _read_caffemodel(source: str) -> tuple[Layers, list[str]]:
    """The layers that a network here may have, and the others that have weights."""
    known = {*VGG16.convs, *VGG_CNN_M_1024.convs, VGG19_CONV, *FULLY_CONNECTED}
    layers, left = {}, []
    for name, blobs in read_layers(source):
        shared = name.removesuffix(_READ_ONLY)
        if not blobs:
            continue
        if name in known or (shared in known and shared not in layers):
            layers[shared] = blobs
        if name not in known:
            left.append(_describe(name, blobs))
    if not layers.keys() & {'fc8', *DETECTOR}:
        raise ValueError(
            f'{source} has neither fc8, as an ImageNet classifier, nor cls_score and '
            'bbox_pred, as a Fast R-CNN detector: it is cut off or another network, '
            'and only VGG16 and VGG_CNN_M_1024 can be converted.'
        )
    return layers, left


def _read_pth(source: str) -> tuple[Layers, list[str], dict]:
    """As `_read_caffemodel`, and the input that the file's network wants."""
    caffe_names = {ours: name for name, (ours, _) in VGG16.convs.items()}
    caffe_names.update(_TORCHVISION_FC)
    weights = read_checkpoint(source, "download torchvision's or OpenMMLab's VGG16")
    weights = weights.get('state_dict', weights)  # MMEngine keeps more in a file
    weights = {key: w for key, w in weights.items() if isinstance(w, torch.Tensor)}
    if 'classifier.0.weight' in weights:
        data_preprocessor = TORCHVISION_INPUT
    elif 'features.31.weight' in weights:  # SSD's fc6, a convolution
        data_preprocessor = OPENMMLAB_INPUT
    else:
        raise ValueError(
            f"{source} has neither 'classifier.0.weight', as torchvision's VGG16, nor "
            "'features.31.weight', as OpenMMLab's vgg16_caffe: give one of these."
        )
    layers, left = {}, []
    for key, tensor in weights.items():
        layer, _, kind = key.rpartition('.')
        if layer in caffe_names and kind in ('weight', 'bias'):
            # The weight comes before the bias in both files.
            layers.setdefault(caffe_names[layer], []).append(tensor.float().numpy())
        elif kind == 'weight':
            left.append(f'{layer} {tuple(tensor.shape)}')
    return layers, left, data_preprocessor


def _state_dict(layers: Layers, network: Network) -> dict[str, torch.Tensor]:
    state_dict = {}

    def add(name: str, weight: np.ndarray, bias: np.ndarray) -> None:
        state_dict[f'{name}.weight'] = torch.from_numpy(weight)
        state_dict[f'{name}.bias'] = torch.from_numpy(bias.reshape(-1))

    for name, (ours, _) in network.convs.items():
        add(f'backbone.{ours}', *layers[name])
    head = 'roi_head.bbox_head'
    for name in {'fc6', 'fc7'} & layers.keys():
        weight, bias = layers[name]
        # Both flatten pooled features by channel, row, column.
        add(f'{head}.{name}', weight.reshape(bias.size, -1), bias)
    if 'cls_score' in layers:
        weight, bias = layers['cls_score']
        weight = weight.reshape(bias.size, -1)
        add(f'{head}.fc_cls', np.roll(weight, -1, axis=0), np.roll(bias.ravel(), -1))
        weight, bias = layers['bbox_pred']
        weight, bias = weight.reshape(bias.size, -1)[4:], bias.ravel()[4:]
        stds = np.tile(_STDS, len(bias) // 4)
        add(f'{head}.fc_reg', weight / stds[:, None], bias / stds)
    return state_dict
