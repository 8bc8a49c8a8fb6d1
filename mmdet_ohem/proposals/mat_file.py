"""MATLAB's .mat files of version 5 to 7, as far as boxes and names of images need it.

SciPy's `loadmat` reads far more, but a flipped byte can end the process by a signal.
Here every length is compared with what is left before anything is read, and a cell
array is read one cell at a time. The layout and the numbers are those of MathWorks'
"MAT-File Level 5 File Format".

A file is a header of 128 bytes and elements. An element has a tag, its type and its
length in bytes, and fills up to 8 bytes. A variable is an element of type MATRIX, whose
content is elements again: flags, shape, name, and the data; the data of a cell array
are one MATRIX a cell. Each variable may be compressed.
"""

import io
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

# Types of elements
INT8, UINT32, INT32, MATRIX, COMPRESSED = 1, 6, 5, 14, 15
NUMBERS = {
    **{1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4'},
    **{7: 'f4', 9: 'f8', 12: 'i8', 13: 'u8'},
}
TEXTS = {
    **dict.fromkeys((1, 2, 16), ('utf-8', 'utf-8')),
    **dict.fromkeys((4, 17), ('utf-16-le', 'utf-16-be')),
    18: ('utf-32-le', 'utf-32-be'),
}
# Classes of matrices
CELL, CHAR, FIRST_NUMERIC, LAST_NUMERIC = 1, 4, 6, 15
COMPLEX, LOGICAL = 0x08, 0x02  # flags beside the class

# Of one image: two million boxes in double precision. A small compressed file could
# else ask for any amount of memory.
LARGEST_ARRAY = 64 * 2**20
LONGEST_NAME = 4096  # of a variable or an image, in bytes
# A variable has at most 4 GB, and an image of a data set thousands of boxes.
MOST_CELLS = 2**20


class _DamagedError(ValueError):
    """What is wrong with a file, for the sentence that names it."""


@dataclass(frozen=True)
class Variable:
    """A variable of a file, of which only the header was read.

    Attributes:
        shape: as MATLAB has it.
        is_cell: whether it is a cell array.
        is_numeric: whether it is an array of real numbers.
    """

    path: str | os.PathLike
    offset: int
    byte_order: str
    shape: tuple[int, ...]
    is_cell: bool
    is_numeric: bool

    @property
    def num_items(self) -> int:
        return math.prod(self.shape)

    def array(self) -> np.ndarray:
        """The numbers of a numeric variable.

        Raises:
            ValueError: The file is damaged.
        """
        with _sentences(self.path), open(self.path, 'rb') as file:
            matrix = _open_variable(file, self.offset, self.byte_order)
            values = matrix.content()
            matrix.expect_end()
            _expect_end_of(matrix.stream)
        return values

    def cells(self) -> Iterator[np.ndarray | str | None]:
        """The cells in MATLAB's order: numbers, a line of text, or None of all else,
        which ends the reading.

        Raises:
            ValueError: The file is damaged.
        """
        if self.num_items > MOST_CELLS:
            raise ValueError(
                f'{self.path} claims {self.num_items} cells, more than fit into a .mat '
                'file of boxes: fetch it again.'
            )
        with _sentences(self.path), open(self.path, 'rb') as file:
            matrix = _open_variable(file, self.offset, self.byte_order)
            for _ in range(self.num_items):
                kind, length, _ = matrix.tag()
                if kind != MATRIX:
                    raise _DamagedError(f'a cell is an element of type {kind}')
                if length == 0:
                    yield np.zeros((0, 0))
                    continue
                cell = _Matrix(matrix.stream, self.byte_order, matrix.enter(length))
                content = cell.content()
                yield content
                if content is None:
                    return
                cell.expect_end()
            matrix.expect_end()
            _expect_end_of(matrix.stream)


def read_variables(path: str | os.PathLike) -> dict[str, Variable]:
    """The variables of a file by name.

    Raises:
        ValueError: The file is damaged, or not of these versions.
    """
    variables = {}
    with _sentences(path), open(path, 'rb') as file:
        byte_order = _read_header(file, path)
        size = os.fstat(file.fileno()).st_size
        offset = file.tell()
        while offset < size:
            file.seek(offset)
            _, length = _read_tag(file, byte_order)
            end = offset + 8 + length
            if end > size:
                raise _DamagedError(f'{end - size} bytes of a variable are missing')
            matrix = _open_variable(file, offset, byte_order)
            variables[matrix.name] = Variable(
                path,
                offset,
                byte_order,
                matrix.shape,
                is_cell=matrix.kind == CELL,
                is_numeric=FIRST_NUMERIC <= matrix.kind <= LAST_NUMERIC
                and not matrix.flags & (COMPLEX | LOGICAL),
            )
            offset = end
    return variables


@contextmanager
def _sentences(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (_DamagedError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(
            f'{path} is not a readable .mat file ({error}): fetch it again.'
        ) from error


def _read_header(file: BinaryIO, path: str | os.PathLike) -> str:
    """The byte order of a file, as `struct` calls it."""
    header = file.read(128)
    if len(header) == 128 and 0 in header[:4]:
        raise ValueError(
            f"{path} is a MATLAB 4 file: save it again with MATLAB's save(..., '-v7')."
        )
    byte_order = {b'IM': '<', b'MI': '>'}.get(header[126:])
    if byte_order is None:
        raise _DamagedError('it has no header of MATLAB')
    (version,) = struct.unpack(f'{byte_order}H', header[124:126])
    if version == 0x0200:
        raise ValueError(
            f"{path} is a MATLAB v7.3 file: save it again with MATLAB's "
            "save(..., '-v7')."
        )
    if version != 0x0100:
        raise _DamagedError(f'its header names the version {version:#06x}')
    return byte_order


def _read_tag(stream: BinaryIO, byte_order: str) -> tuple[int, int]:
    tag = stream.read(8)
    if len(tag) < 8:
        raise _DamagedError('it ends inside a tag')
    return struct.unpack(f'{byte_order}II', tag)


def _open_variable(file: BinaryIO, offset: int, byte_order: str) -> '_Matrix':
    file.seek(offset)
    kind, length = _read_tag(file, byte_order)
    stream = file
    if kind == COMPRESSED:
        stream = io.BufferedReader(_Inflated(file, length), 2**16)
        kind, length = _read_tag(stream, byte_order)
    if kind != MATRIX:
        raise _DamagedError(f'a variable is an element of type {kind}')
    return _Matrix(stream, byte_order, length)


def _expect_end_of(stream: BinaryIO) -> None:
    """Compressed data end with a checksum, which is compared behind the last byte."""
    if isinstance(stream, io.BufferedReader) and isinstance(stream.raw, _Inflated):
        if stream.read(1):
            raise _DamagedError('a variable is longer than its tag says')


class _Inflated(io.RawIOBase):
    """What the next `length` bytes of a file are decompressed to."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.file, self.length = file, length
        self.inflater = zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.inflater.eof:
            packed = self.inflater.unconsumed_tail
            if not packed:
                packed = self.file.read(min(self.length, 2**16))
                self.length -= len(packed)
                if not packed:
                    raise _DamagedError('it ends inside compressed data')
            data = self.inflater.decompress(packed, len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


class _Matrix:
    """Reads one element of type MATRIX, of which `left` bytes are not yet read."""

    def __init__(self, stream: BinaryIO, byte_order: str, left: int) -> None:
        self.stream, self.byte_order, self.left = stream, byte_order, left
        flags = self._element(UINT32, 8)
        if len(flags) != 8:
            raise _DamagedError('a variable has no flags')
        flags = struct.unpack(f'{byte_order}I', flags[:4])[0]
        self.kind, self.flags = flags & 0xFF, flags >> 8
        shape = self._element(INT32, 4 * 32)
        if len(shape) % 4:
            raise _DamagedError(f'a variable has a shape of {len(shape)} bytes')
        self.shape = struct.unpack(f'{byte_order}{len(shape) // 4}i', shape)
        if len(self.shape) < 2 or min(self.shape) < 0:
            raise _DamagedError(f'a variable has the shape {self.shape}')
        self.name = self._element(INT8, LONGEST_NAME).decode('latin1')

    def tag(self) -> tuple[int, int, bytes | None]:
        """Type, length, and the data where they stand in the tag itself."""
        tag = self._take(8)
        kind, length = struct.unpack(f'{self.byte_order}II', tag)
        if kind <= 0xFFFF:
            return kind, length, None
        kind, length = kind & 0xFFFF, kind >> 16
        if length > 4:
            raise _DamagedError(f'a tag of 4 bytes announces {length}')
        return kind, length, tag[4 : 4 + length]

    def enter(self, length: int) -> int:
        """Count an element as read, because another object reads it; its length."""
        if length > self.left:
            raise _DamagedError(f'{length} bytes are announced where {self.left} are')
        self.left -= length
        return length

    def content(self) -> np.ndarray | str | None:
        """Real numbers, a line of text, or None of all else."""
        if self.flags & (COMPLEX | LOGICAL):
            return None
        if FIRST_NUMERIC <= self.kind <= LAST_NUMERIC:
            return self._numbers()
        if self.kind == CHAR and len(self.shape) == 2 and self.shape[0] == 1:
            return self._text()
        return None

    def expect_end(self) -> None:
        # Some writers count what fills an element up, others do not.
        if self.left >= 8:
            raise _DamagedError(f'{self.left} bytes follow the data of a variable')
        self._take(self.left)

    def _numbers(self) -> np.ndarray:
        kind, length, data = self.tag()
        if kind not in NUMBERS:
            raise _DamagedError(f'numbers are an element of type {kind}')
        dtype = np.dtype(self.byte_order + NUMBERS[kind])
        expected = math.prod(self.shape) * dtype.itemsize
        if length != expected:
            raise _DamagedError(
                f'numbers of shape {self.shape} are {length} bytes instead of '
                f'{expected}'
            )
        values = np.frombuffer(self._data(length, data, LARGEST_ARRAY), dtype)
        return values.reshape(self.shape, order='F')

    def _text(self) -> str:
        kind, length, data = self.tag()
        if kind not in TEXTS:
            raise _DamagedError(f'text is an element of type {kind}')
        codec = TEXTS[kind][self.byte_order == '>']
        text = bytes(self._data(length, data, LONGEST_NAME)).decode(codec)
        # MATLAB counts units of UTF-16.
        if len(text.encode('utf-16-le')) != 2 * self.shape[1]:
            raise _DamagedError(f'text of {self.shape[1]} characters has {len(text)}')
        return text

    def _element(self, expected: int, longest: int) -> bytes:
        kind, length, data = self.tag()
        if kind != expected:
            raise _DamagedError(f'an element is of type {kind} instead of {expected}')
        return self._data(length, data, longest)

    def _data(self, length: int, data: bytes | None, longest: int) -> bytes:
        if length > longest:
            raise _DamagedError(f'{length} bytes where at most {longest} make sense')
        if data is None:
            data = self._take(length)
            # The last element of a variable may lack what fills it up.
            self._take(min(-length % 8, self.left))
        return data

    def _take(self, length: int) -> bytes:
        self.enter(length)
        data = self.stream.read(length)
        if len(data) < length:
            raise _DamagedError('it ends inside a variable')
        return data
