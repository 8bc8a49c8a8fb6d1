"""Bootstrapping (Sung and Poggio, 1998): train, add what the detector gets wrong in a
pool of background, train on."""

import copy
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config, ConfigDict

from mmdet_ohem.checkpoint import is_trained, newest_checkpoint
from mmdet_ohem.config import file_text
from mmdet_ohem.datasets import (
    content_hash,
    pool_pictures,
    read_background,
    read_made_by,
    with_background,
)
from mmdet_ohem.proposals import ProposalStore, clean_boxes, write_store
from mmdet_ohem.runs.budget import budget_unit, set_budget
from mmdet_ohem.runs.child import start_tool
from mmdet_ohem.runs.mine import BACKGROUND, PROPOSALS, differing, refuse_known
from mmdet_ohem.whole_file import only_one, whole_file

HELD_OUT = 5  # one picture in so many is never trained on
FEW = 20  # held-out pictures, of which each counts for 5% or more
UNLIMITED = 10**6  # false positives of a picture, where they are counted


@dataclass
class Bootstrap:
    """Training in rounds; each starts from the weights of the one before, and trains on
    the background sets of all before it too.

    Each training and each look at the pool is a process of its own. Run again, it goes
    on with what was cut off.

    Args:
        config: of the detector.
        pool: of pictures without objects, see `pool_pictures`. A fifth of them, chosen
            by their content, is never trained on; equal pictures are on one side.
        folder: gets ``round1`` and so on, each a work dir with what was mined after it,
            and ``table.md``.
        tools: the folder with train.py and mine_background.py.
        rounds: how many.
        budget: iterations of all rounds together, or epochs where the config counts
            those; None: as many as the config has.
        share: of the background in each batch, see `with_background`.
        score_thr, max_per_image, jobs: see `mine_background`.
        say: is told in a line what comes next.
    """

    config: Config
    pool: str
    folder: Path
    tools: Path
    rounds: int
    budget: int | None
    share: float | None
    score_thr: float
    max_per_image: int
    jobs: int | None
    say: Callable[[str], None]

    @property
    def length(self) -> int:
        """Iterations or epochs of a round."""
        budget = self.budget or self.config.train_cfg[budget_unit(self.config)]
        return budget // self.rounds

    def run(self) -> list[dict]:
        """Train, measure and mine, round by round.

        Returns:
            For each round: ``round``, ``background``, the number of pictures without
            objects that it trained on, and of the pictures that are held out
            ``pictures``, ``false_positives`` and ``fired``, the number of pictures that
            have some.

        Raises:
            ValueError: the budget or the pool is too small, pictures of it are images
                of the data sets, or see `with_background`.
            FileExistsError: the folder is of another bootstrapping.
            RuntimeError: a process failed.
        """
        self._check()
        settings = dict(
            pool=os.path.abspath(self.pool),
            rounds=self.rounds,
            length=self.length,
            share=self.share,
            score_thr=self.score_thr,
            max_per_image=self.max_per_image,
        )
        results: list[dict] = []
        sets: list[Path] = []
        checkpoint = None
        with only_one(self.folder, 'a bootstrapping'):
            _write_settings(self.folder / 'settings.json', settings)
            self._divide_pool()
            for number in range(1, self.rounds + 1):
                checkpoint = self._train(number, sets, checkpoint)
                held_out = self._mine(number, checkpoint, 'held_out', UNLIMITED)
                found = read_made_by(held_out)
                results.append(
                    dict(
                        round=number,
                        background=_num_pictures(sets),
                        pictures=found['pictures'],
                        false_positives=found['false_positives'],
                        fired=found['images'],
                    )
                )
                with whole_file(self.folder / 'table.md') as partial:
                    partial.write_text(table(results))
                if number == self.rounds:
                    break
                mined = self._mine(number, checkpoint, 'pool', self.max_per_image)
                made_by = read_made_by(mined)
                if made_by['images']:
                    sets.append(mined)
                elif not sets:
                    self.say(
                        'The detector fires in no picture of the pool; its surest '
                        f'detection has a score of {made_by["surest"]:.2g}. The loop '
                        f'ends after round {number}.'
                    )
                    break
        return results

    def _check(self) -> None:
        """What would fail after a round is said before it."""
        if self.length < 1:
            raise ValueError(
                f'The budget is too small for {self.rounds} rounds: raise it.'
            )
        if self.share is None:
            return
        if budget_unit(self.config) == 'max_epochs':
            raise ValueError(
                '--share needs a config that counts iterations, for MultiSourceSampler '
                'never ends an epoch: leave it out, and the share is left to chance.'
            )
        with_background(self.config.train_dataloader, self.share, img_path='later')

    def _divide_pool(self) -> None:
        """Write pool.txt and held_out.txt, once. Equal pictures are on one side."""
        lists = {name: self.folder / f'{name}.txt' for name in ('held_out', 'pool')}
        if all(path.exists() for path in lists.values()):
            return
        files = pool_pictures(self.pool)
        refuse_known(self.config, files, self.folder)
        of_content: dict[str, list[str]] = {}
        for file in files:
            of_content.setdefault(content_hash(file), []).append(file)
        parts: dict[str, list[str]] = {name: [] for name in lists}
        for _, equal in sorted(of_content.items()):
            is_held_out = len(parts['held_out']) < len(files) / HELD_OUT
            parts['held_out' if is_held_out else 'pool'] += equal
        if not all(parts.values()):
            raise ValueError(
                f'The pool {self.pool} has {len(files)} pictures, too few to hold a '
                'fifth of them out: add some.'
            )
        if len(parts['held_out']) < FEW:
            self.say(
                f'Only {len(parts["held_out"])} pictures are held out, so the table '
                'will say little: a pool of some hundred is better.'
            )
        for name, path in lists.items():
            with whole_file(path) as partial:
                partial.write_text(''.join(f'{file}\n' for file in sorted(parts[name])))

    def _train(self, number: int, sets: list[Path], checkpoint: str | None) -> str:
        """Train a round; returns its checkpoint."""
        file, work_dir = self._config_file(number), self._work_dir(number)
        _write_once(file, file_text(self._round_config(number, sets, checkpoint)))
        if not is_trained(work_dir, self.length):
            self._run(number, 'train.py', file, '--work-dir', work_dir, '--resume')
        return newest_checkpoint(work_dir)[0]

    def _round_config(
        self, number: int, sets: list[Path], checkpoint: str | None
    ) -> Config:
        """The config of a round, with the learning rate of a whole training in
        little."""
        config = copy.deepcopy(self.config)
        config.pop('work_dir', None)
        set_budget(config, self.length)
        seed = (config.get('randomness') or {}).get('seed')
        if seed is not None:  # or each round would draw the same images
            config.randomness.seed = seed + number - 1
        if checkpoint is not None:
            config.load_from = checkpoint
        if sets:
            loader = with_background(
                config.train_dataloader,
                self.share,
                _joined_store(sets, self.folder / f'proposals{number}'),
                background_set=[str(path) for path in sets],
            )
            del loader['_delete_']
            config.train_dataloader = loader
            if 'rpn_head' in config.model:
                config.setdefault('default_hooks', ConfigDict())
                config.default_hooks.mined_proposals = dict(
                    type='mmdet_ohem.MinedProposalsHook'
                )
        return config

    def _mine(self, number: int, checkpoint: str, name: str, most: int) -> Path:
        """What the detector of a round gets wrong in one of the lists; returns the
        set."""
        folder = self._work_dir(number) / name
        # The page is written last; a set without one is that of a run that was killed.
        if not (folder / BACKGROUND).with_suffix('.html').exists():
            words = [checkpoint, self.folder / f'{name}.txt', '--out', folder]
            words += ['--score-thr', self.score_thr, '--max-per-image', most]
            words += ['--jobs', self.jobs] if self.jobs else []
            self._run(number, 'mine_background.py', self._config_file(number), *words)
        return folder / BACKGROUND

    def _work_dir(self, number: int) -> Path:
        return self.folder / f'round{number}'

    def _config_file(self, number: int) -> Path:
        # Not in the work dir: there MMEngine writes what it made of a config.
        return self.folder / f'round{number}.py'

    def _run(self, number: int, tool: str, *words) -> None:
        self.say(f'Round {number}: {tool} {" ".join(map(str, words))}')
        run_tool(self.tools / tool, *words)


