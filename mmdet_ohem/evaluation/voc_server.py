"""VOC's test set without public annotations: its images, and what its server takes."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mmdet.datasets import VOCDataset
from mmengine.evaluator import BaseMetric
from mmengine.logging import MMLogger

from mmdet_ohem.datasets import image_size
from mmdet_ohem.registry import DATASETS, METRICS

# The server's own names, from the VOC2012 development kit. comp4 is detection by
# systems that have seen other data than VOC's, which ImageNet weights are.
FOLDER = 'results/VOC2012/Main'
FILE_NAME = 'comp4_det_test_{}.txt'
ARCHIVE = 'results.tar.gz'


@DATASETS.register_module()
class VOCImages(VOCDataset):
    """Images of a list in VOC layout, without looking for annotations, for testing.

    VOC12's archive of test images has some: boxes of its other contests, which are no
    ground truth of detection.
    """

    def parse_data_info(self, img_info: dict) -> dict:
        img_path = os.path.join(self.sub_data_root, img_info['file_name'])
        width, height = image_size(img_path)
        return dict(
            img_id=img_info['img_id'],
            img_path=img_path,
            width=width,
            height=height,
            instances=[],
        )


@METRICS.register_module()
class VOCServerFiles(BaseMetric):
    """Writes detections as VOC's evaluation server (http://host.robots.ox.ac.uk:8080)
    takes them: ``results.tar.gz``, which holds results/VOC2012/Main/
    comp4_det_test_CLASS.txt for every class, and the same files beside it.

    A line is `image_id score x1 y1 x2 y2`; the first pixel is 1 there, so 1 is added
    to MMDetection's coordinates. No metric is computed.

    Args:
        out_dir (str, optional): folder to write into; files of an earlier test are
            replaced. None: `mmdet_ohem.ServerFilesHook` sets the work dir of the run.
        collect_device, prefix: as in MMEngine's BaseMetric.
    """

    default_prefix = 'voc_server'

    def __init__(
        self,
        out_dir: str | None = None,
        collect_device: str = 'cpu',
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.out_dir = out_dir

    def process(self, data_batch, data_samples: Sequence[dict]) -> None:
        """Collect the detections of a batch.

        Raises:
            ValueError: nobody said where the files go.
        """
        if self.out_dir is None:
            raise ValueError(
                'test_evaluator.out_dir of mmdet_ohem.VOCServerFiles is not set: set '
                "it, or add dict(type='mmdet_ohem.ServerFilesHook') to custom_hooks, "
                'which sets the work dir.'
            )
        for sample in data_samples:
            found = sample['pred_instances']
            arrays = (
                found[key].cpu().numpy() for key in ('labels', 'scores', 'bboxes')
            )
            self.results.append((sample['img_id'], *arrays))

    def compute_metrics(self, results: list) -> dict:
        """Write the files; results are (image id, labels (D,), scores (D,), boxes
        (D, 4)) of each image with its D detections."""
        out_dir = Path(self.out_dir)
        (out_dir / FOLDER).mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=out_dir, prefix='writing-') as writing:
            writing = Path(writing)
            with tarfile.open(writing / ARCHIVE, 'w:gz') as archive:
                for label, name in enumerate(self.dataset_meta['classes']):
                    file = writing / FILE_NAME.format(name)
                    file.write_text(''.join(_lines(results, label)))
                    archive.add(file, f'{FOLDER}/{file.name}')
                    os.replace(file, out_dir / FOLDER / file.name)
            os.replace(writing / ARCHIVE, out_dir / ARCHIVE)
        MMLogger.get_current_instance().info(
            f'{out_dir / ARCHIVE} is ready for http://host.robots.ox.ac.uk:8080.'
        )
        return {}


def _lines(results: list, label: int) -> Iterator[str]:
    """The lines of one class; a hundredth of a pixel, and scores that keep their
    order down to the release's threshold of 0.00001."""
    for img_id, labels, scores, boxes in results:
        of_class = labels == label
        for score, box in zip(scores[of_class], boxes[of_class], strict=True):
            corners = ' '.join(f'{value + 1:.2f}' for value in box)
            yield f'{img_id} {score:.7f} {corners}\n'
