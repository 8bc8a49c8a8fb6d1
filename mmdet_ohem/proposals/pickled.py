"""Pickles of plain data, read without running them.

A pickle is a program for a small stack machine, and two of its instructions reach out:
REDUCE calls whatever the file names, and BUILD sets any attribute of what came out.
Even an unpickler that admits nothing but NumPy's own functions lets a file read foreign
memory. So the program is not run here. The instructions that a pickle of dicts, NumPy
arrays and MMEngine's InstanceData consists of are read one by one, and make the
stand-ins below, which have no attributes but these. Anything else is refused by its
name.

Nothing here recurses, and what is long stays in the file until it is asked for.
"""

import math
import os
import pickle
import struct
from collections.abc import Callable
from typing import BinaryIO

import numpy as np

# Longer text and bytes stay in the file. Names of images and fields are shorter.
LONG = 4096
DEEPEST = 100  # containers in containers; a dump has six
# An instruction of one byte may make or keep an object of a hundred. The objects of a
# dump, those in the memo counted again, are of 3 bytes or more even without boxes.
BYTES_OF_AN_OBJECT = 2
DTYPES = {
    kind + size for kind in 'iuf' for size in '1248' if kind + size != 'f1'
}  # as NumPy pickles them, without their byte order


class UnreadableError(ValueError):
    """What a file holds that is no plain data, or where it is damaged."""


class Plain:
    """Something that may stand in a dump but is not read: a set, a list, ..."""

    __slots__ = ('name',)

    def __init__(self, name: str) -> None:
        self.name = name


class InFile:
    """Long text or bytes, `length` bytes from `start` in the file.

    `is_text` says that they are UTF-8; `is_bytes` that they stand for bytes: with both,
    as protocol 2 writes bytes, each character is one byte.
    """

    __slots__ = ('start', 'length', 'is_text', 'is_bytes')

    def __init__(self, start: int, length: int, is_text: bool, is_bytes: bool) -> None:
        self.start, self.length = start, length
        self.is_text, self.is_bytes = is_text, is_bytes


class Instances:
    """An InstanceData; `fields` is a dict, or None before it is filled."""

    __slots__ = ('fields',)

    def __init__(self) -> None:
        self.fields = None


class DType:
    """A NumPy dtype by its name in pickles, such as 'f4', and its byte order."""

    __slots__ = ('name', 'byte_order')

    def __init__(self, name: str) -> None:
        self.name, self.byte_order = name, '='


class Array:
    """A NumPy array; `dtype` is None before it is filled. Nothing is checked before
    `array_of` makes the array."""

    __slots__ = ('shape', 'dtype', 'order', 'data')

    def __init__(self, shape=None, dtype=None, order='C', data=None) -> None:
        self.shape, self.dtype, self.order, self.data = shape, dtype, order, data


def read_pickle(file: BinaryIO):
    """The plain data of a pickle of protocol 2 or later.

    Returns:
        None, bool, int, float, str, bytes, tuple, a dict of these by text, or a
        stand-in of this file.

    Raises:
        UnreadableError: The file holds something else, or is damaged.
    """
    machine = _Machine(file)
    try:
        return machine.run()
    except UnreadableError:
        raise
    # An instruction does not find what it needs on the stack or in the memo.
    except (
        *(AttributeError, IndexError, KeyError, TypeError, ValueError),
        *(OverflowError, struct.error),
    ) as error:
        raise UnreadableError(f'it is damaged before byte {file.tell()}') from error


