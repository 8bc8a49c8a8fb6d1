"""Caffe's side of the comparison: .caffemodel files and a forward pass, in NumPy.

Nothing here comes from the package. N: images, C: channels, H x W: map, R: RoIs,
P: bins along a side of a RoI.
"""

from functools import cache, partial

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.lib.stride_tricks import sliding_window_view

# Fields as in BVLC's caffe.proto, more of them than a reader of weights needs.
PROTO = {
    'BlobShape': 'repeated int64 dim 1',
    'BlobProto': """
        optional int32 num 1, optional int32 channels 2, optional int32 height 3,
        optional int32 width 4, repeated float data 5, repeated float diff 6,
        optional BlobShape shape 7, repeated double double_data 8""",
    'V1LayerParameter': """
        repeated string bottom 2, repeated string top 3, optional string name 4,
        optional int32 type 5, repeated BlobProto blobs 6,
        repeated float blobs_lr 7""",
    'LayerParameter': """
        optional string name 1, optional string type 2, repeated string bottom 3,
        repeated string top 4, repeated float loss_weight 5,
        repeated BlobProto blobs 7""",
    'NetParameter': """
        optional string name 1, repeated V1LayerParameter layers 2,
        repeated string input 3, repeated int32 input_dim 4,
        optional bool force_backward 5, repeated LayerParameter layer 100""",
}
V1_TYPES = dict(Convolution=4, Dropout=6, InnerProduct=14, LRN=15, Pooling=17)
V1_TYPES.update(ReLU=18, Softmax=20, ROIPooling=100)


def compile_proto():
    description = descriptor_pb2.FileDescriptorProto(name='c.proto', package='c')
    for name, fields in PROTO.items():
        message = description.message_type.add(name=name)
        for field in fields.split(','):
            label, kind, field_name, number = field.split()
            added = message.field.add(
                name=field_name, number=int(number), label=f'LABEL_{label.upper()}'
            )
            if kind in PROTO:
                added.type_name = f'.c.{kind}'
            else:
                scalars = descriptor_pb2.FieldDescriptorProto.Type
                added.type = scalars.Value(f'TYPE_{kind.upper()}')
            is_text = kind == 'string' or kind in PROTO
            if label == 'repeated' and not is_text and field_name != 'blobs_lr':
                added.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(description)
    find = pool.FindMessageTypeByName
    return message_factory.GetMessageClass(find('c.NetParameter'))


NetParameter = compile_proto()

# Name, (out, in, kernel), stride, padding, and what comes after the ReLU.
VGG16_CONVS = []
for stage, widths in enumerate(
    [(3, 64, 64), (64, 128, 128), (128,) + (256,) * 3, (256,) + (512,) * 3, (512,) * 4],
    start=1,
):
    for i in range(1, len(widths)):
        after = ('pool',) if i == len(widths) - 1 and stage < 5 else ()
        layer = (f'conv{stage}_{i}', (widths[i], widths[i - 1], 3), 1, 1, after)
        VGG16_CONVS.append(layer)
VGGM_CONVS = [
    ('conv1', (96, 3, 7), 2, 0, ('norm', 'pool')),
    ('conv2', (256, 96, 5), 2, 1, ('norm', 'pool')),
    ('conv3', (512, 256, 3), 1, 1, ()),
    ('conv4', (512, 512, 3), 1, 1, ()),
    ('conv5', (512, 512, 3), 1, 1, ()),
]
CONVS = dict(vgg16=VGG16_CONVS, vggm=VGGM_CONVS)
BINS = dict(vgg16=7, vggm=6)
POOL_KERNEL = dict(vgg16=2, vggm=3)


def random_blobs(net, fc_widths, kind, seed=0, classes=20):
    """Layer: weight and bias, such that activations neither grow nor vanish."""
    print(f'seed {seed}')
    rng = np.random.default_rng(seed)

    def layer(*shape, gain=2.0):
        fan_in = np.prod(shape[1:])
        weight = rng.standard_normal(shape, dtype=np.float32)
        weight *= np.float32(np.sqrt(gain / fan_in))
        return [weight, rng.standard_normal(shape[0], dtype=np.float32)]

    blobs = {name: layer(m, n, k, k) for name, (m, n, k), *_ in CONVS[net]}
    fc6, fc7 = fc_widths
    # Inputs of 100 and more come down to about 1 here.
    blobs['fc6'] = layer(fc6, 512 * BINS[net] ** 2, gain=1e-4)
    blobs['fc7'] = layer(fc7, fc6)
    if kind == 'classifier':
        blobs['fc8'] = layer(1000, fc7)
    else:
        blobs['cls_score'] = layer(classes + 1, fc7)
        blobs['bbox_pred'] = layer(4 * (classes + 1), fc7, gain=0.01)
        blobs['bbox_pred'][1] *= 0.1
    return blobs


def layer_list(net, blobs):
    """(name, type, blobs) of all layers, those without weights included."""
    layers = []
    for name, _, _, _, after in CONVS[net]:
        stage = name.removeprefix('conv')
        layers += [(name, 'Convolution', blobs[name]), (f'relu{stage}', 'ReLU', [])]
        types = dict(pool='Pooling', norm='LRN')
        layers += [(f'{word}{stage[0]}', types[word], []) for word in after]
    layers.append(('roi_pool5', 'ROIPooling', []))
    for number in (6, 7):
        layers.append((f'fc{number}', 'InnerProduct', blobs[f'fc{number}']))
        layers += [(f'relu{number}', 'ReLU', []), (f'drop{number}', 'Dropout', [])]
    for name in ('fc8', 'cls_score', 'bbox_pred'):
        if name in blobs:
            layers.append((name, 'InnerProduct', blobs[name]))
    return [*layers, ('cls_prob', 'Softmax', [])]


