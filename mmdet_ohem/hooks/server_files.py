"""Where the files for an evaluation server go: into the work dir of the run."""

import os

from mmdet.evaluation import CocoMetric
from mmengine.hooks import Hook

from mmdet_ohem.evaluation import VOCServerFiles
from mmdet_ohem.registry import HOOKS


@HOOKS.register_module()
class ServerFilesHook(Hook):
    """Puts the files for an evaluation server into the work dir of the run.

    This concerns a VOCServerFiles without ``out_dir``, and a CocoMetric with
    ``format_only`` whose ``outfile_prefix`` names no folder. A config cannot name the
    work dir: MMEngine fills in ``{{ fileBasenameNoExtension }}`` with the name of the
    file where it stands, so all configs that inherit this file would share one folder.
    """

    def before_test(self, runner) -> None:
        for metric in runner.test_evaluator.metrics:
            if isinstance(metric, VOCServerFiles) and metric.out_dir is None:
                metric.out_dir = runner.work_dir
            elif isinstance(metric, CocoMetric) and metric.format_only:
                if not os.path.dirname(metric.outfile_prefix):
                    metric.outfile_prefix = os.path.join(
                        runner.work_dir, metric.outfile_prefix
                    )
