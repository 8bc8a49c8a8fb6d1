"""MMDetection's shipped RoI heads, each built alone and run with a sampler.

Two configs have the same head when their `roi_head` and `train_cfg.rcnn` are equal.
Each distinct head is built without backbone, neck and RPN, and with narrow layers. The
features, the proposals and the ground truth are random. docs/detectors.md shows what
comes out. This command, run in the folder tests, writes its table anew:

    python -m support.shipped_heads

Shapes:
    A: proposals of an image, with its ground-truth boxes before them if those take part
    R: the RoIs among them that can be mined, foreground first
    P: the foreground among the R
"""

import copy
import functools
import json
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from unittest import mock

import mmdet
import numpy as np
import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, cat_boxes, get_box_tensor
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from tqdm import tqdm

from support.reference import iou, random_boxes, select_hard_rois
from support.rotated_boxes import polygon_iou

CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
PAGE = Path(__file__).parents[2] / 'docs' / 'detectors.md'
OURS, THEIRS = 'mmdet_ohem.OHEMSampler', 'mmdet.OHEMSampler'
NUM_CLASSES, SIDE, NUM = 5, 128, 16
NARROW = {64: 4, 128: 32, 256: 32, 512: 32, 1024: 64}  # channels
# Losses that have a row for each foreground RoI and none for background.
OF_FOREGROUND = {'loss_bbox', 'loss_cls_classes', 'loss_fix', 'loss_ratio'}
# With these losses, the loss of a RoI depends on the rest of the mini-batch.
COUNTING_LOSSES = {'SeesawLoss', 'GHMC', 'GHMR'}


# --------------------------------------------------------------------- the configs


def read_model(config_file: str, configs: Path = CONFIGS) -> ConfigDict:
    """The detector of a config; a tracker contains one."""
    return copy.deepcopy(_read_model(configs / config_file))


@functools.cache
def _read_model(path: Path) -> ConfigDict:
    config = Config.fromfile(path, import_custom_modules=False)
    model = config.get('model', ConfigDict())
    return model.get('detector', model)


@contextmanager
def each_file_read_once() -> Iterator[None]:
    """Most of the configs inherit the same few files."""
    read = functools.cache(Config._file2dict)

    def copied(*args, **kwargs) -> tuple[dict, str, dict]:
        found, text, variables = read(*args, **kwargs)
        return copy.deepcopy(found), text, dict(variables)

    with mock.patch.object(Config, '_file2dict', copied):
        yield


@each_file_read_once()
def shipped_heads() -> dict[str, int]:
    """Find all distinct heads.

    Returns:
        a config for each head, and how many configs share the head. The config is the
        one with the shortest name in the folder that holds most of them.
    """
    sharing = defaultdict(list)
    for path in CONFIGS.rglob('*.py'):
        config_file = path.relative_to(CONFIGS).as_posix()
        if config_file.startswith('_base_/'):
            continue
        try:
            model = read_model(config_file)
        except (FileNotFoundError, ModuleNotFoundError):
            # Four configs inherit a file that does not exist. Five need MMPretrain to
            # be read, and have no RoI head.
            continue
        if 'roi_head' in model:
            head = [model.roi_head, model.train_cfg.rcnn]
            sharing[json.dumps(head, sort_keys=True)].append(config_file)
    heads = {}
    for files in sharing.values():
        folders = Counter(file.split('/')[0] for file in files)
        first = min(files, key=lambda f: (-folders[f.split('/')[0]], len(f), f))
        heads[first] = len(files)
    return dict(sorted(heads.items()))


def shrink(config: ConfigDict) -> None:
    """Narrow layers, few classes, no weights to fetch, and one process."""
    for key, value in list(config.items()):
        if key == 'init_cfg':
            del config[key]
        elif key.endswith('channels') and isinstance(value, int):
            config[key] = NARROW.get(value, value)
        elif key.endswith('num_classes'):
            config[key] = min(value, NUM_CLASSES)
        elif value == 'MMSyncBN':
            config[key] = 'BN'  # which it is with one process, but it asks for several
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, dict):
                shrink(child)


def shrink_shared_head(roi_head: ConfigDict, rcnn: ConfigDict) -> None:
    """The head of C4 has a stage of a ResNet, whose width is fixed: 256 to 512."""
    roi_head.shared_head.depth = 18
    rcnn.mask_size = 4
    for name in ('bbox', 'mask'):
        if roi_head.get(f'{name}_roi_extractor'):
            roi_head[f'{name}_roi_extractor'].roi_layer.output_size = 4
            roi_head[f'{name}_roi_extractor'].out_channels = 256
        if roi_head.get(f'{name}_head'):
            roi_head[f'{name}_head'].update(roi_feat_size=2, in_channels=512)


