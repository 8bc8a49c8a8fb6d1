"""MMRotate's RoI heads, each built alone and run with a sampler, as those of
MMDetection are in `shipped_heads.py`.

MMRotate 1.x or onedl-mmrotate must be installed (docs/install.md). docs/detectors.md
shows what comes out. This command, run in the folder tests, writes its table anew:

    python -m support.rotated_heads
"""

import functools
import re
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from textwrap import fill

from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import ConfigDict
from tqdm import tqdm

from support.rotated_boxes import make_rotated_samples
from support.shipped_heads import (
    OURS,
    PAGE,
    THEIRS,
    cells_of,
    read_model,
    shrink,
    try_config,
)

HAS_MMROTATE = find_spec('mmrotate') is not None
SCOPE = 'mmrotate'
TABLE = '| config of MMRotate |'


def rotated_configs() -> Path:
    return Path(find_spec('mmrotate').origin).resolve().parent / '.mim' / 'configs'


def rotated_heads() -> dict[str, int]:
    """Every config that writes a RoI head down, and how many configs have the head from
    it, itself counted."""
    heads = Counter()
    for path in rotated_configs().rglob('*.py'):
        # Three configs inherit a file that does not exist.
        while path.is_file() and 'roi_head' not in path.read_text():
            bases = re.findall(r"^_base_ = '(.*)'", path.read_text(), re.M)
            path = path.parent / bases[0] if bases else Path()
        if path.is_file():
            heads[path.resolve().relative_to(rotated_configs()).as_posix()] += 1
    return dict(sorted(heads.items()))


def small_rotated_head(config_file: str, sampler_type: str) -> tuple[dict, Callable]:
    """The config of a small head, and what makes images for it.

    ReDet's RiRoIAlignRotated has no CPU version; RoIAlignRotated, which does not turn
    the channels too, stands in for it.
    """
    from mmrotate.structures.bbox import QuadriBoxes, RotatedBoxes

    model = read_model(config_file, rotated_configs())
    roi_head, rcnn = model.roi_head, model.train_cfg.rcnn
    shrink(roi_head)
    extractors = as_list(roi_head.bbox_roi_extractor)
    for extractor in extractors:
        if extractor.roi_layer.type == 'RiRoIAlignRotated':
            extractor.roi_layer = ConfigDict(
                type='RoIAlignRotated', out_size=7, sample_num=2, clockwise=True
            )
    for stage in as_list(rcnn):
        stage.sampler.type = sampler_type
    is_rotated = extractors[0].type == 'RotatedSingleRoIExtractor'
    is_gliding = as_list(roi_head.bbox_head)[0].type == 'GVBBoxHead'
    make_samples = functools.partial(
        make_rotated_samples,
        RotatedBoxes if is_rotated else HorizontalBoxes,
        QuadriBoxes if is_gliding else RotatedBoxes,
    )
    return dict(roi_head, train_cfg=rcnn), make_samples


def small_rotated_model(config_file: str) -> ConfigDict:
    """The config of a whole detector with narrow layers and our sampler."""
    model = read_model(config_file, rotated_configs())
    del model.data_preprocessor  # the images here are tensors
    rcnn = model.train_cfg.rcnn
    model.roi_head, _ = small_rotated_head(config_file, OURS)
    shrink(model.rpn_head)
    shrink(model.neck)
    model.backbone.init_cfg = None
    if model.backbone.type == 'mmdet.ResNet':
        model.backbone.update(depth=18, base_channels=8)
        model.neck.in_channels = [8, 16, 32, 64]
    else:  # ReDet's, whose width is fixed
        model.backbone.update(depth=18)
        model.neck.in_channels = [64, 128, 256, 512]
    model.train_cfg.rpn_proposal.update(nms_pre=60, max_per_img=40)
    for stage in as_list(rcnn):
        stage.sampler.update(type=OURS, num=8)
    del model.roi_head['train_cfg']
    return model


def as_list(part) -> list:
    return part if isinstance(part, list) else [part]


def try_rotated(config_file: str, num_configs: int) -> str:
    """A row of the table."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for sampler_type in (OURS, THEIRS):
            config, make_samples = small_rotated_head(config_file, sampler_type)
            found.append(try_config(config, sampler_type, make_samples, SCOPE)[0])
    model = read_model(config_file, rotated_configs())
    head = model.roi_head.type.rpartition('.')[2]
    ours, theirs = found
    return f'| `{config_file}` | {num_configs} | {head} | {ours} | {theirs} |'


def with_rotated_table(page: str, rows: list[str]) -> str:
    """The page with these rows, and with their counts above them."""
    _, counts, _, ours, theirs = zip(*map(cells_of, rows), strict=True)
    summary = (
        f'MMRotate 1.x has {sum(map(int, counts))} configs with a RoI head that has a '
        f'sampler. {len(rows)} of them write the head down, and the others inherit it. '
        f'Of these {len(rows)} heads, `mmdet_ohem.OHEMSampler` works with '
        f"{ours.count('works')}, and MMDetection's own `OHEMSampler` with "
        f'{theirs.count("works")}.'
    )
    table = [
        f'{TABLE} configs | RoI head | `mmdet_ohem.OHEMSampler` | '
        '`mmdet.OHEMSampler` |',
        '|---|---|---|---|---|',
        *rows,
    ]
    page = re.sub(
        r'MMRotate 1.x has \d.*?(?=\n\n)',
        lambda _: fill(summary, 88),
        page,
        flags=re.S,
    )
    return re.sub(
        r'\| config of MMRotate \|.*?(?=\n\n)',
        lambda _: '\n'.join(table),
        page,
        flags=re.S,
    )


def main() -> None:
    rows = [try_rotated(*head) for head in tqdm(rotated_heads().items())]
    PAGE.write_text(with_rotated_table(PAGE.read_text(), rows))


if __name__ == '__main__':
    main()
