"""Means and deviations of the box targets of each class, over the training set.

Shapes:
    C: classes, P: foreground RoIs of an image, R: its proposals
"""

from collections.abc import Iterator

import torch
from mmengine.dataset import BaseDataset
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ohem.mining import find_candidates
from mmdet_ohem.models import ClasswiseVGGBBoxHead
from mmdet_ohem.proposals import LoadStoredProposals
from mmdet_ohem.registry import HOOKS

# A class whose targets spread less has but one box, or always the same.
SMALLEST_DEVIATION = 1e-6


@HOOKS.register_module()
class BoxTargetStatisticsHook(Hook):
    """Sets the statistics of a `ClasswiseVGGBBoxHead` before the first iteration.

    `box_target_statistics` computes them from the training set. A resumed training goes
    on with those in its checkpoint; one that starts from other weights (``load_from``)
    computes its own.
    """

    def before_train(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        head = getattr(getattr(model, 'roi_head', None), 'bbox_head', None)
        if not isinstance(head, ClasswiseVGGBBoxHead):
            raise TypeError(
                'default_hooks: BoxTargetStatisticsHook sets the statistics of a '
                'ClasswiseVGGBBoxHead, but model.roi_head.bbox_head is '
                f'{type(head).__name__}; remove the hook from this config.'
            )
        if runner.iter > 0:
            return
        dataset = runner.train_dataloader.dataset
        runner.logger.info(
            f'Statistics of the box targets of {len(dataset)} training images ...'
        )
        means, stds = box_target_statistics(dataset, model.roi_head)
        head.target_means.copy_(means)
        head.target_stds.copy_(stds)
        runner.logger.info(
            "The coder's box targets have, averaged over the classes, the means "
            f'{_rounded(means)} and the deviations {_rounded(stds)}.'
        )


def box_target_statistics(
    dataset: BaseDataset, roi_head: nn.Module
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the box targets of each class.

    As Fast R-CNN has it (`add_bbox_regression_targets` in lib/roi_data_layer/roidb.py):
    over the RoIs that the assigner makes foreground, ground truth among them, of all
    images and of their mirror images, before they are resized. Its boxes are one pixel
    wider than MMDetection's.

    Args:
        dataset: of the training, as built, or MMEngine's wrappers around several. Its
            pipeline has LoadStoredProposals.
        roi_head: with ``bbox_assigner``, and ``bbox_head`` with a coder.

    Returns:
        Two (C, 4) float64, in the units of the coder. Classes without foreground have 0
        and 1, and a deviation of nearly 0 is 1.

    Raises:
        ValueError: a data set has no stored proposals.
    """
    head = roi_head.bbox_head
    shape = (head.num_classes, head.bbox_coder.encode_size)
    counts = torch.zeros(shape[0], 1, dtype=torch.float64)
    sums = torch.zeros(shape, dtype=torch.float64)
    squares = torch.zeros(shape, dtype=torch.float64)
    for priors, gt_bboxes, labels in _foreground(dataset, roi_head):
        targets = head.bbox_coder.encode(priors, gt_bboxes).double()
        counts.index_add_(0, labels, torch.ones(len(labels), 1, dtype=torch.float64))
        sums.index_add_(0, labels, targets)
        squares.index_add_(0, labels, targets**2)
    counts = counts.clamp(min=1)
    means = sums / counts
    stds = (squares / counts - means**2).clamp(min=0).sqrt()
    return means, stds.where(stds > SMALLEST_DEVIATION, 1.0)


def _foreground(
    dataset: BaseDataset, roi_head: nn.Module
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each image and of its mirror image: foreground RoIs (P, 4), their ground-truth
    boxes (P, 4) and labels (P,)."""
    for part in _inner_datasets(dataset):
        load_proposals = _proposal_step(part)
        for index in range(len(part)):
            info = part.get_data_info(index)
            size = (info['height'], info['width'])
            found = load_proposals(dict(info, ori_shape=size, img_shape=size))
            assigned = InstanceData(priors=torch.from_numpy(found['proposals']))
            objects, ignored = _ground_truth(info['instances'])
            result = roi_head.bbox_assigner.assign(assigned, objects, ignored)
            foreground = find_candidates(result, assigned, objects).sampling_result()
            boxes = foreground.pos_priors, foreground.pos_gt_bboxes
            yield *boxes, foreground.pos_gt_labels
            mirrored = (_mirrored(each, info['width']) for each in boxes)
            yield *mirrored, foreground.pos_gt_labels


def _inner_datasets(dataset) -> Iterator[BaseDataset]:
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from _inner_datasets(part)
    elif hasattr(dataset, 'dataset'):
        yield from _inner_datasets(dataset.dataset)
    else:
        yield dataset


def _proposal_step(dataset: BaseDataset) -> LoadStoredProposals:
    for step in dataset.pipeline.transforms:
        if isinstance(step, LoadStoredProposals):
            return step
    raise ValueError(
        'default_hooks: BoxTargetStatisticsHook reads stored proposals, and '
        'train_dataloader.dataset.pipeline has no mmdet_ohem.LoadStoredProposals: '
        'remove the hook, or train on stored proposals.'
    )


def _ground_truth(instances: list[dict]) -> tuple[InstanceData, InstanceData]:
    """Those that count as objects, and those that the data set says to ignore."""
    kinds = []
    for flag in (0, 1):
        chosen = [one for one in instances if one['ignore_flag'] == flag]
        boxes = torch.tensor([one['bbox'] for one in chosen], dtype=torch.float32)
        labels = torch.tensor([one['bbox_label'] for one in chosen], dtype=torch.int64)
        kinds.append(InstanceData(bboxes=boxes.reshape(-1, 4), labels=labels))
    return tuple(kinds)


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.mean(dim=0).tolist()]