def small_head(config_file: str, sampler_type: str | None) -> dict:
    """The config of a small head, with nothing else changed but the `type` of its
    sampler. With None, its own sampler stays."""
    model = read_model(config_file)
    roi_head, rcnn = model.roi_head, model.train_cfg.rcnn
    shrink(roi_head)
    if roi_head.get('shared_head'):
        shrink_shared_head(roi_head, rcnn)
    for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
        stage.sampler.type = sampler_type or stage.sampler.type
    return dict(roi_head, train_cfg=rcnn)


def build_head(config: dict, scope: str = 'mmdet') -> nn.Module:
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        return MODELS.build(config).train()


# ---------------------------------------------------------------------- the batches


def make_samples(seed: int, num_classes: int, num_gts: int = 3) -> list[DetDataSample]:
    """Two images: boxes with masks, a semantic map, and proposals near the boxes and
    anywhere."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(2):
        boxes = random_boxes(rng, num_gts, SIDE, SIDE).reshape(num_gts, 4)
        masks = np.zeros((num_gts, SIDE, SIDE), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(int), strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = 1
        shapes = ('img_shape', 'pad_shape', 'ori_shape', 'batch_input_shape')
        sample = DetDataSample(
            metainfo=dict(dict.fromkeys(shapes, (SIDE, SIDE)), scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=torch.from_numpy(boxes),
            labels=torch.from_numpy(rng.integers(num_classes, size=num_gts)),
            masks=BitmapMasks(masks, SIDE, SIDE),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        sample.gt_sem_seg = PixelData(
            sem_seg=torch.from_numpy(rng.integers(num_classes, size=(1, SIDE, SIDE)))
        )
        near = boxes.repeat(3, axis=0) + rng.uniform(-4, 4, (3 * num_gts, 4))
        proposals = np.concatenate([near, random_boxes(rng, 24, SIDE, SIDE)])
        sample.proposals = InstanceData(
            bboxes=torch.from_numpy(proposals.clip(0, SIDE).astype(np.float32))
        )
        samples.append(sample)
    return samples


def make_features(seed: int, channels: int, strides: list[int]) -> list[Tensor]:
    """Of two images, (2, channels, SIDE / stride, SIDE / stride) for each stride."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, channels, SIDE // stride, SIDE // stride, generator=generator)
        for stride in strides
    ]


def run_loss(
    roi_head: nn.Module,
    seed: int,
    num_gts: int = 3,
    make_samples: Callable = make_samples,
) -> dict[str, Tensor]:
    """What the head returns for a batch of two images."""
    bbox_head, extractor = roi_head.bbox_head, roi_head.bbox_roi_extractor
    if isinstance(bbox_head, nn.ModuleList):
        bbox_head, extractor = bbox_head[0], extractor[0]
    strides = list(extractor.featmap_strides)
    if strides[-1] == 32:
        strides.append(64)  # branches for the whole image take it too
    feats = make_features(seed, extractor.out_channels, strides)
    samples = make_samples(seed, bbox_head.num_classes, num_gts)
    return roi_head.loss(feats, [sample.proposals for sample in samples], samples)


def stages_of(roi_head: nn.Module) -> list[tuple]:
    """(stage or None, sampler, assigner) for each."""
    samplers, assigners = roi_head.bbox_sampler, roi_head.bbox_assigner
    if not isinstance(samplers, list):
        return [(None, samplers, assigners)]
    return list(zip(range(len(samplers)), samplers, assigners, strict=True))


def nothing_is_foreground(roi_head: nn.Module) -> None:
    for _, sampler, assigner in stages_of(roi_head):
        assigner.pos_iou_thr = assigner.neg_iou_thr = assigner.min_pos_iou = 2.0
        sampler.add_gt_as_proposals = False


# ------------------------------------------------------------ the plain computation


