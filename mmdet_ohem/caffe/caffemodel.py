"""The layers of a .caffemodel, read without Caffe.

The numbers of the fields are those of `caffe.proto` in BVLC's Caffe. Only the fields
that weights need are described; protobuf passes over the rest.
"""

import math
import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

# name, number, type (a capital one is a message of this table), repeated. A string is
# read as bytes: what protobuf raises where one is not UTF-8 depends on its version.
_FIELDS = {
    'BlobShape': [('dim', 1, 'int64', True)],
    'BlobProto': [
        ('num', 1, 'int32', False),
        ('channels', 2, 'int32', False),
        ('height', 3, 'int32', False),
        ('width', 4, 'int32', False),
        ('data', 5, 'float', True),
        ('shape', 7, 'BlobShape', False),
        ('double_data', 8, 'double', True),
    ],
    'V1LayerParameter': [
        ('name', 4, 'bytes', False),
        ('blobs', 6, 'BlobProto', True),
    ],
    'LayerParameter': [
        ('name', 1, 'bytes', False),
        ('blobs', 7, 'BlobProto', True),
    ],
}
# The file is one NetParameter; these of its fields are layers.
_LAYERS = {2: 'V1LayerParameter', 100: 'LayerParameter'}
# VGG16's fc6 in double precision has 0.8 GB, and the deepest networks some 1000 layers.
LARGEST_LAYER = 2**30
MOST_FIELDS = 10_000


def read_layers(path: str) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Name and blobs (float32, in the shapes of the file) of one layer after another.

    Layers without blobs come too. One layer at a time is handed to protobuf: the whole
    message, beside the bytes that it is parsed from, would take twice the file's size
    before there is a single array.

    Raises:
        ValueError: the file is cut off, or is no .caffemodel.
    """
    size = os.path.getsize(path)
    if size == 0:
        raise ValueError(f'{path} is empty: download it again.')
    try:
        with open(path, 'rb') as file:
            for _ in range(MOST_FIELDS):
                if file.tell() == size:
                    return
                field, length = _next_field(file, size)
                if field not in _LAYERS:
                    file.seek(length, os.SEEK_CUR)
                    continue
                if length > LARGEST_LAYER:
                    raise ValueError(f'a layer has {length} bytes')
                layer = _MESSAGES[_LAYERS[field]].FromString(file.read(length))
                name = layer.name.decode('utf-8')
                blobs = [_array(blob, name) for blob in layer.blobs]
                del layer  # before the next one is read
                yield name, blobs
                del blobs
        raise ValueError(f'it has more than {MOST_FIELDS} layers or other fields')
    except (DecodeError, ValueError) as error:
        raise ValueError(
            f'{path} is cut off or no .caffemodel ({error}): download it again, or '
            'give the binary file with the weights.'
        ) from error


def _describe() -> dict[str, type[Message]]:
    """The message classes of `_FIELDS`."""
    field_type = descriptor_pb2.FieldDescriptorProto
    package = 'mmdet_ohem.caffe'
    description = descriptor_pb2.FileDescriptorProto(
        name='mmdet_ohem/caffe.proto', package=package
    )
    for message, fields in _FIELDS.items():
        described = description.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            label = 'LABEL_REPEATED' if repeated else 'LABEL_OPTIONAL'
            field = described.field.add(name=name, number=number, label=label)
            if kind in _FIELDS:
                field.type_name = f'.{package}.{kind}'
            else:
                field.type = field_type.Type.Value(f'TYPE_{kind.upper()}')
    pool = descriptor_pool.DescriptorPool()  # of our own: no clash with a real caffe
    pool.Add(description)
    return {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f'{package}.{name}')
        )
        for name in _FIELDS
    }


_MESSAGES = _describe()


def _next_field(file: BinaryIO, size: int) -> tuple[int, int]:
    """Number and length in bytes of the field that starts here, inside the file."""
    start = file.tell()
    # protobuf.dev, "Encoding": a tag is number * 8 + wire type
    field, wire_type = divmod(_varint(file), 8)
    if wire_type == 0:
        _varint(file)
        length = 0
    elif wire_type == 2:
        length = _varint(file)
    elif wire_type in (1, 5):
        length = 8 if wire_type == 1 else 4
    else:
        raise ValueError(f'byte {start} starts no field')
    left = size - file.tell()
    if length > left:
        raise ValueError(f'byte {start} announces {length} bytes, {left} are left')
    return field, length


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError('it ends inside a field')
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError(f'byte {file.tell() - 10} starts no number')


def _array(blob: Message, layer: str) -> np.ndarray:
    values = blob.data or blob.double_data
    if blob.HasField('shape'):
        shape = tuple(blob.shape.dim)
    else:  # before Caffe's blobs had any number of dimensions
        shape = (blob.num, blob.channels, blob.height, blob.width)
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise ValueError(f'{layer} has a blob {shape} of {len(values)} values')
    # np.array makes a list of Python floats first with some versions of protobuf
    return np.fromiter(values, np.float32, len(values)).reshape(shape)