def array_of(value: Array, file: BinaryIO) -> np.ndarray:
    """Make the array that a stand-in describes, of bytes of the file.

    Raises:
        UnreadableError: It is no array of numbers, or its parts do not fit together.
    """
    dtype, shape = value.dtype, value.shape
    if (
        not isinstance(dtype, DType)
        or type(dtype.name) is not str  # hashing a deep tuple ends the process
        or dtype.name not in DTYPES
        or dtype.byte_order not in ('<', '>', '|', '=')
    ):
        raise UnreadableError('an array is not of plain numbers')
    dtype = np.dtype(dtype.byte_order + dtype.name)
    if (
        not isinstance(shape, tuple)
        or len(shape) > 2
        or not all(type(side) is int and 0 <= side < 2**31 for side in shape)
    ):
        raise UnreadableError('an array of numbers has no shape of boxes')
    data, num_bytes = value.data, math.prod(shape) * dtype.itemsize
    if isinstance(data, InFile) and data.is_bytes:
        # In UTF-8 a character of latin1 takes one or two bytes.
        longest = num_bytes * (2 if data.is_text else 1)
        if not num_bytes <= data.length <= longest:
            raise UnreadableError(f'an array of shape {shape} has other data')
        file.seek(data.start)
        is_text, data = data.is_text, file.read(data.length)
        if is_text:
            try:
                data = data.decode('utf-8').encode('latin1')
            except UnicodeError as error:
                raise UnreadableError(
                    f'an array of shape {shape} is damaged'
                ) from error
    if not isinstance(data, bytes) or len(data) != num_bytes:
        raise UnreadableError(f'an array of shape {shape} has other data')
    if value.order not in ('C', 'F'):
        raise UnreadableError('an array is neither in row nor in column order')
    return np.frombuffer(data, dtype).reshape(shape, order=value.order)


# What a pickle may name, and what stands for it. Each of these functions is called with
# whatever the file gives; a wrong number of arguments is a TypeError.


def _encode(text, encoding) -> bytes | InFile:
    # Protocol 2 has no bytes: it writes text, to be encoded.
    if encoding != 'latin1':
        raise UnreadableError('it holds bytes that are not encoded as latin1')
    if isinstance(text, InFile):
        return InFile(text.start, text.length, text.is_text, is_bytes=True)
    return text.encode('latin1')


def _bytes() -> bytes:
    return b''


def _set(items=None) -> Plain:
    return Plain('set')


def _scalar(dtype, data=None) -> Plain:
    return Plain('NumPy scalar')


def _dtype(name, align=False, copy=False) -> DType:
    return DType(name)


def _reconstruct(kind, shape, data) -> Array:
    return Array()


def _from_buffer(data, dtype, shape, order, axis_order=None) -> Array:
    return Array(shape, dtype, order, data)


def _ndarray(*args):
    raise UnreadableError('it makes an array in a way that NumPy does not write')


# NumPy 2 calls numpy.core numpy._core.
_ADMITTED: dict[tuple[str, str], Callable] = {
    ('mmengine.structures.instance_data', 'InstanceData'): Instances,
    # InstanceData keeps the names of its fields in a set; protocol 2 has Python 2's
    # name for it.
    ('builtins', 'set'): _set,
    ('__builtin__', 'set'): _set,
    ('__builtin__', 'bytes'): _bytes,  # of an empty array
    ('_codecs', 'encode'): _encode,
    ('numpy', 'ndarray'): _ndarray,
    ('numpy', 'dtype'): _dtype,
    **{
        (f'numpy.{core}.{module}', name): stand_in
        for core in ('core', '_core')
        for module, name, stand_in in (
            ('multiarray', '_reconstruct', _reconstruct),
            ('multiarray', 'scalar', _scalar),
            ('numeric', '_frombuffer', _from_buffer),
        )
    },
}


class _Admitted:
    """A name of `_ADMITTED` on the stack."""

    __slots__ = ('make',)

    def __init__(self, make: Callable) -> None:
        self.make = make


# The method of _Machine that reads an instruction, by its opcode.
_STEPS: dict[bytes, Callable] = {}


def _reads(*opcodes: bytes) -> Callable:
    def register(step: Callable) -> Callable:
        _STEPS.update(dict.fromkeys(opcodes, step))
        return step

    return register