class PlainImage:
    """An image as a sampler is given it, and the head's own losses for its RoIs.

    Args:
        roi_head: of any type.
        stage: of a cascade, or None.
        add_gt: whether the ground-truth boxes are RoIs too.
        assign_result: of the proposals.
        proposals: ``priors``, x1, y1, x2, y2 in pixels, or boxes of another kind.
        gt: ``bboxes`` in the same coordinates, or another kind, ``labels``.
        feats: each (1, C, H, W).
    """

    def __init__(
        self,
        roi_head: nn.Module,
        stage: int | None,
        add_gt: bool,
        assign_result: AssignResult,
        proposals: InstanceData,
        gt: InstanceData,
        feats: list[Tensor],
    ) -> None:
        self.roi_head, self.stage, self.feats = roi_head, stage, feats
        boxes, num_gts = proposals.priors, len(gt.bboxes)
        gt_inds, labels = assign_result.gt_inds, assign_result.labels
        if add_gt:
            gts = gt.bboxes
            if isinstance(boxes, BaseBoxes):
                gts = gts.convert_to(type(boxes))
            boxes = cat_boxes([gts, boxes])
            gt_inds = torch.cat([torch.arange(num_gts) + 1, gt_inds])
            labels = torch.cat([gt.labels, labels])
        self.boxes, self.gt_bboxes = boxes, gt.bboxes
        self.assigned = AssignResult(num_gts, gt_inds, None, labels)
        self.numbers = numbers = get_box_tensor(boxes)
        has_area = (numbers[:, 2] > numbers[:, 0]) & (numbers[:, 3] > numbers[:, 1])
        if numbers.shape[1] == 5:
            has_area = (numbers[:, 2] > 0) & (numbers[:, 3] > 0)
        # int64, into the A
        self.foreground = torch.nonzero((gt_inds > 0) & has_area).flatten()
        self.background = torch.nonzero((gt_inds == 0) & has_area).flatten()
        self.order = torch.cat([self.foreground, self.background])

    @functools.cached_property
    def image_features(self) -> dict[str, Tensor]:
        features = {}
        if hasattr(self.roi_head, 'semantic_head'):
            features['semantic_feat'] = self.roi_head.semantic_head(self.feats)[1]
        if hasattr(self.roi_head, 'glbctx_head'):
            features['glbctx_feat'] = self.roi_head.glbctx_head(self.feats)[1]
        return features

    def training_losses(
        self, foreground: Tensor, background: Tensor
    ) -> dict[str, Tensor]:
        """What the head's own training pass gives for a mini-batch of these RoIs."""
        mini_batch = SamplingResult(
            foreground,
            background,
            self.boxes,
            self.gt_bboxes,
            self.assigned,
            torch.zeros(len(self.boxes), dtype=torch.uint8),
        )
        if self.stage is None:
            # Not PISA's, Dynamic's or Grid's own, which do more; but that of a head
            # with more outputs.
            own = type(self.roi_head)
            if own._bbox_forward is StandardRoIHead._bbox_forward:
                own = StandardRoIHead
            results = own.bbox_loss(self.roi_head, self.feats, [mini_batch])
        else:
            results = self.roi_head.bbox_loss(
                self.stage, self.feats, [mini_batch], **self.image_features
            )
        losses = results['loss_bbox']
        return {key: losses[key] for key in losses if 'loss' in key}

    def losses(self) -> Tensor:
        """(R,) float32, from one training pass whose losses stay unreduced."""
        num_pos, num_rois = len(self.foreground), len(self.order)
        total = torch.zeros(num_rois)
        if num_rois == 0:
            return total
        with evaluated(self.roi_head, reduction='none'):
            losses = self.training_losses(self.foreground, self.background)
        for key, loss in losses.items():
            if num_pos == 0 and not loss.any():
                continue  # heads write 'no box loss' in several shapes
            if len(loss) == 4 * num_rois:  # SABL: a row for each side of a box
                loss = loss.unflatten(0, (num_rois, 4)).mean(dim=1)
            of_foreground = key in OF_FOREGROUND
            rows = num_pos if of_foreground else num_rois
            total[:rows] += loss.reshape(rows, -1).sum(dim=1)
        return total

    def losses_alone(self) -> Tensor:
        """(R,) float32, each the reduced loss of a mini-batch of this RoI alone."""
        nothing = self.order[:0]
        mini_batches = [(roi, nothing) for roi in self.foreground[:, None]]
        mini_batches += [(nothing, roi) for roi in self.background[:, None]]
        with evaluated(self.roi_head):
            losses = [self.training_losses(*rois) for rois in mini_batches]
        return torch.tensor([sum(map(float, loss.values())) for loss in losses])

    @property
    def has_counting_loss(self) -> bool:
        bbox_head = self.roi_head.bbox_head
        if self.stage is not None:
            bbox_head = bbox_head[self.stage]
        names = {type(module).__name__ for module in bbox_head.modules()}
        return not names.isdisjoint(COUNTING_LOSSES)


