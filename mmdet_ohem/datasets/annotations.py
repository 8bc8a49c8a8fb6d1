"""Annotations as data sets in VOC layout hold them, and what a box has to be."""

import os
from xml.etree import ElementTree

# An annotation of VOC has a few kB; of elements alone, Python makes 25 times as much.
LARGEST_XML = 2**24
# In px. float32 holds no larger whole numbers exactly.
FARTHEST = 2**24


def read_voc_annotation(path: str | os.PathLike) -> ElementTree.ElementTree:
    """Parse an XML file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no whole XML file.
    """
    if not os.path.isfile(path):  # opening a pipe waits for somebody to write
        raise FileNotFoundError(f'There is no annotation {path}.')
    if os.path.getsize(path) > LARGEST_XML:
        raise ValueError(f'{path} is larger than {LARGEST_XML} bytes: replace it.')
    try:
        return ElementTree.parse(path)
    # The latter two come from an encoding that is not known.
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise ValueError(f'{path} is no whole XML file ({error}).') from error


def voc_box(node: ElementTree.Element, path: str | os.PathLike) -> list[int]:
    """The corners of an object, as MMDetection reads them.

    Returns:
        list[int]: x1, y1, x2, y2 in px. VOC counts from 1, MMDetection subtracts 1 from
            all four.

    Raises:
        ValueError: The object has no such box; the message names the file.
    """
    corners = []
    for key in ('xmin', 'ymin', 'xmax', 'ymax'):
        text = node.findtext(f'bndbox/{key}')
        corner = _number(text)
        if not -FARTHEST < corner < FARTHEST:
            name = str(node.findtext('name'))[:80]
            raise ValueError(
                f'{path}: the {key} of an object of class {name!r} is '
                f'{str(text)[:80]!r} instead of a number of px: correct or remove it.'
            )
        corners.append(int(corner) - 1)
    return corners


def is_difficult(node: ElementTree.Element, path: str | os.PathLike) -> bool:
    """Whether VOC leaves an object out of training and evaluation.

    Raises:
        ValueError: The object says it by no whole number; the message names the file.
    """
    text = node.findtext('difficult', '0')
    try:
        return int(text) != 0
    except ValueError as error:
        name = str(node.findtext('name'))[:80]
        raise ValueError(
            f"{path}: 'difficult' of an object of class {name!r} is {text[:80]!r} "
            'instead of 0 or 1: correct it.'
        ) from error


def is_box(box) -> bool:
    """Whether a value of a JSON file is four finite numbers of px."""
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(type(x) in (int, float) and -FARTHEST < x < FARTHEST for x in box)
    )


def _number(text: str | None) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float('nan')