class _Machine:
    """Reads the instructions of one pickle, which mean what the comments in Python's
    pickletools.py say."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read = file, file.read
        self.size = os.fstat(file.fileno()).st_size
        self.stack, self.marked, self.memo = [], [], {}
        self.made, self.most = 0, 10_000 + self.size // BYTES_OF_AN_OBJECT

    def run(self):
        read, steps, stop = self.read, _STEPS, pickle.STOP
        if read(1) != pickle.PROTO or self._number('<B', 1) < 2:
            raise UnreadableError('it is no pickle of protocol 2 or later')
        while (opcode := read(1)) != stop:
            step = steps.get(opcode)
            if step is None:
                self._refuse(opcode)
            step(self)
        return self.stack.pop()

    def _refuse(self, opcode: bytes) -> None:
        if not opcode:
            raise UnreadableError('it is cut off')
        raise UnreadableError(
            f'byte {self.file.tell() - 1} is {opcode!r}, which a dump never has there'
        )

    def _damaged(self) -> UnreadableError:
        return UnreadableError(f'it is damaged before byte {self.file.tell()}')

    def _number(self, layout: str, length: int) -> int:
        return struct.unpack(layout, self.read(length))[0]

    @_reads(pickle.FRAME)
    def frame(self) -> None:
        self.read(8)

    # ------------------------------------------------------------------ plain values

    @_reads(pickle.NONE)
    def none(self) -> None:
        self.stack.append(None)

    @_reads(pickle.NEWTRUE)
    def true(self) -> None:
        self.stack.append(True)

    @_reads(pickle.NEWFALSE)
    def false(self) -> None:
        self.stack.append(False)

    @_reads(pickle.BININT1)
    def int_of_1_byte(self) -> None:
        self.stack.append(self.read(1)[0])

    @_reads(pickle.BININT2)
    def int_of_2_bytes(self) -> None:
        self.stack.append(self._number('<H', 2))

    @_reads(pickle.BININT)
    def int_of_4_bytes(self) -> None:
        self.stack.append(self._number('<i', 4))

    @_reads(pickle.LONG1)
    def long_int(self) -> None:
        number = self.read(self.read(1)[0])
        self.stack.append(int.from_bytes(number, 'little', signed=True))

    @_reads(pickle.BINFLOAT)
    def float_of_8_bytes(self) -> None:
        self.stack.append(self._number('>d', 8))

    @_reads(pickle.SHORT_BINUNICODE)
    def text_below_256(self) -> None:
        self._push_data(self.read(1)[0], is_text=True)

    @_reads(pickle.BINUNICODE)
    def text(self) -> None:
        self._push_data(self._number('<I', 4), is_text=True)

    @_reads(pickle.BINUNICODE8)
    def long_text(self) -> None:
        self._push_data(self._number('<Q', 8), is_text=True)

    @_reads(pickle.SHORT_BINBYTES)
    def data_below_256(self) -> None:
        self._push_data(self.read(1)[0], is_text=False)

    @_reads(pickle.BINBYTES)
    def data(self) -> None:
        self._push_data(self._number('<I', 4), is_text=False)

    @_reads(pickle.BINBYTES8, pickle.BYTEARRAY8)
    def long_data(self) -> None:
        self._push_data(self._number('<Q', 8), is_text=False)

    def _push_data(self, length: int, is_text: bool) -> None:
        if length <= LONG:
            data = self.read(length)
            if len(data) < length:
                raise UnreadableError('it is cut off')
            self.stack.append(data.decode('utf-8') if is_text else data)
            return
        start = self.file.tell()
        if length > self.size - start:
            raise UnreadableError('it is cut off')
        self.file.seek(start + length)
        self.stack.append(InFile(start, length, is_text, is_bytes=not is_text))

    # -------------------------------------------------------------------- containers

    def _push_made(self, value) -> None:
        self._count()
        self.stack.append(value)

    def _count(self) -> None:
        self.made += 1
        if self.made > self.most:
            raise UnreadableError('it makes more objects than a dump of its size')

    @_reads(pickle.MARK)
    def mark(self) -> None:
        if len(self.marked) == DEEPEST:
            raise UnreadableError('it is nested too deeply')
        self.marked.append(self.stack)
        self.stack = []

    def _items(self) -> list:
        """What was pushed since the last mark."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    @_reads(pickle.EMPTY_TUPLE)
    def empty_tuple(self) -> None:
        self.stack.append(())

    @_reads(pickle.TUPLE1)
    def tuple_of_1(self) -> None:
        self._push_made((self.stack.pop(),))

    @_reads(pickle.TUPLE2)
    def tuple_of_2(self) -> None:
        last, first = self.stack.pop(), self.stack.pop()
        self._push_made((first, last))

    @_reads(pickle.TUPLE3)
    def tuple_of_3(self) -> None:
        last, middle, first = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self._push_made((first, middle, last))

    @_reads(pickle.TUPLE)
    def tuple_of_items(self) -> None:
        items = self._items()
        self._push_made(tuple(items))

    @_reads(pickle.EMPTY_LIST)
    def empty_list(self) -> None:
        self._push_made(Plain('list'))

    @_reads(pickle.EMPTY_SET)
    def empty_set(self) -> None:
        self._push_made(Plain('set'))

    @_reads(pickle.APPEND)
    def append(self) -> None:
        self.stack.pop()
        self._top(Plain)

    @_reads(pickle.APPENDS, pickle.ADDITEMS)
    def append_items(self) -> None:
        self._items()
        self._top(Plain)

    @_reads(pickle.EMPTY_DICT)
    def empty_dict(self) -> None:
        self._push_made({})

    @_reads(pickle.SETITEM)
    def set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    @_reads(pickle.SETITEMS)
    def set_items(self) -> None:
        self._fill(self._items())

    def _fill(self, items: list) -> None:
        target = self._top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A tuple that is nested deeply ends the process when it is hashed, and
            # chosen integers all fall on one place of a dict.
            if type(key) is not str:
                raise UnreadableError('a dict has a key that is no text')
            target[key] = value

    def _top(self, kind: type):
        if type(self.stack[-1]) is not kind:
            raise self._damaged()
        return self.stack[-1]

    # -------------------------------------------------------------------------- memo

    def _keep(self, index: int) -> None:
        self._count()
        self.memo[index] = self.stack[-1]

    @_reads(pickle.BINPUT)
    def put(self) -> None:
        self._keep(self.read(1)[0])

    @_reads(pickle.LONG_BINPUT)
    def put_far(self) -> None:
        self._keep(self._number('<I', 4))

    @_reads(pickle.MEMOIZE)
    def memoize(self) -> None:
        self._keep(len(self.memo))

    @_reads(pickle.BINGET)
    def get(self) -> None:
        self.stack.append(self.memo[self.read(1)[0]])

    @_reads(pickle.LONG_BINGET)
    def get_far(self) -> None:
        self.stack.append(self.memo[self._number('<I', 4)])

    # ----------------------------------------------------------------------- objects

    @_reads(pickle.GLOBAL)
    def name(self) -> None:
        module, name = (self.file.readline(LONG).rstrip(b'\n') for _ in range(2))
        self._admit(module.decode('utf-8'), name.decode('utf-8'))

    @_reads(pickle.STACK_GLOBAL)
    def name_from_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self._admit(module, name)

    def _admit(self, module, name) -> None:
        if type(module) is not str or type(name) is not str:
            raise self._damaged()
        if (module, name) not in _ADMITTED:
            raise UnreadableError(f'it holds {ascii(f"{module}.{name}"[:100])}')
        self.stack.append(_Admitted(_ADMITTED[module, name]))

    @_reads(pickle.REDUCE)
    def reduce(self) -> None:
        args = self.stack.pop()
        admitted = self.stack.pop()
        if type(admitted) is not _Admitted or type(args) is not tuple:
            raise self._damaged()
        self._push_made(admitted.make(*args))

    @_reads(pickle.NEWOBJ)
    def new_object(self) -> None:
        args = self.stack.pop()
        admitted = self.stack.pop()
        if type(admitted) is not _Admitted or admitted.make is not Instances or args:
            raise self._damaged()
        self._push_made(Instances())

    @_reads(pickle.BUILD)
    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if type(target) is Instances and type(state) is dict:
            target.fields = state
        elif type(target) is DType and type(state) is tuple:
            target.byte_order = state[1]
        elif type(target) is Array and type(state) is tuple:
            _, target.shape, target.dtype, is_fortran, target.data = state
            target.order = 'F' if is_fortran is True else 'C'
        else:
            raise self._damaged()