@contextmanager
def evaluated(roi_head: nn.Module, reduction: str | None = None) -> Iterator[None]:
    """Eval mode without gradients, and all losses with another reduction if given."""
    modules = list(roi_head.modules())
    before = [(m, m.training, getattr(m, 'reduction', None)) for m in modules]
    buffers = [(buffer, buffer.clone()) for buffer in roi_head.buffers()]
    for module in modules:
        module.training = False
        if reduction is not None and hasattr(module, 'reduction'):
            module.reduction = reduction
    with torch.no_grad():
        yield
        for buffer, value in buffers:
            buffer.copy_(value)  # SeesawLoss counts in one
    for module, mode, own_reduction in before:
        module.training = mode
        if hasattr(module, 'reduction'):
            module.reduction = own_reduction


def state_of(roi_head: nn.Module) -> dict[str, Tensor]:
    tensors = {'random state': torch.get_rng_state()}
    for name, value in (*roi_head.named_parameters(), *roi_head.named_buffers()):
        tensors[name] = value.detach().clone()
        tensors[f'gradient of {name}'] = torch.zeros(0)
        if value.grad is not None:
            tensors[f'gradient of {name}'] = value.grad.clone()
    for name, module in roi_head.named_modules():
        tensors[f'mode of {name}'] = torch.tensor(module.training)
    return tensors


@dataclass
class Sampled:
    """One call of `sample`: how many RoIs could be mined, were mined, and how many of
    these are foreground."""

    num_rois: int
    num_mined: int
    num_pos: int


@contextmanager
def every_sample_checked(roi_head: nn.Module) -> Iterator[list[Sampled]]:
    """Compare every call of `sample` with a plain computation.

    The mined RoIs must be those of a plain NMS over the plain losses, and the call must
    leave the head as it was. In the first call of each sampler, the loss that ranks a
    RoI must be the head's own reduced loss of a mini-batch of this RoI alone, for every
    RoI.

    Yields:
        grows with each call.
    """
    sampled = []

    def checked(stage, sampler, sample, assign_result, proposals, gt, feats):
        image = PlainImage(
            roi_head,
            stage,
            sampler.add_gt_as_proposals,
            copy.deepcopy(assign_result),
            proposals,
            gt,
            feats,
        )
        hardest = select_hard_rois(
            image.losses().numpy(),
            image.numbers[image.order].numpy(),
            sampler.num,
            iou=polygon_iou if image.numbers.shape[1] == 5 else iou,
        )
        before = state_of(roi_head)
        returned = sample(assign_result, proposals, gt, feats=feats)
        for name, value in state_of(roi_head).items():
            assert torch.equal(value, before[name]), name
        result = returned[0] if isinstance(returned, tuple) else returned
        chosen = result.pos_inds.tolist() + result.neg_inds.tolist()
        assert sorted(chosen) == sorted(image.order[hardest].tolist())
        if sampler in unseen:
            unseen.remove(sampler)
            if not image.has_counting_loss:
                torch.testing.assert_close(
                    result.mining.losses, image.losses_alone(), rtol=1e-4, atol=1e-5
                )
        sampled.append(Sampled(len(image.order), len(chosen), len(result.pos_inds)))
        return returned

    unseen = [sampler for _, sampler, _ in stages_of(roi_head)]
    for stage, sampler, _ in stages_of(roi_head):
        sampler.sample = functools.partial(checked, stage, sampler, sampler.sample)
    try:
        yield sampled
    finally:
        for _, sampler, _ in stages_of(roi_head):
            del sampler.sample  # the method of the class shows again


# ------------------------------------------------------------------------ the sweep


def try_head(config_file: str, sampler_type: str) -> tuple[str, str]:
    """Run the loss of a head on three batches: with ground truth, without, and with
    background alone. What mmdet_ohem.OHEMSampler mines is checked.

    Returns:
        what the table says, and the message of mmdet_ohem.OHEMSampler if it gave one.

    Raises:
        AssertionError: mmdet_ohem.OHEMSampler mined other RoIs than the plain
            computation, or gave another loss.
    """
    config = small_head(config_file, sampler_type)
    return try_config(config, sampler_type)


