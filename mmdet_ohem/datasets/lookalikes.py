"""A small data set in VOC layout on which hard examples decide.

Washers, nuts and gears, each with a round hole, lie on a cluttered table beside blanks
of the same outlines that were never drilled. A blank lies far from every object, so a
sampler that keeps background near objects (bg_lo = 0.1) never sees one; among the
hundreds of regions of an image, a handful are blanks and the rest is easy.

The same seed gives the same bytes (with the same OpenCV).
"""

import os
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np

CLASSES = ('washer', 'nut', 'gear')
# Hue in degrees: copper, verdigris and blued steel.
HUES = {'washer': 20, 'nut': 150, 'gear': 225}
# Of the circle around a part, in pixels.
RADII = (16, 32)
WIDTH, HEIGHT = 400, 300
# Shapes are drawn this much larger and shrunk, for smooth edges.
OVERSAMPLING = 4


def generate(
    root: str,
    num_train: int = 120,
    num_test: int = 60,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write Annotations, ImageSets/Main/{train,test}.txt and JPEGImages.

    Args:
        root: a folder that does not exist yet; it appears when all is written.
        num_train, num_test: how many images.
        seed: for every random number.
        progress: wraps an iterable, to show how far it is.

    Raises:
        FileExistsError: ``root`` exists.
    """
    rng = np.random.default_rng(seed)
    ids = {
        'train': [f'train_{i:04d}' for i in range(num_train)],
        'test': [f'test_{i:04d}' for i in range(num_test)],
    }
    with new_folder(root, ('Annotations', 'ImageSets/Main', 'JPEGImages')) as folder:
        for image_id in progress(ids['train'] + ids['test']):
            image, objects = draw_image(rng)
            cv2.imwrite(str(folder / 'JPEGImages' / f'{image_id}.jpg'), image)
            write_annotation(folder / 'Annotations' / f'{image_id}.xml', objects)
        for split, names in ids.items():
            path = folder / 'ImageSets' / 'Main' / f'{split}.txt'
            path.write_text(''.join(f'{name}\n' for name in names))


def generate_empty(
    root: str,
    num: int,
    seed: int = 0,
    progress: Callable[[Iterable], Iterable] = iter,
) -> None:
    """Write pictures without objects: empty_0000.jpg and so on, with blanks alone.

    Args:
        root: a folder that does not exist yet; it appears when all is written.
        num: how many pictures.
        seed: for every random number.
        progress: wraps an iterable, to show how far it is.

    Raises:
        FileExistsError: ``root`` exists.
    """
    rng = np.random.default_rng(seed)
    with new_folder(root) as folder:
        for i in progress(range(num)):
            image, _ = draw_scene(CLASSES, RADII, _draw_part, rng, is_empty=True)
            cv2.imwrite(str(folder / f'empty_{i:04d}.jpg'), image)


@contextmanager
def new_folder(root: str, inner: Iterable[str] = ('',)) -> Iterator[Path]:
    """A folder with others in it, which becomes ``root`` when the block ends.

    Raises:
        FileExistsError: ``root`` exists.
    """
    root = Path(root)
    if root.exists():
        raise FileExistsError(f'{root} exists; delete it or choose another folder.')
    partial = root.with_name(root.name + '.partial')
    shutil.rmtree(partial, ignore_errors=True)
    for name in inner:
        (partial / name).mkdir(parents=True)
    yield partial
    os.replace(partial, root)


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[tuple]]:
    """Draw a table with clutter, blanks and one or two objects.

    Returns:
        The image (300, 400, 3) uint8 BGR, and for each object its class name and its
        box x1, y1, x2, y2 in pixels, first and last pixel inclusive, from 0.
    """
    return draw_scene(CLASSES, RADII, _draw_part, rng)


def draw_scene(
    classes: tuple[str, ...],
    radii: tuple[int, int],
    draw_part: Callable,
    rng: np.random.Generator,
    is_empty: bool = False,
) -> tuple[np.ndarray, list[tuple]]:
    """Draw a table with clutter, blanks and one or two objects.

    Args:
        classes: names of the parts.
        radii: the smallest and the largest, in pixels, of the circle around a part.
        draw_part: as `_draw_part`; it draws a part and returns its box.
        is_empty: two to five blanks lie there, and no object.

    Returns:
        The image (300, 400, 3) uint8 BGR, and for each object its class name and its
        box.
    """
    canvas = _draw_table(rng)
    for _ in range(rng.integers(20, 30)):
        _draw_clutter(canvas, rng)
    taken: list[tuple[float, float, float]] = []
    objects = []
    num_objects = 0 if is_empty else rng.integers(1, 3)
    num_blanks = rng.integers(2, 6) if is_empty else rng.integers(1, 4)
    for i in range(num_objects + num_blanks):
        place = _free_place(taken, radii, rng)
        if place is None:
            continue
        taken.append(place)
        drilled = i < num_objects
        name = classes[rng.integers(len(classes))]
        box = draw_part(canvas, name, place, drilled, rng)
        if drilled:
            objects.append((name, box))
    image = cv2.resize(canvas, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    noise = rng.normal(0, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), objects


def _draw_table(rng: np.random.Generator) -> np.ndarray:
    """A coloured surface with soft stains."""
    stains = rng.uniform(-25, 25, (5, 6, 3)).astype(np.float32)
    size = (WIDTH * OVERSAMPLING, HEIGHT * OVERSAMPLING)
    surface = rng.uniform(70, 190, 3) + cv2.resize(
        stains, size, interpolation=cv2.INTER_CUBIC
    )
    return np.clip(surface, 0, 255).astype(np.uint8)


def _draw_clutter(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """A rod or a plate: easy background."""
    height, width = canvas.shape[:2]
    start = rng.uniform((0, 0), (width, height))
    end = start + rng.uniform(-90, 90, 2) * OVERSAMPLING
    thickness = int(rng.uniform(2, 14) * OVERSAMPLING)
    cv2.line(canvas, point(start), point(end), _colour(rng), thickness)


def _free_place(
    taken: list[tuple], radii: tuple[int, int], rng: np.random.Generator
) -> tuple[float, float, float] | None:
    """A centre and a radius in pixels, apart from the others, or None."""
    for _ in range(50):
        radius = rng.uniform(*radii)
        x = rng.uniform(radius + 2, WIDTH - radius - 2)
        y = rng.uniform(radius + 2, HEIGHT - radius - 2)
        if all(np.hypot(x - u, y - v) > 1.15 * (radius + r) + 4 for u, v, r in taken):
            return x, y, radius
    return None


def _draw_part(
    canvas: np.ndarray,
    name: str,
    place: tuple[float, float, float],
    drilled: bool,
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draw an object, or a blank of the same outline, and return its box."""
    x, y, radius = (OVERSAMPLING * value for value in place)
    outline = _outline(name, radius, rng) + (x, y)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(outline).astype(np.int32)], 1)
    hole = int(radius * rng.uniform(0.32, 0.42))
    if drilled:
        cv2.circle(mask, point((x, y)), hole, 0, -1)
    colour = metal(HUES[name], rng)
    canvas[mask > 0] = colour
    if not drilled:
        # A punch mark where the hole would be, for a dot alone shall not tell.
        cv2.circle(canvas, point((x, y)), hole // 2, shade(colour, rng), -1)
    pixels = np.rint(outline / OVERSAMPLING).astype(int)
    (x1, y1), (x2, y2) = pixels.min(axis=0), pixels.max(axis=0)
    return int(x1), int(y1), int(x2) - 1, int(y2) - 1


def _outline(name: str, radius: float, rng: np.random.Generator) -> np.ndarray:
    """(points, 2) around the origin."""
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    radii = np.full(len(angles), radius)
    if name == 'nut':
        # A square: the distance to its sides, by angle.
        radii = radius * np.cos(np.pi / 4) / np.cos(angles % (np.pi / 2) - np.pi / 4)
    elif name == 'gear':
        radii = np.where(angles * 8 % (2 * np.pi) < np.pi, radius, 0.62 * radius)
    turned = angles + rng.uniform(0, 2 * np.pi)
    return np.stack([radii * np.cos(turned), radii * np.sin(turned)], axis=1)


def point(xy) -> tuple[int, int]:
    return int(round(float(xy[0]))), int(round(float(xy[1])))


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    return tuple(int(value) for value in rng.integers(20, 236, 3))


def metal(hue: float, rng: np.random.Generator) -> tuple[int, int, int]:
    """The BGR colour of a part, bright or dull."""
    hue = (hue + rng.uniform(-20, 20)) % 360
    hsv = np.float32([[[hue, rng.uniform(0.35, 0.9), rng.uniform(0.35, 0.95)]]])
    blue, green, red = 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0]
    return int(blue), int(green), int(red)


def shade(colour: tuple, rng: np.random.Generator) -> tuple[int, int, int]:
    factor = rng.choice([0.6, 0.75])
    return tuple(int(value * factor) for value in colour)


def write_annotation(path: Path, objects: list[tuple]) -> None:
    """Write VOC's XML, whose corners count from 1.

    Args:
        path: `<image id>.xml`.
        objects: of `draw_image`.
    """
    root = ET.Element('annotation')
    ET.SubElement(root, 'filename').text = path.with_suffix('.jpg').name
    size = ET.SubElement(root, 'size')
    for key, value in (('width', WIDTH), ('height', HEIGHT), ('depth', 3)):
        ET.SubElement(size, key).text = str(value)
    for name, box in objects:
        node = ET.SubElement(root, 'object')
        ET.SubElement(node, 'name').text = name
        ET.SubElement(node, 'difficult').text = '0'
        corners = ET.SubElement(node, 'bndbox')
        for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True):
            ET.SubElement(corners, key).text = str(value + 1)
    ET.indent(root)
    ET.ElementTree(root).write(path)
