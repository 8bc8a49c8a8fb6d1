"""Look on while a RoI head samples: every RoI of an image, its loss, and the chosen."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmdet.models.task_modules import AssignResult, SamplingResult
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_ohem.mining.candidates import find_candidates
from mmdet_ohem.mining.ohem_sampler import Mining, OHEMSampler
from mmdet_ohem.mining.roi_losses import candidate_losses


def samplers_of(roi_head: nn.Module) -> list:
    """One sampler for each stage; a head without stages has one."""
    samplers = roi_head.bbox_sampler
    return list(samplers) if isinstance(samplers, (list, tuple)) else [samplers]


@contextmanager
def watched(roi_head: nn.Module) -> Iterator[list[list[Mining]]]:
    """Collect what is sampled while the context is open, and change nothing.

    OHEMSampler leaves its ranking on its results. For any other sampler all RoIs are
    scored in a read-only pass of their own, after it has sampled; ``Mining.mined``
    then holds what it chose, in order of falling loss.

    For every sampler all RoIs are the same: ones below the lower bound for background,
    which MMDetection's assigner leaves out of random sampling, are background too.

    Yields:
        For each stage of the head a list of the images, in the order of sampling.
    """
    samplers = samplers_of(roi_head)
    rankings: list[list[Mining]] = [[] for _ in samplers]
    has_stages = hasattr(roi_head, 'num_stages')
    for stage, sampler in enumerate(samplers):
        if 'sample' not in vars(sampler):  # else another watcher is here already
            sampler.sample = _observed(roi_head, sampler, stage if has_stages else None)
        sampler.sample.watchers.append(rankings[stage])
    try:
        yield rankings
    finally:
        for sampler, ranking in zip(samplers, rankings, strict=True):
            watchers = sampler.sample.watchers
            # Not list.remove, which takes lists that are equal for the same.
            watchers[:] = [watcher for watcher in watchers if watcher is not ranking]
            if not watchers:
                del sampler.sample  # the method of the class shows again


def _observed(roi_head: nn.Module, sampler, stage: int | None):
    sample = sampler.sample
    leaves_ranking = isinstance(sampler, OHEMSampler)

    def observed(
        assign_result: AssignResult,
        pred_instances: InstanceData,
        gt_instances: InstanceData,
        **kwargs,
    ):
        # Samplers add the ground truth to what they are given.
        before = None if leaves_ranking else copy.deepcopy(assign_result)
        returned = sample(assign_result, pred_instances, gt_instances, **kwargs)
        # PISA's sampler returns label weights too.
        result = returned[0] if isinstance(returned, tuple) else returned
        mining = (
            result.mining
            if leaves_ranking
            else _rank(
                roi_head,
                sampler,
                stage,
                before,
                pred_instances,
                gt_instances,
                kwargs['feats'],
                result,
            )
        )
        for watcher in observed.watchers:
            watcher.append(mining)
        return returned

    observed.watchers = []
    return observed


def _rank(
    roi_head: nn.Module,
    sampler,
    stage: int | None,
    assign_result: AssignResult,
    pred_instances: InstanceData,
    gt_instances: InstanceData,
    feats: list[Tensor],
    result: SamplingResult,
) -> Mining:
    assigner = roi_head.bbox_assigner
    _lift_background_bound(
        assigner if stage is None else assigner[stage], assign_result
    )
    candidates = find_candidates(
        assign_result,
        pred_instances,
        gt_instances,
        # Of MMDetection's samplers the pseudo samplers alone do not have it.
        getattr(sampler, 'add_gt_as_proposals', False),
    )
    losses = candidate_losses(roi_head, candidates, feats, stage)
    candidate_of = torch.full(
        (len(candidates.priors),), -1, dtype=torch.int64, device=losses.device
    )
    inds = torch.cat([candidates.pos_inds, candidates.neg_inds])
    candidate_of[inds] = torch.arange(len(inds), device=losses.device)
    chosen = candidate_of[torch.cat([result.pos_inds, result.neg_inds])]
    chosen = chosen[chosen >= 0]  # a RoI without area cannot be scored
    order = losses[chosen].argsort(descending=True, stable=True)
    return Mining(candidates, losses, chosen[order])


def _lift_background_bound(assigner, assign_result: AssignResult) -> None:
    """Make background of the RoIs that bg_lo of Fast R-CNN, the lower of the two
    numbers of ``neg_iou_thr``, leaves out."""
    bound = getattr(assigner, 'neg_iou_thr', 0)
    if isinstance(bound, tuple):
        overlaps = assign_result.max_overlaps
        # RoIs in regions to be ignored have an overlap of -1 here.
        below = (overlaps >= 0) & (overlaps < bound[0])
        assign_result.gt_inds[below & (assign_result.gt_inds == -1)] = 0
