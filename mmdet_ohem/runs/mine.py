"""What a detector gets wrong in a pool of pictures that hold no object.

Results go to the disk picture by picture, and what stays in memory of each picture is
its name and a few numbers. So a pool may be large, and a run may be cut off.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config

from mmdet_ohem.config import file_text, inner_datasets, type_name
from mmdet_ohem.datasets import (
    FalsePositives,
    content_hash,
    picture_ids,
    pool_pictures,
    read_made_by,
    same_content,
    write_background,
)
from mmdet_ohem.proposals import best_ious, write_store
from mmdet_ohem.runs.detect import PictureDetector
from mmdet_ohem.runs.detector import test_metainfo
from mmdet_ohem.whole_file import naming, only_one, whole_file

BACKGROUND = 'background.jsonl'
PROPOSALS = 'proposals'
NEAR = 0.7  # IoU from which on a proposal stands for a false positive
ROW = np.dtype((np.float32, 4))  # of the file of proposals
# Of a picture: what was found, or None where it cannot be read; and its proposals
# (R, 4), if it has false positives and the detector needs them.
# And the highest score of any detection, 0 if there is none.
Result = tuple[FalsePositives | None, np.ndarray | None, float]


def mine_background(
    config: Config,
    checkpoint: str | os.PathLike,
    pool: str,
    folder: str | os.PathLike,
    score_thr: float,
    max_per_image: int,
    jobs: int | None = None,
    progress: Callable[..., Iterable] = lambda items, **counts: items,
) -> dict:
    """Write the background set of a detector and a pool.

    ``folder`` gets ``background.jsonl``, whole or not at all, see
    `mmdet_ohem.datasets.background`; and a store of proposals of its pictures: the
    false positives, and for a detector without RPN those of Selective Search too. Not
    all false positives have a proposal near. What a run that was cut off has
    done is in ``folder/partial``; the same call goes on there. A set that is there
    stays.

    Args:
        config, checkpoint: of the detector.
        pool: see `pool_pictures`.
        score_thr: the lowest score of a false positive.
        max_per_image: how many false positives of a picture are kept, the surest.
        jobs: processes, over the GPUs there are; None: one for each, or one.
        progress: wraps an iterable to show how far it is, and takes ``total`` and
            ``initial``, as tqdm does.

    Returns:
        The first line of the set: ``pictures`` that were looked at, ``images``, those
        of them with ``false_positives``, ``surest``, the highest score of any detection
        in them, ``skipped``, files that cannot be read as an
        image, and what the set was made from; with proposals, the number of false
        positives that Selective Search reaches by an IoU of 0.7 (``reached``).

    Raises:
        ValueError: there is no pool; pictures of it are known to the config's data
            sets; none can be read; or see `PictureDetector`.
        FileExistsError: the folder has another set, or a part of one.
        RuntimeError: a process was killed.
    """
    folder = Path(folder)
    files = pool_pictures(pool)
    ids = list(picture_ids(files))
    made_by = _made_by(config, checkpoint, files, score_thr, max_per_image)
    partial = folder / 'partial'
    if (folder / BACKGROUND).exists():
        there = read_made_by(folder / BACKGROUND)
        _check_same(there, made_by, folder)
        shutil.rmtree(partial, ignore_errors=True)
        return there
    refuse_known(config, files, folder)
    with only_one(partial, 'a mining'):
        settings = partial / 'made_by.json'
        if settings.exists():
            _check_same(json.loads(settings.read_text()), made_by, folder)
        else:
            with whole_file(settings) as writing:
                writing.write_text(json.dumps(made_by))
        results = _Results(partial, len(files))
        todo = [i for i in range(len(files)) if not results.done[i]]
        found = _detect_all(
            jobs, config, checkpoint, ids, files, todo, score_thr, max_per_image
        )
        before = len(files) - len(todo)
        for index, result in progress(found, total=len(files), initial=before):
            results.add(index, *result)
        results.close()
        if len(results.skipped) == len(files):
            raise ValueError(f'No picture of {pool} can be read as an image.')
        made_by.update(
            pictures=len(files) - len(results.skipped),
            images=len(results.scores),
            false_positives=results.num_boxes,
            surest=results.surest,
            skipped=[files[i] for i in sorted(results.skipped)],
        )
        source = 'false positives'
        if results.has_proposals:
            source = f'Selective Search, fast, and {source}'
        if results.scores:
            write_store(folder / PROPOSALS, results.proposals(), source, overwrite=True)
        if results.has_proposals:
            made_by['reached'] = results.num_reached
        write_background(folder / BACKGROUND, made_by, results.hardest_first())
        shutil.rmtree(partial)
    return made_by


def _made_by(
    config: Config,
    checkpoint: str | os.PathLike,
    files: list[str],
    score_thr: float,
    max_per_image: int,
) -> dict:
    """What a set depends on."""
    dataset = next(inner_datasets(config.test_dataloader.dataset))
    parts = Config(dict(model=config.model, pipeline=dataset.pipeline))
    listing = hashlib.sha256()
    for file in files:
        listing.update(os.fsencode(file) + b'\0')
    return dict(
        classes=list(test_metainfo(config)['classes']),
        config=hashlib.sha256(file_text(parts).encode()).hexdigest(),
        checkpoint=content_hash(checkpoint),
        pool=listing.hexdigest(),
        score_thr=score_thr,
        max_per_image=max_per_image,
    )


def _check_same(there: dict, made_by: dict, folder: Path) -> None:
    if others := differing(there, made_by):
        raise FileExistsError(
            f'{folder} has a background set, or a part of one, that was made with '
            f'another {others}: choose another --out, or remove it.'
        )


def differing(there: dict, wanted: dict) -> str:
    """The keys of some settings that have another value there, for a sentence."""
    return ' and '.join(key for key in wanted if there.get(key) != wanted[key])


def refuse_known(config: Config, files: list[str], folder: Path) -> None:
    """Refuse pictures that are images of a config's data sets: those have objects, and
    the test's may not be trained on. Files are compared, for names say nothing.

    Raises:
        ValueError: there are some; refused.txt in ``folder`` lists them.
    """
    known = []
    for loop in ('train', 'val', 'test'):
        wrapped = (config.get(f'{loop}_dataloader') or {}).get('dataset')
        for dataset in inner_datasets(wrapped):
            if type_name(dataset) == 'BackgroundDataset':
                continue
            known += image_files(dataset)
    pairs = list(same_content(files, dict.fromkeys(known)))
    if pairs:
        listed = folder / 'refused.txt'
        with whole_file(listed) as partial:
            partial.write_text(''.join(f'{file}\n' for file, _ in pairs))
        raise ValueError(
            f'{len(pairs)} of the {len(files)} pictures of the pool are images of the '
            f"config's data sets, {pairs[0][0]} first, which is {pairs[0][1]}: remove "
            f'those that {listed} lists from the pool.'
        )


def image_files(dataset: dict) -> list[str]:
    """The files of all images of a data set of a config, also of those that training
    leaves out."""
    # In test mode nothing is filtered.
    settings = dict(dataset, pipeline=[], test_mode=True, filter_cfg=None)
    built = DATASETS.build(settings)
    return [built.get_data_info(i)['img_path'] for i in range(len(built))]


class _Results:
    """The results so far, on the disk.

    A line is the number of a picture, and what was found if there is anything, or else
    the highest score, which was too low.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.done = bytearray(number)
        self.skipped: list[int] = []
        self.num_boxes = self.num_reached = 0
        self.surest = 0.0
        self.scores, self._indices, self._starts = array('d'), array('q'), array('q')
        self._rows = 0
        self._path = folder / 'results.jsonl'
        for path in (self._path, self._path.with_suffix('.bin')):
            path.touch()
        self._lines = open(self._path, 'r+b')
        self._boxes = open(self._path.with_suffix('.bin'), 'r+b')
        self._read()

    @property
    def has_proposals(self) -> bool:
        return self._rows > 0

    def _read(self) -> None:
        """What is there; half a line, and boxes of no line, are of a killed run."""
        start = 0
        for line in iter(self._lines.readline, b''):
            if not line.endswith(b'\n'):
                break
            index, *result = json.loads(line)
            self._note(index, result, start)
            start = self._lines.tell()
        self._lines.seek(start)
        self._lines.truncate()
        self._boxes.seek(self._rows * ROW.itemsize)
        self._boxes.truncate()

    def _note(self, index: int, result: list, start: int) -> None:
        self.done[index] = True
        if result == [None]:
            self.skipped.append(index)
        elif len(result) == 1:
            self.surest = max(self.surest, result[0])
        else:
            image, rows = result
            self.surest = max(self.surest, image['scores'][0])
            self.num_boxes += len(image['boxes'])
            self.scores.append(image['scores'][0])
            self._indices.append(index)
            self._starts.append(start)
            self._rows = max(self._rows, rows[1])

    def add(
        self,
        index: int,
        image: FalsePositives | None,
        boxes: np.ndarray | None,
        surest: float,
    ) -> None:
        """Keep a result; nothing before it is lost if this one does not get through."""
        result: list = [None]
        if image is not None:
            boxes = np.zeros((0, 4)) if boxes is None else boxes
            rows = [self._rows, self._rows + len(boxes)]
            result = [asdict(image), rows] if image.boxes else [surest]
        start = self._lines.tell()
        try:
            if image is not None and image.boxes:
                self._boxes.write(boxes.astype(np.float32).tobytes())
                self._boxes.flush()
            self._lines.write(json.dumps([index, *result]).encode() + b'\n')
            self._lines.flush()
        except OSError as error:
            raise naming(self._path, error) from error
        self._note(index, result, start)

    def close(self) -> None:
        self._lines.close()
        self._boxes.close()

    def hardest_first(self) -> Iterator[FalsePositives]:
        """By the surest false positive of each picture, then in the pool's order."""
        for image, _ in self._sorted():
            yield image

    def proposals(self) -> Iterator[tuple[str, np.ndarray, tuple[int, int]]]:
        """The records of a store: the proposals and the false positives themselves;
        ``num_reached`` counts those that the proposals reach."""
        with open(self._path.with_suffix('.bin'), 'rb') as file:
            for image, (first, last) in self._sorted():
                file.seek(first * ROW.itemsize)
                boxes = np.fromfile(file, ROW, last - first)
                found = np.array(image.boxes, np.float32)
                self.num_reached += int((best_ious(boxes, found) >= NEAR).sum())
                boxes = np.concatenate([boxes, found])
                yield image.img_id, boxes, (image.width, image.height)

    def _sorted(self) -> Iterator[tuple[FalsePositives, tuple[int, int]]]:
        order = np.lexsort((self._indices, -np.array(self.scores)))
        with open(self._path, 'rb') as file:
            for i in order.tolist():
                file.seek(self._starts[i])
                _, image, rows = json.loads(file.readline())
                yield FalsePositives(**image), rows


