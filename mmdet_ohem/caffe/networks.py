"""The paper's two networks in Caffe, and how a file's layers are recognised as one."""

from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]
Layers = dict[str, list[np.ndarray]]  # name: weight and bias

DETECTOR = ('cls_score', 'bbox_pred')
FULLY_CONNECTED = ('fc6', 'fc7', 'fc8', *DETECTOR)
VGG19_CONV = 'conv3_4'  # VGG19 has all layers of VGG16 in the same shapes


@dataclass(frozen=True)
class Network:
    """What a network is recognised by.

    Attributes:
        convs: name in Caffe: name in our backbone and (out, in, height, width).
        bins: bins along a side of a pooled RoI.
    """

    name: str
    convs: dict[str, tuple[str, Shape]]
    bins: int


def _vgg16() -> Network:
    convs = {}
    index, inputs = 0, 3  # index counts ReLU and pooling too, as torchvision does
    for stage, (width, depth) in enumerate(
        [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1
    ):
        for i in range(1, depth + 1):
            convs[f'conv{stage}_{i}'] = (f'features.{index}', (width, inputs, 3, 3))
            index, inputs = index + 2, width
        index += 1
    return Network('VGG16', convs, bins=7)


VGG16 = _vgg16()
VGG_CNN_M_1024 = Network(
    'VGG_CNN_M_1024',
    dict(
        conv1=('conv1', (96, 3, 7, 7)),
        conv2=('conv2', (256, 96, 5, 5)),
        conv3=('conv3', (512, 256, 3, 3)),
        conv4=('conv4', (512, 512, 3, 3)),
        conv5=('conv5', (512, 512, 3, 3)),
    ),
    bins=6,
)


def recognise(layers: Layers, source: str) -> Network:
    """The network that has most names of convolutions in common with the file.

    Raises:
        ValueError: it is none of the two, or not whole.
    """
    if VGG19_CONV in layers:
        raise ValueError(
            f'{source} is VGG19: only VGG16 and VGG_CNN_M_1024 can be converted.'
        )
    network = max(
        (VGG16, VGG_CNN_M_1024), key=lambda net: len(net.convs.keys() & layers.keys())
    )
    needed = list(network.convs)
    if layers.keys() & set(FULLY_CONNECTED):
        needed += ['fc6', 'fc7']
    if layers.keys() & set(DETECTOR):
        needed += DETECTOR
    missing = [name for name in needed if name not in layers]
    if missing:
        raise ValueError(
            f'{source} has no weights {", ".join(missing)} of {network.name}, which it '
            'is most like: it is cut off or another network, and only VGG16 and '
            'VGG_CNN_M_1024 can be converted.'
        )
    return network


def check_shapes(layers: Layers, network: Network, source: str) -> None:
    """The widths of fully connected layers are free, but must fit one another.

    Raises:
        ValueError: a layer is not that of the network.
    """
    for name, blobs in layers.items():
        if len(blobs) != 2:
            raise ValueError(
                f'{name} in {source} has {len(blobs)} blobs instead of a weight and a '
                f'bias: it is not the layer of {network.name}.'
            )
    width = {name: blobs[1].size for name, blobs in layers.items()}
    shapes = {name: shape for name, (_, shape) in network.convs.items()}
    if 'fc6' in layers:
        pooled = list(shapes.values())[-1][0] * network.bins**2
        shapes['fc6'] = (width['fc6'], pooled)
        shapes['fc7'] = (width['fc7'], width['fc6'])
        shapes['fc8'] = (width.get('fc8'), width['fc7'])
    if 'cls_score' in layers:
        shapes['cls_score'] = (width['cls_score'], width['fc7'])
        shapes['bbox_pred'] = (4 * width['cls_score'], width['fc7'])
    for name, blobs in layers.items():
        expected = (shapes.get(name), shapes.get(name, ())[:1])
        found = tuple(blob.shape for blob in blobs)
        for blob, shape in zip(blobs, expected, strict=True):
            if _without_ones(blob.shape) != _without_ones(shape):
                raise ValueError(
                    f'{name} in {source} has blobs of the shapes {found[0]} and '
                    f'{found[1]}, but in {network.name} they are {expected[0]} and '
                    f'{expected[1]}: this is another network.'
                )
    # VGG_CNN_S has other strides, which the file does not tell from its weights.
    if network is VGG_CNN_M_1024 and width.get('fc7') == 4096:
        raise ValueError(
            f'{source} is VGG_CNN_S or VGG_CNN_M, by its fc7 of 4096 instead of 1024: '
            'only VGG16 and VGG_CNN_M_1024 can be converted.'
        )


def _without_ones(shape: Shape) -> Shape:
    """(1, 1, out, in) and (1, 1, 1, out) of old files as (out, in) and (out,)."""
    while shape and shape[0] == 1:
        shape = shape[1:]
    return shape