def table(results: list[dict]) -> str:
    """The results of `Bootstrap.run` in Markdown."""
    lines = [
        '| round | pictures of the pool trained on | false positives per held-out '
        'picture | held-out pictures with a false positive |',
        '|---|---|---|---|',
    ]
    for result in results:
        number = result['pictures']
        lines.append(
            f'| {result["round"]} | {result["background"]} '
            f'| {result["false_positives"] / number:.3f} '
            f'| {result["fired"]} of {number} |'
        )
    return '\n'.join([*lines, ''])


def _write_settings(path: Path, settings: dict) -> None:
    """Write the settings, or find that they are the same; else FileExistsError."""
    there = json.loads(path.read_text()) if path.exists() else settings
    if others := differing(there, settings):
        raise FileExistsError(
            f'{path} is of a bootstrapping with another {others}: choose another '
            '--work-dir, or remove this one.'
        )
    with whole_file(path) as partial:
        partial.write_text(json.dumps(settings))


def _write_once(path: Path, text: str) -> None:
    """Write a file, or find that it says the same.

    Raises:
        FileExistsError: it says something else.
    """
    if path.exists():
        if path.read_text() == text:
            return
        raise FileExistsError(
            f'{path} is of another bootstrapping: choose another --work-dir, or remove '
            'this one.'
        )
    with whole_file(path) as partial:
        partial.write_text(text)


def _joined_store(sets: list[Path], path: Path) -> str:
    """One store of the pictures of several sets, each with the proposals of all."""
    stores = [file.parent / PROPOSALS for file in sets]
    if path.exists():  # whole
        return str(path)

    of_picture: dict[str, list[ProposalStore]] = {}
    for file, store in zip(sets, map(ProposalStore, stores), strict=True):
        for image in read_background(file):
            of_picture.setdefault(image.img_id, []).append(store)
    records = (
        (img_id, clean_boxes(np.concatenate([boxes for boxes, _ in found]), size), size)
        for img_id, holders in of_picture.items()
        for found in [[store.get(img_id) for store in holders]]
        for size in [found[0][1]]
    )
    write_store(path, records, 'false positives of several rounds')
    return str(path)


def _num_pictures(sets: list[Path]) -> int:
    return len({image.img_id for file in sets for image in read_background(file)})


def run_tool(tool: Path, *words) -> None:
    """Run a tool to its end; it says itself how far it is.

    Raises:
        RuntimeError: it failed.
    """
    process = start_tool([str(tool), *map(str, words)])
    try:
        status = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    if status != 0:
        how = 'failed, and said why above'
        if status < 0:
            how = f'was killed by signal {-status} (9: out of memory?)'
        raise RuntimeError(f'{tool.name} {how}; the same command goes on there.')
