"""A small detector on random images, and a plain NumPy version of detecting with it:
one RoI after the other, one class after the other, in pixels of the original image."""

import functools

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate

from mmdet_ohem.proposals.store import write_store
from support.reference import iou, random_boxes
from support.tools import ROOT

register_all_modules()
SIZES = [(160, 120), (110, 150)]  # width and height of two images
STDS = np.array([0.1, 0.1, 0.2, 0.2])  # target_stds of the config
ROI_POOL = dict(
    type='mmdet_ohem.RoIPoolExtractor',
    output_size=5,
    out_channels=64,
    featmap_strides=[8],
)

PACK = dict(
    type='PackDetInputs',
    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
)


class Undecided(Exception):
    """The detector computes in float32 and may decide otherwise than float64 here."""


def draw_until_decided(test):
    """Run a test of random cases again, with its next seed, while it is undecided."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        for _ in range(20):
            try:
                return test(*args, **kwargs)
            except Undecided as reason:
                print('drawn again:', reason)
        raise AssertionError('20 random cases were too close to a threshold')

    return run


def check_apart(value: float, threshold: float) -> None:
    if abs(value - threshold) < 5e-5 * threshold:  # seen: an IoU off by 1e-6
        raise Undecided(f'{value} is too close to {threshold}')


def random_seed() -> int:
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print('seed', seed)
    return seed


def small_detector(seed: int, class_agnostic: bool = False, **roi_head):
    """The small config's detector with random weights and scores far apart."""
    torch.manual_seed(seed)
    model = Config.fromfile(ROOT / 'configs' / 'fast_rcnn_small_lookalikes.py').model
    for key, value in roi_head.items():  # update would merge the extractors
        model.roi_head[key] = value
    model.roi_head.bbox_head.reg_class_agnostic = class_agnostic
    detector = MODELS.build(model).eval()
    head = detector.roi_head.bbox_head
    with torch.no_grad():
        for layer, std in ((head.fc_cls, 0.7), (head.fc_reg, 0.3)):
            layer.weight.normal_(std=std)
            # The features are positive, and no class or side shall always win.
            layer.weight -= layer.weight.mean(dim=1, keepdim=True)
        boxes = random_boxes(np.random.default_rng(seed), 50, 160, 120)
        rois = torch.cat([torch.zeros(50, 1), torch.from_numpy(boxes)], dim=1)
        features = detector.extract_feat(torch.randn(1, 3, 120, 160))
        scores = detector.roi_head._bbox_forward(features, rois)['cls_score']
        head.fc_cls.bias -= scores.mean(dim=0)
    return detector


def batch(folder, seed: int, scales: list[tuple]):
    """Two random images, each at all scales, as the data loader of `--tta` has them,
    and their proposals in original coordinates."""
    rng = np.random.default_rng(seed)
    proposals = {str(i): random_boxes(rng, 25, *size) for i, size in enumerate(SIZES)}
    store = folder / f'store{seed}'
    if not store.exists():
        records = [(i, proposals[i], SIZES[int(i)]) for i in proposals]
        write_store(store, records, source='random')
    resize = [dict(type='Resize', scale=scale, keep_ratio=True) for scale in scales]
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(store))
    pipeline = Compose([dict(type='TestTimeAug', transforms=[resize, [load], [PACK]])])
    data = [
        pipeline(
            dict(
                img=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
                img_id=str(i),
                img_path=f'{i}.jpg',
                img_shape=(height, width),
                ori_shape=(height, width),
            )
        )
        for i, (width, height) in enumerate(SIZES)
    ]
    return pseudo_collate(data), list(proposals.values())


