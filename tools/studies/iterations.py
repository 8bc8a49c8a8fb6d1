"""Time and memory of training iterations, several configs in turn in one run.

Each config has a process of its own, which keeps its model; the processes of a group
take turns, one iteration each, so that a machine whose speed drifts treats all alike.

Shapes:
    R: proposals of an image
"""

import copy
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
from matplotlib.figure import Figure
from mmcv.transforms import Compose
from mmdet.models.task_modules.samplers import OHEMSampler as MMDetOHEMSampler
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.structures import InstanceData
from torch import nn

from mmdet_ohem.compare import set_sampler
from mmdet_ohem.config import as_list, inner_datasets, is_type, type_name
from mmdet_ohem.datasets import draw_image, image_size, list_images
from mmdet_ohem.mining import OHEMSampler, select_hard_rois
from mmdet_ohem.proposals import ProposalStore
from mmdet_ohem.visualization import save_figure

STAGES = (
    'conv forward',
    'assigner',
    'read-only pooling',
    'read-only head',
    'read-only loss',
    'NMS and top B',
    'training head',
    'backward and rest',
)
# The stages of a sampler, from proposals and ground truth to chosen RoIs.
SAMPLER_STAGES = STAGES[2:6]
NUM_GTS = 4
# Iterations that are not counted. A GPU's first ones choose convolution algorithms,
# load kernels and fill the allocator's cache.
WARM_UP = dict(cpu=1, cuda=3)


@dataclass
class Contender:
    """A config in the benchmark.

    Args:
        name: in the tables.
        config: a config of a two-stage detector.
        group: contenders of one group take turns and are held against its first.
    """

    name: str
    config: Config
    group: str
    seconds: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def is_mmdets_ohem(self) -> bool:
        sampler = as_list(self.config.model.train_cfg.rcnn)[0].sampler
        return is_type(sampler, MMDetOHEMSampler)

    def to_dict(self) -> dict:
        """For JSON."""
        names = ('name', 'group', 'seconds', 'stages', 'peak_bytes')
        return {name: getattr(self, name) for name in names}

    def stage_seconds(self, *names: str) -> float:
        """Median over the rounds of the sum of some stages."""
        return statistics.median(
            sum(stages.get(name, 0) for name in names) for stages in self.stages
        )


def run(
    contenders: list[Contender],
    batch_of: Callable[[Config], dict],
    rounds: int,
    device: str,
) -> Iterator[Contender]:
    """Fill in seconds, stages and peak memory of each contender.

    Args:
        batch_of: makes from a config what its data loader would give.
        rounds: counted iterations, after those of `WARM_UP`.
        device: 'cpu' or 'cuda'.

    Yields:
        Each contender after each of its iterations, for a progress bar.
    """
    # Group after group: six processes with VGG16 would need the memory of six.
    for group in dict.fromkeys(contender.group for contender in contenders):
        rivals = [c for c in contenders if c.group == group]
        yield from _run_group(rivals, batch_of, rounds, device)


def _run_group(
    contenders: list[Contender],
    batch_of: Callable[[Config], dict],
    rounds: int,
    device: str,
) -> Iterator[Contender]:
    context = torch.multiprocessing.get_context('spawn')
    workers = []
    try:
        for contender in contenders:
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(theirs, contender.config, batch_of, device),
                daemon=True,
            )
            process.start()
            theirs.close()
            workers.append((contender, process, ours))
        for turn in range(WARM_UP[device] + rounds):
            for contender, _, connection in workers:
                try:
                    connection.send('iterate')
                    seconds, stages, contender.peak_bytes = connection.recv()
                except (EOFError, OSError) as error:
                    raise RuntimeError(
                        f'The process of {contender.name} ended before its time (out '
                        'of memory?); what it had to say stands above.'
                    ) from error
                if turn >= WARM_UP[device]:
                    contender.seconds.append(seconds)
                    contender.stages.append(stages)
                yield contender
    finally:
        for _, process, _ in workers:
            process.kill()
        for _, process, _ in workers:
            process.join()  # whatever is timed next has the device to itself


