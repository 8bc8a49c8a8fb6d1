"""Write a report of the hardest images: a page to look at, and JSON and CSV."""

import base64
import csv
import html
import io
import json
import os
from dataclasses import asdict
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch

from mmdet_ohem.reports.hardest_images import Hard, Report
from mmdet_ohem.reports.scoring import FAR_FROM_OBJECTS
from mmdet_ohem.visualization import BACKGROUND, GROUND_TRUTH, corners_of
from mmdet_ohem.whole_file import whole_file

THUMBNAIL = 160  # longer side, px
SECTIONS = dict(
    boxes=(
        'Ground-truth boxes',
        'Hardest first: is the label wrong, is the box badly placed?',
    ),
    spots=(
        'Background taken for an object',
        f'IoU below {FAR_FROM_OBJECTS} with every ground-truth box: is a label '
        'missing?',
    ),
    images=('Images', 'By the mean loss of their mined RoIs.'),
)
COLUMNS = ('list', 'rank', 'img_id', 'label', 'says', 'score', 'loss', 'mined')
STYLE = """
body { font: 14px sans-serif; margin: 2em; color: #222; }
td, th { padding: 4px 12px 4px 0; text-align: left; }
h2 { margin-top: 2em; }
img { display: block; }
polyline { fill: none; stroke: #0072b2; stroke-width: 1.5; }
"""


def write_report(report: Report, folder: str | os.PathLike, num: int = 100) -> None:
    """Write hardest.html, hardest.json and hardest.csv.

    The page holds its thumbnails and asks no other file or address; it shows the first
    ``num`` of each list. The other two hold the whole lists.

    Raises:
        ValueError: an image cannot be read.
    """
    lists = {
        name: [dict(asdict(hard), loss=hard.loss) for hard in getattr(report, name)]
        for name in SECTIONS
    }
    texts = {
        'hardest.html': _page(report, num),
        'hardest.json': json.dumps(dict(checkpoints=report.checkpoints, **lists)),
        'hardest.csv': _table(lists),
    }
    for name, text in texts.items():
        with whole_file(Path(folder, name)) as partial:
            partial.write_text(text)