def head_of(detector, data: dict, image: int, roi_area: float):
    """What the detector's head says of one box of an image, at the scale that suits."""
    views = [
        detector.data_preprocessor(dict(inputs=inputs, data_samples=samples))
        for inputs, samples in zip(data['inputs'], data['data_samples'], strict=True)
    ]
    features = [detector.extract_feat(view['inputs']) for view in views]
    factors = [view['data_samples'][image].scale_factor for view in views]
    width, height = SIZES[image]
    extractor, bbox_head = (
        detector.roi_head.bbox_roi_extractor,
        detector.roi_head.bbox_head,
    )
    extractor = getattr(extractor, 'extractor', extractor)

    def head(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (C + 1,) and a box (C, 4) or (1, 4) for each class."""
        areas = [(box[2] - box[0]) * fx * (box[3] - box[1]) * fy for fx, fy in factors]
        scale = min(range(len(areas)), key=lambda s: abs(areas[s] - roi_area))
        fx, fy = factors[scale]
        roi = torch.tensor([[image, *(box * [fx, fy, fx, fy])]], dtype=torch.float32)
        with torch.no_grad():
            logits, deltas = bbox_head(extractor(features[scale][:1], roi))
        exponentials = np.exp(logits[0].double().numpy())
        boxes = [
            decode(box, delta, width, height)
            for delta in deltas[0].double().numpy().reshape(-1, 4)
        ]
        return exponentials / exponentials.sum(), np.array(boxes)

    return head


def decode(box, delta, width, height) -> np.ndarray:
    """Fast R-CNN's deltas, clipped to the image."""
    dx, dy, dw, dh = delta * STDS
    limit = np.log(1000 / 16)  # MMDetection's wh_ratio_clip
    dw, dh = np.clip([dw, dh], -limit, limit)
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = (box[0] + box[2]) / 2 + dx * w, (box[1] + box[3]) / 2 + dy * h
    w, h = w * np.exp(dw), h * np.exp(dh)
    corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    return np.clip(corners, 0, [width, height, width, height])


def detect(
    head,
    proposals: np.ndarray,
    score_thr=0.05,
    rerun_score_thr=None,
    pool_score_thr=0.05,
):
    """Detections (label, score, box) by falling score; with iterative boxes and voting
    if there is a `rerun_score_thr`. Raises Undecided."""
    pool = []
    for proposal in proposals.astype(float):
        scores, boxes = head(proposal)
        for label, score in enumerate(scores[:-1]):
            pool.append((label, score, boxes[label % len(boxes)]))
    if rerun_score_thr is not None:
        for label, score, box in list(pool):
            check_apart(score, rerun_score_thr)
            if score > rerun_score_thr:
                scores, boxes = head(box)
                pool.append((label, scores[label], boxes[label % len(boxes)]))
    for _, score, _ in pool:
        for threshold in (pool_score_thr, score_thr):
            check_apart(score, threshold)
    voters = [entry for entry in pool if entry[1] > pool_score_thr]
    pool = [entry for entry in pool if entry[1] > score_thr]
    kept = []
    for label, score, box in sorted(pool, key=lambda entry: -entry[1]):
        rivals = [k for k in kept if k[0] == label]
        overlaps = [iou(box, k[2]) for k in rivals]
        for overlap in overlaps:
            check_apart(overlap, 0.3)
        if all(overlap <= 0.3 for overlap in overlaps):
            kept.append((label, score, box))
    if rerun_score_thr is None:
        return kept
    return [(label, score, vote(label, box, voters)) for label, score, box in kept]


def vote(label: int, box: np.ndarray, pool: list[tuple]) -> np.ndarray:
    """The mean, weighted by score, of the boxes in the pool that overlap by 0.5.
    Raises Undecided."""
    weights, boxes = [], []
    for other_label, score, other in pool:
        if other_label != label:
            continue
        overlap = iou(box, other)
        check_apart(overlap, 0.5)
        if overlap >= 0.5:
            weights.append(score)
            boxes.append(other)
    return np.average(boxes, axis=0, weights=weights) if boxes else box


def assert_same_detections(instances, expected: list[tuple]) -> None:
    """Detections with scores within 1e-4 of each other may stand in any order."""
    assert len(instances) == len(expected) > 3
    np.testing.assert_allclose(instances.scores, [s for _, s, _ in expected], atol=1e-4)
    found = list(
        zip(
            instances.labels.tolist(),
            instances.scores.tolist(),
            instances.bboxes.tolist(),
            strict=True,
        )
    )
    for label, score, box in expected:
        same = [
            one
            for one in found
            if one[0] == label
            and abs(one[1] - score) <= 1e-4
            and np.allclose(one[2], box, atol=2e-2)
        ]
        assert same, f'no detection is {label, score, box}; left are {found}'
        found.remove(same[0])