def _serve(
    connection: Connection,
    config: Config,
    batch_of: Callable[[Config], dict],
    device: str,
) -> None:
    """Train an iteration whenever asked to, in a process of its own."""
    # What MMEngine says of every layer would run into the parent's bar.
    MMLogger.get_current_instance().setLevel('WARNING')
    torch.manual_seed(0)
    batch = batch_of(config)
    detector = MODELS.build(ConfigDict(_without_weights(config.model)))
    detector.init_weights()
    detector.to(device).train()
    optim_wrapper = build_optim_wrapper(detector, config.optim_wrapper)
    while connection.recv() == 'iterate':
        clock = StageClock(device)
        if device == 'cuda':  # the clock has to wait for the device at every stage
            seconds = _iterate(detector, optim_wrapper, batch, device)
        with clock.watching(detector):
            watched_seconds = _iterate(detector, optim_wrapper, batch, device)
        if device == 'cpu':
            seconds = watched_seconds
        connection.send((seconds, clock.seconds, _peak_bytes(device)))


def _without_weights(model):
    """The same network without pretrained weights: they cost no time and no memory."""
    if isinstance(model, dict):
        return {
            key: None if key == 'init_cfg' else _without_weights(value)
            for key, value in model.items()
        }
    if isinstance(model, (list, tuple)):
        return type(model)(_without_weights(part) for part in model)
    return model


def _stages(part) -> list:
    """A cascade has several of them."""
    return list(part) if isinstance(part, nn.ModuleList) else as_list(part)


def _iterate(detector: nn.Module, optim_wrapper, batch: dict, device: str) -> float:
    batch = copy.deepcopy(batch)  # Fast R-CNN takes the proposals out of it
    start = _now(device)
    detector.train_step(batch, optim_wrapper)
    return _now(device) - start


