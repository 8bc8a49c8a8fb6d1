"""What the logs of a run say: its mAP, its losses, its time and memory."""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from mmdet_ohem.visualization import LOSS_ALL_ROIS, read_curve
from mmdet_ohem.whole_file import whole_file

# The end of a training, over whose log the loss over all RoIs is averaged.
LAST_PART = 0.25
LOSS_OF_FIRST_STAGE = 'mining/s0.loss_all_rois'


@dataclass
class RunLogs:
    """The folder of a run, as tools/train.py and tools/test.py leave it.

    Args:
        folder: has the logs of the training, and those of its tests in test/.
    """

    folder: Path

    @property
    def result_file(self) -> Path:
        return self.folder / 'result.json'

    @property
    def training_file(self) -> Path:
        return self.folder / 'training.json'

    def curve(self, key: str) -> dict[int, float]:
        """A scalar of the training by iteration; empty if it was not logged."""
        try:
            return read_curve(self.folder, key)
        except (FileNotFoundError, ValueError):  # or memory, which only GPUs have
            return {}

    def loss_curve(self) -> dict[int, float]:
        """The loss over all RoIs by iteration; of a cascade that of its first stage."""
        return self.curve(LOSS_ALL_ROIS) or self.curve(LOSS_OF_FIRST_STAGE)

    def save_highest(self, **values: float) -> None:
        """Keep the highest so far of what was seen of the training from outside: a
        later call may have to finish it, or to make the test."""
        saved = self._training()
        for name, value in values.items():
            saved[name] = max(value, saved.get(name, value))
        with whole_file(self.training_file) as partial:
            partial.write_text(json.dumps(saved))

    def result(self, name: str) -> dict:
        """The scores of the last test, and what the training took.

        Args:
            name: what an error calls the run.

        Raises:
            RuntimeError: the test gave no mAP.
        """
        metric, scores = read_test(self.folder / 'test', name)
        seen = self._training()
        of_process = seen.get('peak_mb')
        return dict(
            metric=metric,
            mAP=scores[metric],
            **_at_ious(scores, metric),
            seconds_per_iteration=statistics.median(self.curve('time').values()),
            runs_at_a_time=seen['runs_at_a_time'],
            # Of the tensors on a GPU, or of the process.
            memory_mb=max(self.curve('memory').values(), default=of_process),
            **_false_alarms(scores),
        )

    def _training(self) -> dict[str, float]:
        file = self.training_file
        return json.loads(file.read_text()) if file.exists() else {}


def read_test(folder: Path, name: str) -> tuple[str, dict]:
    """What its mAP is called, and the scores of the last test.

    Args:
        folder: the work dir of tools/test.py.
        name: what an error calls the run.

    Raises:
        RuntimeError: the test gave no mAP.
    """
    tests = sorted(folder.glob('*/*.json'))
    scores = json.loads(tests[-1].read_text()) if tests else {}
    # coco/bbox_mAP, pascal_voc/mAP, lvis/bbox_AP: the first is that of the boxes.
    metric = next((name for name in scores if name.endswith('AP')), None)
    if metric is None:
        given = ', '.join(scores) or 'nothing'
        raise RuntimeError(
            f'The test of {name} gave {given}, but no mAP: set test_evaluator to one '
            'that does.'
        )
    return metric, scores


def _at_ious(scores: dict, metric: str) -> dict[str, float]:
    """AP50 and AP75, where the mAP is a mean over IoUs and both are given."""
    for start in (f'{metric}_', metric.replace('mAP', 'AP')):
        # coco/bbox_mAP_50; pascal_voc/AP50, dota/AP50, lvis/bbox_AP50
        if f'{start}50' in scores and f'{start}75' in scores:
            return {f'AP{iou}': scores[f'{start}{iou}'] for iou in (50, 75)}
    return {}


def _false_alarms(scores: dict) -> dict:
    """What a test with background says of it, which the table of a comparison has."""
    wanted = ('background/fp_per_image@', 'background/false_alarms@')
    return {name: x for name, x in scores.items() if name.startswith(wanted)}


def at_the_end(curve: dict[int, float]) -> float | None:
    """The mean of the last part of a curve; None of an empty one."""
    first = (1 - LAST_PART) * max(curve, default=0)
    values = [value for step, value in curve.items() if step > first]
    return statistics.mean(values) if values else None
