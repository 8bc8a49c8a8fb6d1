"""Values for a data set of one's own, proposed from what is measured on it, with the
reason for each.

Sizes are square roots of areas, in px of the image file unless said otherwise.
"""

from dataclasses import dataclass

import numpy as np

from mmdet_ohem.datasets.labelled_images import LabelledImage

# Fast R-CNN's longest side, and the small network's image in the examples.
LONGEST, SHORTEST = 1000, 400
# Three cells of the small network's map, whose stride is 8 px. BCCD and the demo's data
# keep their (400, 300) by this.
SMALL_OBJECT = 24
MOST_ENLARGED = 2
# The paper mines 64 of about 2000 RoIs.
PAPER_NUM = 64
PART_OF_PROPOSALS = 4


@dataclass
class Choice:
    """A value and the sentence that says why."""

    value: int | tuple[int, int]
    reason: str


def object_sizes(images: list[LabelledImage]) -> np.ndarray:
    """The size of every object that has an area and is not ignored.

    Raises:
        ValueError: there is no such object.
    """
    return np.sqrt(_sides(images).prod(axis=1))


def choose_scale(images: list[LabelledImage]) -> Choice:
    """The longer and the shorter side that an image is resized to fit into."""
    small = float(np.quantile(object_sizes(images), 0.1))
    sizes = np.array([image.size for image in images])
    longer, shorter = np.median(sizes.max(axis=1)), np.median(sizes.min(axis=1))
    wanted = SMALL_OBJECT / small
    factor = min(max(wanted, SHORTEST / longer), LONGEST / longer, MOST_ENLARGED)
    scale = (round(longer * factor), round(shorter * factor))
    reason = (
        f'A tenth of the objects is smaller than {small:.0f} px; images of '
        f'{longer:.0f} x {shorter:.0f} px come in at {factor:.2f} of their size, where '
        f'this is {small * factor:.0f} px'
    )
    if factor == wanted:
        reason += ', three cells of the small network.'
    elif factor == MOST_ENLARGED:
        reason += '; more than twice as large shows nothing new.'
    elif factor > wanted:
        reason += f', at a longer side of {SHORTEST} px, as in the examples.'
    else:
        reason += f"; a longer side of {LONGEST} px is Fast R-CNN's limit."
    return Choice(scale, reason)


def choose_min_size(images: list[LabelledImage]) -> Choice:
    """The shortest side of a proposal that is worth keeping, in px."""
    short = float(np.quantile(_sides(images).min(axis=1), 0.01))
    value = max(2, int(short / 2))
    return Choice(
        value,
        f'99% of the objects have sides of {short:.0f} px or more, and a box of less '
        'than half of that side cannot reach an IoU of 0.5 with any of them'
        + ('.' if value > 2 else '; 2 px is the least.'),
    )


def choose_num(num_proposals: list[int]) -> Choice:
    """How many RoIs of an image to train on.

    Args:
        num_proposals: of each of some images.
    """
    median = float(np.median(num_proposals))
    quarter = int(median / PART_OF_PROPOSALS)
    if quarter >= PAPER_NUM:
        return Choice(
            PAPER_NUM, f'As in the paper; an image has {median:.0f} proposals (median).'
        )
    value = max(8, quarter - quarter % 8)
    return Choice(
        value,
        f"At most a quarter of an image's {median:.0f} proposals (median), or little "
        f'is left to choose from; the paper takes {PAPER_NUM} of about 2000.',
    )


def _sides(images: list[LabelledImage]) -> np.ndarray:
    boxes = np.concatenate([image.boxes[~image.ignored] for image in images])
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = sides[(sides > 0).all(axis=1)]
    if len(sides) == 0:
        raise ValueError(
            f'None of {len(images)} annotated images has an object that counts: all '
            'are difficult, crowds or without area; annotate objects that are to be '
            'found.'
        )
    return sides