def try_config(
    config: dict,
    sampler_type: str,
    make_samples: Callable = make_samples,
    scope: str = 'mmdet',
) -> tuple[str, str]:
    """`try_head` of a small head's config, with images of ``make_samples``."""
    try:
        roi_head = build_head(config, scope)
    except TypeError as error:
        if OURS in str(error):
            return 'refused', str(error)
        return 'when built: TypeError', ''
    for _, sampler, _ in stages_of(roi_head):
        sampler.num = NUM
    run = run_checked_loss if sampler_type == OURS else run_loss
    errors = []
    for seed, num_gts in enumerate((3, 0, 3)):
        if seed == 2:
            nothing_is_foreground(roi_head)
        try:
            with DefaultScope.overwrite_default_scope(scope):
                run(roi_head, seed, num_gts, make_samples)
            errors.append(None)
        except Exception as error:  # whatever MMDetection's own code runs into
            if sampler_type == OURS and isinstance(error, AssertionError):
                raise
            if 'implementation for device cpu' in str(error):
                return 'needs CUDA', ''
            errors.append(error)
    if not any(errors):
        return 'works', ''
    names = ', '.join(dict.fromkeys(type(error).__name__ for error in errors if error))
    message = next((str(error) for error in errors if OURS in str(error)), '')
    if errors[0] is None:
        return f'works with foreground; without it: {names}', message
    return f'fails: {names}', message


def run_checked_loss(
    roi_head: nn.Module,
    seed: int,
    num_gts: int,
    make_samples: Callable = make_samples,
) -> None:
    with every_sample_checked(roi_head) as sampled:
        losses = run_loss(roi_head, seed, num_gts, make_samples)
    for key, loss in losses.items():
        for part in loss if isinstance(loss, list) else [loss]:
            assert part.isfinite().all(), key
    assert sampled[0].num_rois > NUM
    assert all(0 < call.num_mined <= NUM for call in sampled)
    if seed == 0:
        assert any(0 < call.num_pos < call.num_mined for call in sampled)
    else:
        assert all(call.num_pos == 0 for call in sampled)


def try_both(config_file: str, num_configs: int) -> tuple[str, str]:
    """A row of the table, and the message of mmdet_ohem.OHEMSampler if it gave one."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ours, message = try_head(config_file, OURS)
        theirs, _ = try_head(config_file, THEIRS)
    roi_head = read_model(config_file).roi_head.type
    row = f'| `{config_file}` | {num_configs} | {roi_head} | {ours} | {theirs} |'
    return row, message


# ------------------------------------------------------------------------- the page


def rows_of(page: str, table: str = '| config |') -> list[str]:
    """The rows of the table whose first line starts so."""
    rows = page[page.index(table) :].partition('\n\n')[0].splitlines()
    return [row for row in rows if row.startswith('| `')]


def cells_of(row: str) -> list[str]:
    return row.strip('| ').replace('`', '').split(' | ')


def with_table(page: str, rows: list[str]) -> str:
    """The page with these rows, and with their counts above them."""
    _, counts, _, ours, theirs = zip(*map(cells_of, rows), strict=True)
    num_run = len(rows) - ours.count('needs CUDA')

    def number(cells: tuple[str, ...], start: str) -> int:
        return sum(cell.startswith(start) for cell in cells)

    summary = (
        f'MMDetection 3.3 ships {sum(map(int, counts))} configs with a RoI head that '
        f'has a sampler. They have {len(rows)} different heads. '
        f'{len(rows) - num_run} heads need CUDA and were not run. Of the other '
        f'{num_run}, `mmdet_ohem.OHEMSampler` works with {ours.count("works")}, and '
        f'with {number(ours, "works with")} more as long as the batch has foreground. '
        f"MMDetection's own `OHEMSampler` works with {theirs.count('works')}, and with "
        f'{number(theirs, "works with")} more as long as the batch has foreground.'
    )
    table = [
        '| config | configs | RoI head | `mmdet_ohem.OHEMSampler` | '
        '`mmdet.OHEMSampler` |',
        '|---|---|---|---|---|',
        *rows,
    ]
    page = re.sub(
        r'MMDetection 3.3 ships.*?(?=\n\n)', fill(summary, 88), page, flags=re.S
    )
    return re.sub(r'\| config \|.*?(?=\n\n)', '\n'.join(table), page, flags=re.S)


def main() -> None:
    rows = []
    for config_file, num_configs in tqdm(shipped_heads().items()):
        row, message = try_both(config_file, num_configs)
        rows.append(row)
        if message:
            tqdm.write(f'{config_file}: {message}')
    PAGE.write_text(with_table(PAGE.read_text(), rows))


if __name__ == '__main__':
    main()
