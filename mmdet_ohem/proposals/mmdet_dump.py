"""Reader of the proposals that MMDetection's `DumpProposals` metric pickles.

R: boxes of one image.
"""

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from mmdet_ohem.proposals.boxes import as_boxes
from mmdet_ohem.proposals.pickled import (
    Array,
    Instances,
    Plain,
    UnreadableError,
    array_of,
    read_pickle,
)


def read_dump(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Proposals as MMDetection's `DumpProposals` metric pickles them.

    Nothing in the file is run, see pickled.py: only dict, InstanceData and NumPy arrays
    are understood. The boxes are MMDetection's own and stay as they are, in the file's
    order (falling score). The keys 'folder/name.jpg' become image ids: the file name
    without suffix.

    Returns:
        dict: Image id to boxes (R, 4) float32.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or not of this kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'There is no file {path}: check its path.')
    try:
        with open(path, 'rb') as file:
            return _read_proposals(file, path)
    except UnreadableError as error:
        raise ValueError(
            f'{path} is not read as an MMDetection proposal dump ({error}): it may '
            'hold nothing but dict, InstanceData and NumPy arrays, as the metric '
            'DumpProposals writes them.'
        ) from error


def _read_proposals(file: BinaryIO, path: str | os.PathLike) -> dict[str, np.ndarray]:
    dump = read_pickle(file)
    if not isinstance(dump, dict):
        kind = dump.name if isinstance(dump, Plain) else type(dump).__name__
        raise ValueError(
            f'{path} holds a {kind}, but an MMDetection 3 proposal dump is a dict from '
            'image file to boxes.'
        )
    proposals, size = {}, os.fstat(file.fileno()).st_size
    for key, value in dump.items():
        shown = repr(key[:200])
        fields = value.fields if isinstance(value, Instances) else value
        if not isinstance(fields, dict) or not isinstance(fields.get('bboxes'), Array):
            raise ValueError(
                f"{path}: the entry {shown} has no 'bboxes' array, so this is not an "
                'MMDetection 3 proposal dump.'
            )
        img_id = Path(key).stem
        if img_id in proposals:
            raise ValueError(
                f'{path} has two images called {img_id[:200]!r}: dump their folders '
                'apart.'
            )
        boxes = array_of(fields['bboxes'], file)
        size -= boxes.nbytes
        if size < 0:
            raise UnreadableError('many images share an array')
        proposals[img_id] = as_boxes(boxes, f'{path}: {shown}')
    return proposals
