"""The small data set of `lookalikes.py` with elongated parts that lie at any angle.

Bars, links and spindles, each with two round holes, lie on a cluttered table beside
blanks of the same outlines that were never drilled. They are annotated in the text
format of DOTA, as MMRotate's DOTADataset reads it: a file for each image with a line
for each object, ``x1 y1 x2 y2 x3 y3 x4 y4 class difficulty``, in pixels.

The same seed gives the same bytes (with the same OpenCV).
"""

from collections.abc import Callable, Iterable

import cv2
import numpy as np

from mmdet_ohem.datasets.lookalikes import (
    OVERSAMPLING,
    draw_scene,
    metal,
    new_folder,
    point,
    shade,
)

ROTATED_CLASSES = ('bar', 'link', 'spindle')
HUES = {'bar': 20, 'link': 150, 'spindle': 225}
# Half the length of a part in pixels, and its length in widths.
HALF_LENGTHS = (24, 44)
ASPECT_RATIOS = (2.2, 3.2)
# The holes lie at this share of the half length, and their radius is that of the half
# width.
HOLE_AT = 0.45
HOLE_RADII = (0.42, 0.52)


def generate_rotated(
    root: str,
    num_train: int = 120,
    num_test: int = 60,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write {train,val,test}/images/*.png and {train,val,test}/annfiles/*.txt.

    Args:
        root: a folder that does not exist yet; it appears when all is written.
        num_train, num_test: how many images; val has as many as test.
        seed: for every random number.
        progress: wraps an iterable, to show how far it is.

    Raises:
        FileExistsError: ``root`` exists.
    """
    rng = np.random.default_rng(seed)
    nums = dict(train=num_train, val=num_test, test=num_test)
    names = [
        (split, f'{split}_{i:04d}') for split, num in nums.items() for i in range(num)
    ]
    kinds = ('images', 'annfiles')
    inner = [f'{split}/{kind}' for split in nums for kind in kinds]
    with new_folder(root, inner) as folder:
        for split, name in progress(names):
            image, objects = draw_rotated_image(rng)
            cv2.imwrite(str(folder / split / 'images' / f'{name}.png'), image)
            lines = [
                ' '.join([*(f'{x:.1f}' for x in corners.ravel()), kind, '0\n'])
                for kind, corners in objects
            ]
            (folder / split / 'annfiles' / f'{name}.txt').write_text(''.join(lines))


def draw_rotated_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple]]:
    """Draw a table with clutter, blanks and one or two objects.

    Returns:
        The image (300, 400, 3) uint8 BGR, and for each object its class name and the
        corners (4, 2) of its box, x, y in pixels.
    """
    return draw_scene(ROTATED_CLASSES, HALF_LENGTHS, _draw_part, rng)


def _draw_part(
    canvas: np.ndarray,
    name: str,
    place: tuple[float, float, float],
    drilled: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw an object, or a blank of the same outline, and return the corners (4, 2) of
    its box."""
    x, y, half_length = place
    half_width = half_length / rng.uniform(*ASPECT_RATIOS)
    angle = rng.uniform(0, 2 * np.pi)
    # Points (n, 2) of the part's own frame, on the canvas.
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    def on_canvas(points) -> np.ndarray:
        return OVERSAMPLING * (np.asarray(points) @ turn + (x, y))

    outline = on_canvas(_outline(name, half_length, half_width))
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1)
    hole = OVERSAMPLING * half_width * rng.uniform(*HOLE_RADII)
    holes = on_canvas([(-HOLE_AT * half_length, 0), (HOLE_AT * half_length, 0)])
    colour = metal(HUES[name], rng)
    if drilled:
        for centre in holes:
            cv2.circle(mask, point(centre), int(hole), 0, -1)
    canvas[mask > 0] = colour
    if not drilled:
        # Punch marks where the holes would be, for dots alone shall not tell.
        mark = shade(colour, rng)
        for centre in holes:
            cv2.circle(canvas, point(centre), int(hole / 2), mark, -1)
    corners = on_canvas(
        [
            (-half_length, -half_width),
            (half_length, -half_width),
            (half_length, half_width),
            (-half_length, half_width),
        ]
    )
    return corners / OVERSAMPLING


def _outline(name: str, half_length: float, half_width: float) -> np.ndarray:
    """(points, 2) around the origin, as long as the part's box and as wide."""
    if name == 'bar':
        x, y = half_length, half_width
        return np.array([(-x, -y), (x, -y), (x, y), (-x, y)])
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    if name == 'spindle':
        return circle * (half_length, half_width)
    # A link: two half circles and straight sides between them.
    straight = np.sign(circle[:, :1]) * (half_length - half_width)
    return half_width * circle + straight * (1, 0)
