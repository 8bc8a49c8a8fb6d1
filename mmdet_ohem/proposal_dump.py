"""Reader of the proposals that MMDetection's `DumpProposals` metric pickles.

R: boxes of one image.
"""

import os
import pickle
from pathlib import Path

import numpy as np
from mmengine.structures import InstanceData

from mmdet_ohem.proposal_files import as_boxes


def _encode_latin1(text: str, encoding: str) -> bytes:
    # Pickle protocol 2, MMEngine's, writes the bytes of an array as latin1 text.
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'bytes encoded as {encoding!r}')
    return text.encode('latin1')


class _ProposalUnpickler(pickle.Unpickler):
    """Admits InstanceData and NumPy arrays, beside pickle's own dict, list, ..."""

    admitted = {
        ('mmengine.structures.instance_data', 'InstanceData'): InstanceData,
        # InstanceData keeps the names of its fields in a set; protocol 2 has
        # Python 2's name for it.
        ('builtins', 'set'): set,
        ('__builtin__', 'set'): set,
        ('__builtin__', 'bytes'): bytes,  # of an empty array
        ('_codecs', 'encode'): _encode_latin1,
        ('numpy', 'ndarray'): np.ndarray,
        ('numpy', 'dtype'): np.dtype,
    }
    numpy_makers = {
        ('multiarray', '_reconstruct'),
        ('multiarray', 'scalar'),
        ('numeric', '_frombuffer'),
    }

    def find_class(self, module: str, name: str):
        if (module, name) in self.admitted:
            return self.admitted[module, name]
        package, _, last = module.rpartition('.')
        # NumPy 2 calls numpy.core numpy._core.
        if package in ('numpy.core', 'numpy._core'):
            if (last, name) in self.numpy_makers:
                return super().find_class(module, name)
        raise pickle.UnpicklingError(f'it holds {module}.{name}')


def read_dump(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Proposals as MMDetection's `DumpProposals` metric pickles them.

    Nothing is executed: only dict, InstanceData and NumPy arrays are admitted. The
    boxes are MMDetection's own and stay as they are, in the file's order (falling
    score). The keys 'folder/name.jpg' become image ids: the file name without suffix.

    Returns:
        dict: Image id to boxes (R, 4) float32.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file {path}: check its path.')
    try:
        with open(path, 'rb') as file:
            dump = _ProposalUnpickler(file).load()
    # A broken pickle raises nearly anything.
    except Exception as error:
        raise ValueError(
            f'{path} is not read as an MMDetection proposal dump ({error}): it may '
            'hold nothing but dict, InstanceData and NumPy arrays.'
        ) from error
    if not isinstance(dump, dict):
        raise ValueError(
            f'{path} holds a {type(dump).__name__}, but an MMDetection 3 proposal dump '
            'is a dict from image file to boxes.'
        )
    proposals = {}
    for key, value in dump.items():
        if not isinstance(value, (dict, InstanceData)) or 'bboxes' not in value:
            raise ValueError(
                f"{path}: the entry {key!r} has no 'bboxes', so this is not an "
                'MMDetection 3 proposal dump.'
            )
        img_id = Path(str(key)).stem
        if img_id in proposals:
            raise ValueError(
                f'{path} has two images called {img_id!r}: dump their folders apart.'
            )
        proposals[img_id] = as_boxes(value['bboxes'], f'{path}: {key!r}')
    return proposals