def _now(device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_bytes(device: str) -> int:
    """Of this process so far: on a GPU what PyTorch has allocated there, on a CPU the
    whole process."""
    if device == 'cuda':
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class StageClock:
    """Shares an iteration's time among its stages, each second to one of them."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._running = ['backward and rest']  # what no other stage claims

    @contextmanager
    def stage(self, name: str):
        self._charge()
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        now = _now(self.device)
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    @contextmanager
    def watching(self, detector: nn.Module):
        """Time the stages of a two-stage detector of MMDetection while open."""
        roi_head = detector.roi_head
        samplers = _stages(roi_head.bbox_sampler)
        ours = [sampler for sampler in samplers if isinstance(sampler, OHEMSampler)]
        # R-FCN's RoI head has convolutions that run once for a batch.
        has_maps = hasattr(roi_head, 'score_maps')
        with ExitStack() as stack:
            for owners, method, name in (
                (detector, 'extract_feat', 'conv forward'),
                *([(roi_head, 'score_maps', 'conv forward')] if has_maps else []),
                (roi_head, 'loss', 'training head'),
                (roi_head.bbox_assigner, 'assign', 'assigner'),
                (samplers, 'sample', 'read-only loss'),
                (ours, 'select', 'NMS and top B'),
                (roi_head.bbox_roi_extractor, 'forward', 'read-only pooling'),
                (roi_head.bbox_head, 'forward', 'read-only head'),
            ):
                for owner in _stages(owners):
                    stack.enter_context(self._timed(owner, method, name))
            self._since = _now(self.device)
            yield
            self._charge()

    @contextmanager
    def _timed(self, owner, method: str, name: str):
        original = getattr(owner, method)
        is_of_class = method not in vars(owner)

        def timed(*args, **kwargs):
            both = name in ('read-only pooling', 'read-only head')
            in_training = both and 'read-only loss' not in self._running
            with self.stage('training head' if in_training else name):
                return original(*args, **kwargs)

        setattr(owner, method, timed)
        try:
            yield
        finally:
            if is_of_class:
                delattr(owner, method)
            else:
                setattr(owner, method, original)


def paper_contenders(configs: Path) -> list[Contender]:
    """Both networks of the paper with random sampling (bg_lo 0.1), MMDetection's
    OHEMSampler and this one, from the folder ``configs`` of the repository."""
    contenders = []
    for network in ('vgg16', 'vggm'):
        for sampler in ('random', 'mmdet-ohem', 'ohem'):
            config = Config.fromfile(configs / f'fast_rcnn_{network}_voc07.py')
            set_sampler(config, sampler)
            contenders.append(Contender(f'{network}, {sampler}', config, network))
    return contenders


@dataclass
class BatchMaker:
    """Makes the images of an iteration, the same for all configs.

    Args:
        num_rois: R.
        images: folder of pictures; None: drawn ones of 1000 x 600.
        store: proposal store of the pictures; more boxes than it has are made from
            its own, moved by up to 8 pixels. None: random boxes.
    """

    num_rois: int
    images: str | None = None
    store: str | None = None

    def __call__(self, config: Config) -> dict:
        register_all_modules()
        rng = np.random.default_rng(0)
        np.random.seed(0)  # of several scales each config draws the same
        batch_size = config.train_dataloader.batch_size
        with tempfile.TemporaryDirectory() as folder:
            if self.images is None:
                paths = _draw_pictures(Path(folder), batch_size, rng)
            else:
                paths = list(list_images(self.images).values())
            paths = [paths[i % len(paths)] for i in range(batch_size)]
            return pseudo_collate([self._sample(config, path, rng) for path in paths])

    def _sample(self, config: Config, path: Path, rng: np.random.Generator) -> dict:
        width, height = image_size(path)
        boxes = np.zeros((0, 4), np.float32)
        if self.store is not None:
            boxes = np.array(ProposalStore(self.store).get(path.stem)[0])
        boxes = _resample(boxes, self.num_rois, width, height, rng)
        large = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= 32]
        gt_bboxes = large[rng.permutation(len(large))[:NUM_GTS]]

        classes = as_list(config.model.roi_head.bbox_head)[0].num_classes
        steps = next(inner_datasets(config.train_dataloader.dataset)).pipeline
        resizes = [step for step in steps if type_name(step).endswith('Resize')]
        resize = [*resizes, dict(type='Resize', scale=(1000, 600), keep_ratio=True)][0]
        results = dict(
            img_path=str(path),
            img_id=path.stem,
            instances=[
                dict(bbox=box, bbox_label=int(rng.integers(classes)), ignore_flag=0)
                for box in gt_bboxes.tolist()
            ],
        )
        pipeline = Compose(
            [
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                resize,
                dict(type='PackDetInputs'),
            ]
        )
        sample = pipeline(results)
        data_sample = sample['data_samples']
        scale = np.tile(data_sample.scale_factor, 2).astype(np.float32)
        data_sample.proposals = InstanceData(
            bboxes=torch.from_numpy(boxes * scale), scores=torch.zeros(len(boxes))
        )
        return sample


def _draw_pictures(folder: Path, count: int, rng: np.random.Generator) -> list[Path]:
    paths = []
    for i in range(count):
        image = cv2.resize(draw_image(rng)[0], (1000, 600))
        paths.append(folder / f'{i}.png')
        mmcv.imwrite(image, str(paths[-1]))
    return paths


def _resample(
    boxes: np.ndarray, count: int, width: int, height: int, rng: np.random.Generator
) -> np.ndarray:
    """(count, 4) float32: the first of `boxes`, and others when they do not do."""
    if len(boxes) == 0:
        corner = rng.uniform(0, 1, (count, 2)) * [width - 20, height - 20]
        # As many small boxes as large ones, as Selective Search has it.
        sides = np.exp(rng.uniform(np.log(16), np.log(height), (count, 2)))
        boxes = np.concatenate([corner, corner + sides], axis=1)
    elif len(boxes) < count:
        more = boxes[rng.integers(len(boxes), size=count - len(boxes))]
        moved = more + rng.uniform(-8, 8, more.shape)
        moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 4)
        boxes = np.concatenate([boxes, moved])
    limits = [width - 1, height - 1] * 2
    return np.clip(boxes[:count], 0, limits).astype(np.float32)


def tabulate(contenders: list[Contender]) -> str:
    """Two Markdown tables: what an iteration costs, and where its time goes."""
    lines = [
        "| config | s per iteration (lowest to highest) | / first | / MMDetection's "
        'OHEM | sampler, s | peak memory, MB | above first |',
        '|---|---|---|---|---|---|---|',
    ]
    for contender in contenders:
        rivals = [c for c in contenders if c.group == contender.group]
        first = rivals[0]
        theirs = next((c for c in rivals if c.is_mmdets_ohem), None)
        seconds = statistics.median(contender.seconds)
        against_theirs = (
            f'{_ratio(contender, theirs):.2f}' if theirs is not None else ''
        )
        megabytes = contender.peak_bytes / 1e6
        lines.append(
            f'| {contender.name} | {seconds:.3g} ({min(contender.seconds):.3g} to '
            f'{max(contender.seconds):.3g}) | {_ratio(contender, first):.2f} | '
            f'{against_theirs} | {contender.stage_seconds(*SAMPLER_STAGES):.3g} | '
            f'{megabytes:.0f} | {megabytes - first.peak_bytes / 1e6:+.0f} |'
        )
    lines += ['', f'| seconds of | {" | ".join(STAGES)} |', '|---' * 9 + '|']
    lines += [
        f'| {contender.name} | '
        + ' | '.join(f'{contender.stage_seconds(name):.3g}' for name in STAGES)
        + ' |'
        for contender in contenders
    ]
    return '\n'.join(lines)


def _ratio(contender: Contender, other: Contender) -> float:
    """Median of the ratios round by round, for the machine's speed drifts."""
    return statistics.median(
        a / b for a, b in zip(contender.seconds, other.seconds, strict=True)
    )


@dataclass
class SelectionTime:
    """NMS and top B of R RoIs alone, in seconds; `plain` is None beyond its limit."""

    num_rois: int
    seconds: float
    plain: float | None


def time_selection(
    device: str = 'cpu',
    sizes: tuple[int, ...] = (2000, 20_000, 200_000),
    limit: float = 60,
) -> Iterator[SelectionTime]:
    """`select_hard_rois` on random boxes of a 1000 x 600 image, against the release's
    loop in NumPy, which works through all boxes and takes the first B after that.

    Args:
        device: 'cpu' or 'cuda', where the boxes are; the plain version is of the CPU.
        limit: seconds after which the plain version is stopped.
    """
    for size in sizes:
        rng = np.random.default_rng(size)
        boxes = _resample(np.zeros((0, 4)), size, 1000, 600, rng)
        losses = rng.random(size).astype(np.float32)
        tensors = [torch.from_numpy(array).to(device) for array in (losses, boxes)]
        seconds = []
        for turn in range(WARM_UP[device] + 5):
            start = _now(device)
            mined = select_hard_rois(*tensors, num=64)
            if turn >= WARM_UP[device]:
                seconds.append(_now(device) - start)
        start = time.perf_counter()
        kept = _plain_nms(losses, boxes, 0.7, limit)
        plain = None if kept is None else time.perf_counter() - start
        if kept is not None and kept[:64] != mined.tolist():
            raise RuntimeError(f'The two choose differently of {size} RoIs.')
        yield SelectionTime(size, statistics.median(seconds), plain)


def _plain_nms(
    losses: np.ndarray, boxes: np.ndarray, nms_iou: float, limit: float
) -> list[int] | None:
    """The release's greedy NMS (py_cpu_nms.py), None if it takes longer than `limit`
    seconds; widths are x2 - x1 as everywhere here."""
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    order = np.argsort(-losses, kind='stable')
    kept, start = [], time.perf_counter()
    while len(order) > 0:
        if time.perf_counter() - start > limit:
            return None
        i, others = order[0], order[1:]
        kept.append(int(i))
        width = np.minimum(x2[i], x2[others]) - np.maximum(x1[i], x1[others])
        height = np.minimum(y2[i], y2[others]) - np.maximum(y1[i], y1[others])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        order = others[overlap / (areas[i] + areas[others] - overlap) <= nms_iou]
    return kept


def tabulate_selection(times: list[SelectionTime]) -> str:
    """A Markdown table."""
    lines = ['| RoIs | select_hard_rois, s | plain NumPy, s |', '|---|---|---|']
    lines += [
        f'| {row.num_rois} | {row.seconds:.4f} | '
        + (f'{row.plain:.3f} |' if row.plain is not None else 'stopped |')
        for row in times
    ]
    return '\n'.join(lines)


def plot_by_rois(sweep: dict[int, list[Contender]], path: Path) -> None:
    """Draw seconds and peak memory of an iteration against R.

    Args:
        sweep: R to the contenders as `run` left them, the same ones for every R.
        path: of the picture, .png.
    """
    figure = Figure(figsize=(10, 4), layout='constrained')
    time_axis, memory_axis = figure.subplots(1, 2)
    for index, contender in enumerate(next(iter(sweep.values()))):
        of_rois = [contenders[index] for contenders in sweep.values()]
        seconds = [statistics.median(c.seconds) for c in of_rois]
        time_axis.plot(list(sweep), seconds, 'o-', label=contender.name)
        memory = [c.peak_bytes / 1e9 for c in of_rois]
        memory_axis.plot(list(sweep), memory, 'o-', label=contender.name)
    time_axis.set(xlabel='RoIs of an image', ylabel='s per iteration', ylim=(0, None))
    memory_axis.set(xlabel='RoIs of an image', ylabel='peak memory, GB', ylim=(0, None))
    time_axis.legend()
    save_figure(figure, path)
