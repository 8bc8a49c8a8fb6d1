"""The pipeline step that puts stored proposals beside an image.

R: proposals of one image.
"""

import os
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.structures.bbox import HorizontalBoxes, get_box_tensor

from mmdet_ohem.proposals.store import ProposalStore
from mmdet_ohem.registry import TRANSFORMS


@TRANSFORMS.register_module()
class LoadStoredProposals(BaseTransform):
    """Put an image's stored proposals into the pipeline.

    The last step before `PackDetInputs`: it maps the boxes by the homography that
    the transforms before it recorded, and clips them to the image; what loses its
    area is dropped. (MMDetection's own way, `ProposalBroadcaster`, resizes every
    image twice.) An image without boxes gets none and training goes on.

    An image is looked up by its id, or else by its file name without suffix.

    Required keys: img_id, img_path, ori_shape, img_shape, homography_matrix
    (optional: none means that nothing moved), instances and gt_bboxes (both
    optional: the check).
    Added keys: proposals (R, 4) float32, x1, y1, x2, y2 in px of the transformed
    image, and proposals_scores (R,) float32, all 0 as `LoadProposals` has it.

    Args:
        store (str | Path | ProposalStore): Folder of the proposal store, or the store.

    Raises:
        FileNotFoundError, ValueError: No whole store there, when the pipeline is
            built; or, later, the store is of another data set, or a transform moved
            boxes without recording it.
        KeyError: The store does not have the image.
    """

    def __init__(self, store: str | os.PathLike | ProposalStore) -> None:
        if isinstance(store, str | os.PathLike):
            store = ProposalStore(store)
        self.store = store

    def transform(self, results: dict) -> dict:
        img_id = results['img_id']
        if img_id not in self.store and 'img_path' in results:
            # COCO's ids are numbers; a store made from its images has file names.
            img_id = Path(results['img_path']).stem
        boxes, (width, height) = self.store.get(img_id)
        if (height, width) != tuple(results['ori_shape'][:2]):
            h, w = results['ori_shape'][:2]
            raise ValueError(
                f'The proposal store {self.store.path} was made for another data set: '
                f'its image {results["img_id"]!r} is {width}x{height}, the one that '
                f'was loaded is {w}x{h}.'
            )
        if has_unrecorded_move(results):
            raise ValueError(
                f'The boxes of image {results["img_id"]!r} were moved by a transform '
                "that does not record 'homography_matrix', so stored proposals would "
                'not fit: use only transforms that record it (Resize and its '
                'relatives, RandomFlip, RandomCrop, Rotate, Shear*, Translate*), and '
                'in a test pipeline put LoadAnnotations after LoadStoredProposals.'
            )
        boxes = _project(boxes, results.get('homography_matrix'))
        height, width = results['img_shape'][:2]
        boxes = boxes.clip(0, np.array([width, height] * 2, np.float32))
        boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
        results['proposals'] = boxes
        results['proposals_scores'] = np.zeros(len(boxes), dtype=np.float32)
        return results

    def __repr__(self) -> str:
        return f"{type(self).__name__}(store='{self.store.path}')"


def _project(boxes: np.ndarray, homography: np.ndarray | None) -> np.ndarray:
    """Boxes (R, 4) float32 under a homography.

    What only scales, flips and shifts is worked out here: MMDetection's `project_`,
    which goes by the four corners, takes four times as long.
    """
    boxes = np.asarray(boxes, dtype=np.float32)
    if homography is None:
        return boxes
    (a, b, x), (c, d, y), last_row = homography
    if (b, c, *last_row) != (0, 0, 0, 0, 1):
        projected = HorizontalBoxes(boxes, dtype=torch.float32)
        projected.project_(homography)
        return projected.tensor.numpy()
    boxes = boxes * np.array([a, d, a, d], np.float32)
    boxes += np.array([x, y, x, y], np.float32)
    if a < 0:
        boxes[:, [0, 2]] = boxes[:, [2, 0]]
    if d < 0:
        boxes[:, [1, 3]] = boxes[:, [3, 1]]
    return boxes


def has_unrecorded_move(results: dict, tolerance: float = 2.0) -> bool:
    """Whether the ground truth is elsewhere than the homography says.

    As long as the homography neither rotates nor shears, the transforms that record
    it leave of each ground-truth box the mapped box or, clipped, a part of it. An
    image counts as moved when less than half of its boxes are that, or when it has
    more boxes than the data set gave it (MixUp, CopyPaste, ...).

    Not judged: boxes under a homography that rotates or shears, for they are boxes
    around clipped boxes around turned boxes, which can lie nearly anywhere; and
    images without ground truth, unless they shrank, for there every proposal is
    background. Judged wrongly: turns by a fixed level that cancel out exactly (two
    Rotate of the same `level`), whose grown boxes look moved.

    Args:
        results (dict): The pipeline's; `instances` are as the data set gave them.
        tolerance (float): In px, for rounding.
    """
    homography = results.get('homography_matrix')
    if homography is None:
        (h, w), (h0, w0) = results['img_shape'][:2], results['ori_shape'][:2]
        if h < h0 or w < w0:
            return True
    if 'gt_bboxes' not in results or 'instances' not in results:
        return False
    boxes = torch.as_tensor(get_box_tensor(results['gt_bboxes'])).reshape(-1, 4)
    given = [instance['bbox'] for instance in results['instances']]
    if len(boxes) > len(given):
        return True
    if homography is not None and (homography[0][1] != 0 or homography[1][0] != 0):
        return False
    # A box that left the image lives on as a line at its border.
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2] > tolerance).all(dim=1)]
    if len(boxes) == 0:
        return False
    mapped = torch.from_numpy(_project(given, homography))
    overhang = torch.cat(
        [mapped[:, :2] - boxes[:, None, :2], boxes[:, None, 2:] - mapped[:, 2:]], dim=-1
    )  # (boxes, given, 4): how far the one sticks out of the other, per side
    is_part = (overhang <= tolerance).all(dim=-1).any(dim=1)
    return 2 * int(is_part.sum()) < len(boxes)