def write_caffemodel(path, layers, v1=False, double=False, old_shape=False):
    """Layers one after another: joined messages are one message to protobuf.

    Args:
        layers: (name, type, blobs) of each.
        v1: old layers.
        double: values as double_data.
        old_shape: four dimensions, where an inner product is (1, 1, out, in).
    """
    with open(path, 'wb') as file:
        file.write(NetParameter(name='net', input=['data']).SerializeToString())
        for name, kind, blobs in layers:
            net = NetParameter()
            layer = net.layers.add() if v1 else net.layer.add()
            layer.name, layer.type = name, V1_TYPES[kind] if v1 else kind
            layer.bottom.append('x'), layer.top.append(name)
            for array in blobs:
                add_blob(layer.blobs.add(), array, double, old_shape)
            file.write(net.SerializeToString())


def add_blob(blob, array, double=False, old_shape=False):
    if old_shape:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
    else:
        blob.shape.dim.extend(array.shape)
    # A packed field as it stands in a file: as Python's floats it would take minutes.
    number, dtype = (8, '<f8') if double else (5, '<f4')
    content = array.astype(dtype).tobytes()
    blob.MergeFromString(varint(number << 3 | 2) + varint(len(content)) + content)


def varint(value: int) -> bytes:
    """Protobuf's: seven bits in a byte, the low ones first."""
    head, rest = value & 0x7F, value >> 7
    return bytes([head | 0x80]) + varint(rest) if rest else bytes([head])


def conv(x, weight, bias, stride, padding):
    """(C, H, W) by im2col."""
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    windows = sliding_window_view(x, weight.shape[2:], axis=(1, 2))
    windows = windows[:, ::stride, ::stride]  # C, H', W', kernel, kernel
    y = np.tensordot(weight, windows, axes=([1, 2, 3], [0, 3, 4]))
    return y + bias[:, None, None]


def lrn(x):
    """Local size 5, alpha 0.0005, beta 0.75, k 2, across channels."""
    squares = np.pad(x**2, ((2, 2), (0, 0), (0, 0)))
    sums = sum(squares[i : i + len(x)] for i in range(5))
    return x / (2 + 0.0005 / 5 * sums) ** 0.75


def max_pool(x, kernel):
    """Stride 2; the size of the output is rounded up and the last window cut."""
    height, width = (-(-(size - kernel) // 2) + 1 for size in x.shape[1:])
    y = np.empty((len(x), height, width), x.dtype)
    for i in range(height):
        for j in range(width):
            window = x[:, 2 * i : 2 * i + kernel, 2 * j : 2 * j + kernel]
            y[:, i, j] = window.max(axis=(1, 2))
    return y


def roi_pool(x, rois, bins):
    """(R, C, P, P) of boxes in pixels, as in roi_pooling_layer.cpp."""
    channels, height, width = x.shape
    pooled = np.zeros((len(rois), channels, bins, bins), x.dtype)
    for r, roi in enumerate(rois):
        # C's round; the coordinates are not negative
        x1, y1, x2, y2 = (int(np.floor(corner / 16 + 0.5)) for corner in roi)
        roi_height, roi_width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
        for i in range(bins):
            for j in range(bins):
                top = min(y1 + i * roi_height // bins, height)
                bottom = min(y1 - (-(i + 1) * roi_height // bins), height)
                left = min(x1 + j * roi_width // bins, width)
                right = min(x1 - (-(j + 1) * roi_width // bins), width)
                if bottom > top and right > left:
                    cells = x[:, top:bottom, left:right]
                    pooled[r, :, i, j] = cells.max(axis=(1, 2))
    return pooled


def forward(net, blobs, image, rois):
    """fc7, and cls_score and bbox_pred of a detector, of an image (3, H, W), BGR."""
    steps = dict(norm=lrn, pool=partial(max_pool, kernel=POOL_KERNEL[net]))
    x = image
    for name, _, stride, padding, after in CONVS[net]:
        x = np.maximum(conv(x, *blobs[name], stride, padding), 0)
        for step in after:
            x = steps[step](x)
    x = roi_pool(x, rois, BINS[net]).reshape(len(rois), -1)
    for name in ('fc6', 'fc7'):
        weight, bias = blobs[name]
        x = np.maximum(x @ weight.T + bias, 0)
    heads = [blobs[name] for name in ('cls_score', 'bbox_pred') if name in blobs]
    return x, *(x @ weight.T + bias for weight, bias in heads)


def softmax(scores):
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def decode(rois, deltas, plus_one):
    """Boxes (R, 4 * classes) of plain deltas; Caffe's widths are x2 - x1 + 1."""
    one = 1.0 if plus_one else 0.0
    boxes = np.empty(deltas.shape)
    for r, (x1, y1, x2, y2) in enumerate(rois):
        w, h = x2 - x1 + one, y2 - y1 + one
        for k in range(0, deltas.shape[1], 4):
            dx, dy, dw, dh = deltas[r, k : k + 4]
            center_x, center_y = x1 + 0.5 * w + dx * w, y1 + 0.5 * h + dy * h
            new_w, new_h = np.exp(dw) * w, np.exp(dh) * h
            # bbox_transform_inv in lib/fast_rcnn/bbox_transform.py takes no 1 off x2
            boxes[r, k : k + 4] = (
                center_x - 0.5 * new_w,
                center_y - 0.5 * new_h,
                center_x + 0.5 * new_w,
                center_y + 0.5 * new_h,
            )
    return boxes


SMALL = (24, 16)  # fc6 and fc7; the backbones have one size


@cache
def blobs_of(net, kind):
    return random_blobs(net, SMALL, kind)