def _detect_all(
    jobs: int | None,
    config: Config,
    checkpoint: str | os.PathLike,
    ids: list[str],
    files: list[str],
    todo: list[int],
    score_thr: float,
    max_per_image: int,
) -> Iterator[tuple[int, Result]]:
    """The results of some pictures by number, in whatever order the processes end."""
    if not todo:
        return
    gpus = torch.cuda.device_count()
    jobs = min(jobs or max(1, gpus), len(todo))
    cores = max(1, (os.cpu_count() or 1) // jobs)
    shares = [
        (
            config,
            checkpoint,
            f'cuda:{k % gpus}' if gpus else 'cpu',
            cores,
            [(i, ids[i], files[i]) for i in todo[k::jobs]],
            score_thr,
            max_per_image,
        )
        for k in range(jobs)
    ]
    if jobs == 1:
        yield from _detect(*shares[0])
        return
    # A plain fork of a process in which OpenCV has started its threads hangs.
    context = multiprocessing.get_context('spawn')
    processes, receivers = [], []
    try:
        for share in shares:
            receiver, sender = context.Pipe(duplex=False)
            processes.append(context.Process(target=_work, args=(sender, share)))
            processes[-1].start()
            receivers.append(receiver)
            sender.close()  # so that the end of the process ends the pipe
        while receivers:
            for receiver in wait(receivers):
                try:
                    result = receiver.recv()
                except EOFError:
                    receivers.remove(receiver)
                    continue
                if isinstance(result, Exception):
                    raise result
                yield result
        for process in processes:
            process.join()
            if process.exitcode != 0:
                raise RuntimeError(
                    'A process was killed (out of memory?): try with fewer --jobs.'
                )
    finally:
        for process in processes:
            process.terminate()


def _work(sender: Connection, share: tuple) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(share[3])
    with suppress(BrokenPipeError):  # the parent was killed: so ends this process
        try:
            for result in _detect(*share):
                sender.send(result)
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            sender.send(error)


def _detect(
    config: Config,
    checkpoint: str | os.PathLike,
    device: str,
    cores: int,
    pictures: list[tuple[int, str, str]],
    score_thr: float,
    max_per_image: int,
) -> Iterator[tuple[int, Result]]:
    """The results of pictures, each given by its number, its id and its file."""
    detector = PictureDetector(config, checkpoint, device)
    classes = detector.detector.dataset_meta['classes']
    files = [file for _, _, file in pictures]
    for (index, img_id, file), detected in zip(
        pictures, detector.run(files, cores), strict=True
    ):
        if detected is None:
            yield index, (None, None, 0.0)
            continue
        found = detected.found
        if found.bboxes.shape[1] != 4:
            raise ValueError(
                'The detector finds rotated boxes, of which no background set can be '
                'made: give one of boxes with four numbers.'
            )
        surest = round(float(found.scores.max()), 4) if len(found) else 0.0
        found = found[found.scores >= score_thr]
        found = found[found.scores.argsort(descending=True, stable=True)]
        found = found[:max_per_image]
        image = FalsePositives(
            img_id,
            file,
            width=detected.image.shape[1],
            height=detected.image.shape[0],
            boxes=[[round(x, 1) for x in box] for box in found.bboxes.tolist()],
            labels=[classes[label] for label in found.labels.tolist()],
            scores=[round(score, 4) for score in found.scores.tolist()],
        )
        yield index, (image, detected.proposals if image.boxes else None, surest)
