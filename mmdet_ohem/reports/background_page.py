"""The page of a background set: a pool may hold objects that somebody forgot."""

import html
import os
from itertools import islice
from pathlib import Path

from mmdet_ohem.datasets import STRUCK_OFF, read_background, read_made_by
from mmdet_ohem.reports.hardest_images import BACKGROUND, Hard
from mmdet_ohem.reports.hardest_page import STYLE, thumbnail
from mmdet_ohem.whole_file import whole_file


def write_background_page(path: str | os.PathLike, num: int = 200) -> Path:
    """Write background.html beside a background set, with its first pictures.

    The page holds its thumbnails and asks no other file or address.

    Args:
        path: of the set.
        num: pictures that are shown, hardest first.

    Returns:
        The page.

    Raises:
        ValueError: the set is damaged, or a picture of it cannot be read.
    """
    path = Path(path)
    made_by = read_made_by(path)
    shown = min(num, made_by['images'])
    struck_off = html.escape(str(path.parent / STRUCK_OFF))
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        f'<title>Background</title><style>{STYLE}</style></head><body>',
        '<h1>What the detector takes for objects</h1>',
        f'<p>{made_by["false_positives"]} boxes of score {made_by["score_thr"]:g} or '
        f'more in {made_by["images"]} of {made_by["pictures"]} pictures that are said '
        f'to hold no object, surest first. The first {shown} pictures are shown.</p>',
        '<p><b>Is it an object after all?</b> Then copy its name into the text file '
        f'<code>{struck_off}</code>, one name a line, and it stays out of training '
        'from then on. The name of a box takes that part out of its picture, which is '
        'painted over; the name of a picture takes the whole picture out.</p>',
        '<table><tr><th></th><th></th><th>the network says</th><th>name of the box'
        '</th><th>name of the picture</th></tr>',
    ]
    for rank, image in enumerate(islice(read_background(path), num), start=1):
        for box, label, score, name in zip(
            image.boxes, image.labels, image.scores, image.names, strict=True
        ):
            hard = Hard(image.img_id, image.file, [], box, BACKGROUND)
            cells = [
                str(rank),
                f'<img alt="" src="data:image/jpeg;base64,{thumbnail(hard, [])}">',
                f'{html.escape(label)} {score:.2f}',
                f'<code>{html.escape(name)}</code>',
                f'<code>{html.escape(image.img_id)}</code>',
            ]
            row = ''.join(f'<td>{cell}</td>' for cell in cells)
            parts.append(f'<tr>{row}</tr>')
    page = path.with_suffix('.html')
    with whole_file(page) as partial:
        partial.write_text('\n'.join([*parts, '</table></body></html>\n']))
    return page
