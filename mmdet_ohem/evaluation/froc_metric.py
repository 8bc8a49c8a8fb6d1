"""FROC as a metric of MMEngine, for any data set of MMDetection with upright boxes."""

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from mmdet.structures.bbox import get_box_tensor
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger
from terminaltables import AsciiTable

from mmdet_ohem.evaluation.froc import (
    NEITHER,
    RATES,
    FROCCurve,
    Judged,
    froc_curve,
    judge,
)
from mmdet_ohem.registry import METRICS
from mmdet_ohem.visualization import plot_froc
from mmdet_ohem.whole_file import whole_file

ALL = 'all classes'


@METRICS.register_module()
class FROCMetric(BaseMetric):
    """How many objects are found for how many false positives per image.

    LUNA16's FROC: the sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per
    image, and their mean. Beside it: the false positives per image at a recall, and how
    many of the images without any object have a false alarm. All of it for each class,
    and for all classes at one threshold. `mmdet_ohem.evaluation.judge` says what a hit
    is and what counts neither way.

    The test pipeline must load annotations, after it has resized the image, as
    MMDetection's own does.

    The results are of all classes: ``sensitivity@RATE``, ``mean_sensitivity``,
    ``fp_per_image@recallRECALL`` and the ``score@recallRECALL`` from which on
    detections are taken for it, ``false_alarms@SCORE``, a share of the images without
    an object, and ``highest_fp_per_image``, of all detections: at rates beyond it the
    sensitivity is the one there. A recall that is not reached, and a share of no
    images, are NaN. A table of each class is logged.

    Args:
        iou_thr: with an object of its class, from which on a detection is a hit.
        ignore_duplicates: whether a further detection of a found object counts neither
            way, as in LUNA16, instead of as a false positive.
        recall: at which false positives per image are given.
        alarm_score: the score from which on a detection is a false alarm in an image
            without an object.
        out_dir: gets ``froc.json``, the figures of every class, null for NaN, and the
            curves ``froc.png``. None: no files.
        collect_device, prefix: as in MMEngine's BaseMetric.
    """

    default_prefix = 'froc'
    title = 'FROC: sensitivity at false positives per image'
    xlabel = 'false positives per image'

    def __init__(
        self,
        iou_thr: float = 0.5,
        ignore_duplicates: bool = False,
        recall: float = 0.8,
        alarm_score: float = 0.5,
        out_dir: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.iou_thr = iou_thr
        self.ignore_duplicates = ignore_duplicates
        self.recall = recall
        self.alarm_score = alarm_score
        self.out_dir = out_dir

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Judge the detections of a batch.

        Raises:
            ValueError: an image comes without annotations, or boxes are rotated.
        """
        for sample in data_samples:
            if 'bboxes' not in sample.get('gt_instances', {}):
                raise ValueError(
                    'mmdet_ohem.FROCMetric got an image without annotations: add '
                    "dict(type='LoadAnnotations', with_bbox=True) to "
                    'test_dataloader.dataset.pipeline, after Resize.'
                )
            self.results.append(self._judged(sample))

    def _judged(self, sample: dict) -> Judged:
        boxes, labels = {}, {}
        for part in ('pred_instances', 'gt_instances', 'ignored_instances'):
            tensor = get_box_tensor(sample[part]['bboxes'])
            if tensor.shape[1] != 4:
                raise ValueError(
                    'mmdet_ohem.FROCMetric takes upright boxes, and those of '
                    f'{part} have {tensor.shape[1]} numbers: it cannot measure a '
                    'detector of rotated boxes.'
                )
            boxes[part] = tensor.cpu().numpy()
            labels[part] = sample[part]['labels'].cpu().numpy()
        found, objects, ignored = boxes
        scores = sample[found]['scores'].cpu().numpy()
        kinds = judge(
            boxes[found],
            scores,
            labels[found],
            boxes[objects],
            labels[objects],
            boxes[ignored],
            labels[ignored],
            self.iou_thr,
        )
        counts = kinds != NEITHER
        num_classes = len(self.dataset_meta['classes'])
        num_objects, num_ignored = (
            np.bincount(labels[part], minlength=num_classes)[None]
            for part in (objects, ignored)
        )
        return Judged(
            np.zeros(counts.sum(), int),
            labels[found][counts],
            scores[counts],
            kinds[counts],
            num_objects,
            num_objects + num_ignored == 0,
        )

    def compute_metrics(self, results: list[Judged]) -> dict:
        """The figures of all classes, with the rest in the log and the files."""
        self.judged = Judged.join(results)
        return self._report(self.judged, self.judged)

    def _report(self, found: Judged, fired: Judged) -> dict:
        """Of the objects and hits of ``found`` and the false positives of ``fired``."""
        classes = self.dataset_meta['classes']
        parts = {ALL: (found, fired)}
        if len(classes) > 1:
            for i, name in enumerate(classes):
                parts[name] = found.of_class(i), fired.of_class(i)
        curves = {name: self._curve(*part) for name, part in parts.items()}
        figures = {
            name: self._figures(part[1], curves[name]) for name, part in parts.items()
        }
        for line in self._log_lines(parts, curves, figures):
            MMLogger.get_current_instance().info(line)
        if self.out_dir is not None:
            self._write(figures, curves)
        return figures[ALL]

    def _curve(self, found: Judged, fired: Judged) -> FROCCurve:
        return froc_curve(
            found.hit_scores(),
            fired.false_scores(self.ignore_duplicates),
            int(found.num_objects.sum()),
            len(fired.num_objects),
        )

    def _figures(self, fired: Judged, curve: FROCCurve) -> dict[str, float]:
        sensitivities = curve.sensitivity_at(RATES)
        fp_per_image, score = curve.at_recall(self.recall)
        num_empty, num_alarms = fired.false_alarms(self.alarm_score)
        figures = {
            f'sensitivity@{rate:g}': float(sensitivity)
            for rate, sensitivity in zip(RATES, sensitivities, strict=True)
        }
        return figures | {
            'mean_sensitivity': float(sensitivities.mean()),
            f'fp_per_image@recall{self.recall:g}': fp_per_image,
            f'score@recall{self.recall:g}': score,
            f'false_alarms@{self.alarm_score:g}': (
                num_alarms / num_empty if num_empty else np.nan
            ),
            'highest_fp_per_image': curve.highest_rate,
        }

    def _log_lines(self, parts: dict, curves: dict, figures: dict) -> list[str]:
        head = [
            'class',
            'objects',
            *(str(Fraction(rate)) for rate in RATES),
            'mean',
            f'FP/image\nat recall {self.recall:g}',
            f'alarms at {self.alarm_score:g}\nin empty images',
        ]
        rows = [
            self._row(name, *part, curves[name], figures[name])
            for name, part in parts.items()
        ]
        num_images = len(parts[ALL][1].num_objects)
        title = f'{self.title}, {num_images} images'
        lines = [f'{title}\n{AsciiTable([head, *rows]).table}']
        whole = curves[ALL]
        if len(whole.scores) == 1:
            lines.append('* There are no detections.')
        elif any(curve.highest_rate < RATES[-1] for curve in curves.values()):
            lines.append(
                '* Not reached: it is the sensitivity of all detections, down to a '
                f'score of {whole.scores[-1]:.3g}, and with more it could be higher. '
                f'Over all classes there are {whole.highest_rate:.3f} false positives '
                'per image.'
            )
        if np.isnan(figures[ALL][f'fp_per_image@recall{self.recall:g}']):
            lines.append(
                f'Recall {self.recall:g} is not reached: the detections find '
                f'{whole.sensitivity[-1]:.3f} of the objects (all classes).'
            )
        return lines

    def _row(
        self,
        name: str,
        found: Judged,
        fired: Judged,
        curve: FROCCurve,
        figures: dict[str, float],
    ) -> list[str]:
        """A row of the table; a star stands where the detections do not reach."""
        stars = ['*' if rate > curve.highest_rate else '' for rate in RATES]
        num_empty, num_alarms = fired.false_alarms(self.alarm_score)
        return [
            name,
            str(found.num_objects.sum()),
            *(
                _text(figures[f'sensitivity@{rate:g}'], star)
                for rate, star in zip(RATES, stars, strict=True)
            ),
            _text(figures['mean_sensitivity'], stars[-1]),
            _text(figures[f'fp_per_image@recall{self.recall:g}']),
            f'{num_alarms} of {num_empty}',
        ]

    def _write(self, figures: dict, curves: dict) -> None:
        folder = Path(self.out_dir)
        known = {
            name: {key: None if np.isnan(x) else x for key, x in of_class.items()}
            for name, of_class in figures.items()
        }
        with whole_file(folder / f'{self.prefix}.json') as partial:
            partial.write_text(json.dumps(known, indent=2))
        lines = {
            name: (curve.fp_per_image, curve.sensitivity)
            for name, curve in curves.items()
        }
        plot_froc(lines.pop(ALL), lines, folder / f'{self.prefix}.png', self.xlabel)


class BackgroundMetric(FROCMetric):
    """The same of images without objects, in a pass of their own after the test set's.

    Hits are those of the test set, false positives those of the images without objects
    alone, and no mAP is touched by them. The results' names start with ``background/``.

    Args:
        of_test_set: has evaluated the test set; its settings hold here too.
    """

    title = (
        'FROC: sensitivity on the test set at false positives per image without objects'
    )
    xlabel = 'false positives per image without objects'

    def __init__(self, of_test_set: FROCMetric) -> None:
        super().__init__(
            iou_thr=of_test_set.iou_thr,
            ignore_duplicates=of_test_set.ignore_duplicates,
            recall=of_test_set.recall,
            alarm_score=of_test_set.alarm_score,
            out_dir=of_test_set.out_dir,
            collect_device=of_test_set.collect_device,
            prefix='background',
        )
        self.of_test_set = of_test_set

    def compute_metrics(self, results: list[Judged]) -> dict:
        return self._report(self.of_test_set.judged, Judged.join(results))


def _text(value: float, mark: str = '') -> str:
    return '-' if np.isnan(value) else f'{value:.3f}{mark}'
