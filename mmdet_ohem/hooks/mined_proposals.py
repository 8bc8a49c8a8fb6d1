"""RoIs to train on that an RPN does not propose.

R: RoIs of one image.
"""

from mmdet.structures import DetDataSample
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.structures import InstanceData

from mmdet_ohem.registry import HOOKS


@HOOKS.register_module()
class MinedProposalsHook(Hook):
    """Joins the stored proposals of an image to those of the RPN, in training.

    For false positives of `tools/mine_background.py`: a false positive is a proposal
    that the network has moved, and the RPN need not propose a box where it came to lie.
    The data set's pipeline puts them beside the image (``LoadStoredProposals``, as
    `with_background` with ``store`` has it); an image without stored proposals keeps
    those of the RPN alone. The detector's checkpoints are the same with the hook and
    without, and so is every test.

    In a config::

        default_hooks = dict(mined_proposals=dict(type='mmdet_ohem.MinedProposalsHook'))

    Raises:
        TypeError: when a training starts, for a detector without RPN: it reads stored
            proposals as they are.
    """

    def before_train(self, runner) -> None:
        model = runner.model
        detector = model.module if is_model_wrapper(model) else model
        if not (getattr(detector, 'with_rpn', False) and detector.with_roi_head):
            raise TypeError(
                'default_hooks: MinedProposalsHook joins stored proposals to those of '
                f'an RPN, and {type(detector).__name__} is no detector with an RPN and '
                'a RoI head; remove the hook from this config.'
            )
        # Not a type of the config: every RoI head of MMDetection can have it.
        kind = type(detector.roi_head)
        if not issubclass(kind, _WithMinedProposals):
            detector.roi_head.__class__ = type(
                kind.__name__, (_WithMinedProposals, kind), {}
            )


class _WithMinedProposals:
    """What the hook puts before the class of a RoI head."""

    def loss(
        self,
        x: tuple,
        rpn_results_list: list[InstanceData],
        batch_data_samples: list[DetDataSample],
        *args,
        **kwargs,
    ) -> dict:
        joined = [
            _joined(results, sample.proposals) if 'proposals' in sample else results
            for results, sample in zip(
                rpn_results_list, batch_data_samples, strict=True
            )
        ]
        return super().loss(x, joined, batch_data_samples, *args, **kwargs)


def _joined(results: InstanceData, stored: InstanceData) -> InstanceData:
    """The RPN's boxes (R, 4) and the stored ones; what else the RPN says of a box, such
    as its score, is 0 for these."""
    others = {
        key: value.new_zeros(len(stored), *value.shape[1:])
        for key, value in results.items()
        if key != 'bboxes'
    }
    more = InstanceData(bboxes=stored.bboxes.to(results.bboxes), **others)
    return InstanceData.cat([results, more])