def _table(lists: dict[str, list[dict]]) -> str:
    """Boxes as x1, y1, x2, y2; as four corners, if some are turned."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    boxes = [entry['box'] for entries in lists.values() for entry in entries]
    numbers = ['x1', 'y1', 'x2', 'y2']
    is_turned = any(box is not None and len(box) != 4 for box in boxes)
    if is_turned:
        numbers += ['x3', 'y3', 'x4', 'y4']
    writer.writerow([*COLUMNS, *numbers, 'losses'])
    for name, entries in lists.items():
        for rank, entry in enumerate(entries, start=1):
            entry = dict(entry, list=name, rank=rank)
            losses = ' '.join(f'{loss:.4f}' for loss in entry['losses'])
            box = entry['box'] or [''] * len(numbers)
            if is_turned and entry['box'] is not None:
                box = _corners(box).ravel().round(1).tolist()
            writer.writerow([*(entry[key] for key in COLUMNS), *box, losses])
    return file.getvalue()


def _corners(box: list[float]) -> np.ndarray:
    """(4, 2) x, y in pixels of the image file."""
    return corners_of(torch.tensor([box], dtype=torch.float64))[0].numpy()


def _page(report: Report, num: int) -> str:
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<title>Hardest images</title><style>{STYLE}</style></head><body>',
        '<h1>What stays hard</h1>',
        f'<p>Losses at {len(report.checkpoints)} checkpoints of a training, from '
        f'{_name(report.checkpoints[0])} to {_name(report.checkpoints[-1])}; each list '
        'is ranked by their mean. All ground truth of the picture is green, the '
        'ground-truth box of the row thick; background is orange.</p>',
    ]
    for name, (title, help_text) in SECTIONS.items():
        entries = getattr(report, name)
        shown = entries[:num]
        parts.append(
            f'<h2>{title}</h2><p>{help_text} {len(entries)} in all, the first '
            f'{len(shown)} are shown.</p>'
        )
        parts.append(
            '<table><tr><th></th><th></th><th>label</th><th>the network says</th>'
            '<th>loss</th><th>loss over time</th><th>mined</th><th>image</th></tr>'
        )
        highest = max((loss for hard in shown for loss in hard.losses), default=1)
        for rank, hard in enumerate(shown, start=1):
            labelled = report.labelled.get(hard.img_path, [])
            picture = thumbnail(hard, labelled)
            parts.append(_row(rank, hard, picture, highest, len(report.checkpoints)))
        parts.append('</table>')
    return '\n'.join([*parts, '</body></html>\n'])


def _name(checkpoint: str) -> str:
    return html.escape(Path(checkpoint).name)


def _row(
    rank: int, hard: Hard, picture: str, highest: float, num_checkpoints: int
) -> str:
    says = mined = ''
    if hard.box is not None:
        says = f'{html.escape(hard.says)} {hard.score:.2f}'
        mined = f'{hard.mined} of {num_checkpoints}'
    cells = [
        str(rank),
        f'<img alt="" src="data:image/jpeg;base64,{picture}">',
        f'<b>{html.escape(hard.label)}</b>',
        says,
        f'{hard.loss:.2f}',
        _curve(hard.losses, highest),
        mined,
        html.escape(str(hard.img_id)),
    ]
    return '<tr>' + ''.join(f'<td>{cell}</td>' for cell in cells) + '</tr>'


def _curve(losses: list[float], highest: float) -> str:
    """Losses from 0 to the highest of the list, left to right."""
    xs = np.linspace(2, 118, len(losses)) if len(losses) > 1 else [60]
    ys = [30 - 28 * loss / max(highest, 1e-6) for loss in losses]
    points = ' '.join(f'{x:.0f},{y:.1f}' for x, y in zip(xs, ys, strict=True))
    values = ', '.join(f'{loss:.2f}' for loss in losses)
    return (
        '<svg width="120" height="32" role="img">'
        f'<title>{values}</title><polyline points="{points}"/></svg>'
    )


def thumbnail(hard: Hard, labelled: list[list[float]]) -> str:
    """The box with as much around it, and the labelled boxes of the image, as a JPEG in
    base64.

    Raises:
        ValueError: the image cannot be read.
    """
    try:
        image = mmcv.imread(hard.img_path)
    except OSError as error:
        raise ValueError(f'{hard.img_path} cannot be read: {error}.') from error
    if image is None:
        raise ValueError(f'{hard.img_path} cannot be read as an image: replace it.')
    height, width = image.shape[:2]
    corners = _corners(hard.box or [0, 0, width, height])
    (x1, y1), (x2, y2) = corners.min(axis=0), corners.max(axis=0)
    margin = 0 if hard.box is None else max(x2 - x1, y2 - y1) / 2
    left, top = int(max(x1 - margin, 0)), int(max(y1 - margin, 0))
    right, bottom = int(min(x2 + margin, width)), int(min(y2 + margin, height))
    crop = image[top : max(bottom, top + 1), left : max(right, left + 1)]
    zoom = THUMBNAIL / max(crop.shape[:2])
    size = [max(1, round(side * zoom)) for side in crop.shape[1::-1]]
    small = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)

    def draw(box: list[float], colour: tuple[int, int, int], thickness: int) -> None:
        corners = ((_corners(box) - [left, top]) * zoom).round().astype(np.int32)
        cv2.polylines(small, [corners], True, colour[::-1], thickness)

    for box in labelled:
        draw(box, GROUND_TRUTH, 1)
    if hard.box is not None:
        draw(hard.box, BACKGROUND if hard.label == 'background' else GROUND_TRUTH, 2)
    _, jpeg = cv2.imencode('.jpg', small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    return base64.b64encode(jpeg.tobytes()).decode()
