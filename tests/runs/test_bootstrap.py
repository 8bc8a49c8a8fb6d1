"""Training in rounds with a pool of pictures without objects."""

import re
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from support.tools import ROOT, run_tool_here, small_rpn_config

from mmdet_ohem.datasets import (
    FalsePositives,
    draw_image,
    read_background,
    read_made_by,
    write_background,
)
from mmdet_ohem.proposals import ProposalStore, write_store
from mmdet_ohem.runs import bootstrap as module
from mmdet_ohem.runs.child import start_tool

TOOL = 'tools/bootstrap.py'
NUMBER = 12


@pytest.fixture(scope='module')
def pool(tmp_path_factory) -> Path:
    """Twelve pictures; two of them are the same."""
    pool = tmp_path_factory.mktemp('pool')
    for i in range(NUMBER - 1):
        image, _ = draw_image(np.random.default_rng(200 + i))
        cv2.imwrite(str(pool / f'{i}.png'), image[:104, :136])
    (pool / 'copy.png').write_bytes((pool / '0.png').read_bytes())
    return pool


@pytest.fixture(scope='module')
def config(lookalikes, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('config')
    return small_rpn_config(folder / 'rpn.py', lookalikes)


class Killed(BaseException):
    """As kill -9, it is caught by nothing."""


@pytest.fixture
def in_this_process(monkeypatch) -> list[str]:
    """Tools run here, which spares their imports; their names are noted."""
    done = []

    def run_here(tool, *words):
        run_tool_here(f'tools/{tool.name}', *words)
        done.append(tool.name)

    monkeypatch.setattr(module, 'run_tool', run_here)
    return done


def words_of(config, pool, work_dir, *others) -> list:
    words = [config, '--pool', pool, '--rounds', 2, '--budget', 5, '--share', 0.5]
    return [*words, '--score-thr', 0.2, '--work-dir', work_dir, *others]


def names_of(path: Path) -> set[str]:
    return {Path(line).name for line in path.read_text().splitlines()}


@pytest.mark.slow
def test_rounds_and_what_they_gain(
    config, pool, tmp_path, in_this_process, monkeypatch, capsys
):
    out = tmp_path / 'out'
    run_tool_here(TOOL, *words_of(config, pool, out))
    looks = ['mine_background.py'] * 2
    assert in_this_process == ['train.py', *looks, 'train.py', looks[0]]

    # The pool is divided for good, and equal pictures are on one side.
    held_out, trained_on = names_of(out / 'held_out.txt'), names_of(out / 'pool.txt')
    assert not held_out & trained_on and held_out and trained_on
    assert held_out | trained_on == {path.name for path in pool.iterdir()}
    assert len({'0.png', 'copy.png'} & held_out) in (0, 2)
    # A fifth of the twelve, or one more for the copy.
    assert len(held_out) in (3, 4)
    said = capsys.readouterr().out
    assert f'Only {len(held_out)} pictures are held out' in said

    # The second round: half of the budget, from the weights of the first, with the
    # pictures of the pool in which that fires.
    first, second = (Config.fromfile(out / f'round{i}.py') for i in (1, 2))
    assert first.train_cfg.max_iters == second.train_cfg.max_iters == 2
    assert first.train_dataloader.dataset.type == 'VOCDataset'
    assert second.load_from == str(out / 'round1' / 'iter_2.pth')
    assert (first.randomness.seed, second.randomness.seed) == (0, 1)
    own, background = second.train_dataloader.dataset.datasets
    assert own == first.train_dataloader.dataset
    mined = out / 'round1' / 'pool' / 'background.jsonl'
    assert background.background_set == [str(mined)]
    assert second.train_dataloader.sampler.source_ratio == [1, 1]
    # An RPN's detector gets the false positives as proposals too.
    assert 'mined_proposals' not in first.default_hooks
    hook = dict(type='mmdet_ohem.MinedProposalsHook')
    assert second.default_hooks.mined_proposals == hook
    assert background.pipeline[-2].store == str(out / 'proposals2')
    images = list(read_background(mined))
    assert {Path(image.file).name for image in images} <= trained_on

    # What each round gains, counted anew.
    rows = (out / 'table.md').read_text().splitlines()[2:]
    assert len(rows) == 2
    for i, row in enumerate(rows, start=1):
        path = out / f'round{i}' / 'held_out' / 'background.jsonl'
        found = list(read_background(path))
        assert {Path(image.file).name for image in found} <= held_out
        number = len(held_out)
        mean = sum(len(image.boxes) for image in found) / number
        background = len(images) if i == 2 else 0
        assert row == f'| {i} | {background} | {mean:.3f} | {len(found)} of {number} |'
    assert rows[1] in said

    # Cut off after each of its processes, the same command goes on.
    in_this_process.clear()
    run_here = module.run_tool

    def run_and_die(tool, *words):
        run_here(tool, *words)
        raise Killed

    monkeypatch.setattr(module, 'run_tool', run_and_die)
    again = tmp_path / 'again'
    for _ in range(5):
        with pytest.raises(Killed):
            run_tool_here(TOOL, *words_of(config, pool, again))
    run_tool_here(TOOL, *words_of(config, pool, again))
    assert in_this_process == ['train.py', *looks, 'train.py', looks[0]]
    assert (again / 'table.md').read_text() == (out / 'table.md').read_text()
    weights = [torch.load(f / 'round2' / 'iter_2.pth') for f in (out, again)]
    for name, values in weights[0]['state_dict'].items():
        assert values.equal(weights[1]['state_dict'][name]), name

    # A mining that was killed behind its set, before its page, is run to its end.
    in_this_process.clear()
    monkeypatch.setattr(module, 'run_tool', run_here)
    page = again / 'round1' / 'pool' / 'background.html'
    page.unlink()
    (page.parent / 'partial').mkdir()
    run_tool_here(TOOL, *words_of(config, pool, again))
    assert in_this_process == looks[:1] and page.exists()
    assert not (page.parent / 'partial').exists()

    # Another one in its place is refused.
    with pytest.raises(
        SystemExit, match='settings.json is of a .* with another rounds and'
    ):
        run_tool_here(TOOL, *words_of(config, pool, again, '--rounds', 3))
    with pytest.raises(SystemExit, match='round1.py is of another bootstrapping'):
        run_tool_here(
            TOOL, *words_of(config, pool, again),
            '--cfg-options', 'model.train_cfg.rcnn.sampler.num=8',
        )  # fmt: skip


def test_a_detector_that_fires_in_nothing_has_nothing_to_learn(
    config, pool, tmp_path, in_this_process, capsys
):
    out = tmp_path / 'out'
    run_tool_here(TOOL, *words_of(config, pool, out, '--score-thr', 1.1))
    said = capsys.readouterr().out
    assert re.search(r'surest detection has a score of 0\.\d+\. The loop ends af', said)
    assert in_this_process == ['train.py', *['mine_background.py'] * 2]
    assert read_made_by(out / 'round1/pool/background.jsonl')['images'] == 0


def test_bad_input_is_one_sentence(config, pool, lookalikes, tmp_path, in_this_process):
    few = tmp_path / 'few'
    few.mkdir()
    (few / 'only.png').write_bytes((pool / '0.png').read_bytes())
    (tmp_path / 'empty').mkdir()
    out = tmp_path / 'out'
    cases = [
        ((few,), 'few has 1 pictures, too few to hold a fifth of them out'),
        ((tmp_path / 'empty',), 'empty has no picture in it'),
        (
            (lookalikes / 'JPEGImages',),
            "10 of the 10 pictures .* the config's data sets",
        ),
        ((pool, '--budget', 1), 'budget is too small for 2 rounds'),
        ((pool, '--share', 0.1), 'batch of 2 images holds none .* at least 10'),
        ((pool, '--share', 25), 'share is 25.*; it must be the fraction of each'),
        ((pool, '--rounds', 0), '--rounds must be 1 or more'),
    ]
    for i, ((pictures, *others), words) in enumerate(cases):
        with pytest.raises(SystemExit, match=words):
            run_tool_here(TOOL, *words_of(config, pictures, out / str(i), *others))
    assert in_this_process == []

    epochs = Config.fromfile(config)
    epochs.train_cfg = dict(by_epoch=True, max_epochs=4)
    (tmp_path / 'epochs.py').write_text(epochs.pretty_text)
    with pytest.raises(SystemExit, match='--share needs a config that counts iter'):
        run_tool_here(TOOL, *words_of(tmp_path / 'epochs.py', pool, out / 'epochs'))


def test_the_proposals_of_several_sets_are_joined(tmp_path):
    """A picture that two sets have gets the proposals of both, each once."""
    size = dict(width=50, height=40)
    box, other, third = ([float(x + i) for x in (1, 2, 20, 30)] for i in range(3))
    stored = [dict(a=[box, other], b=[box]), dict(a=[third, box], c=[other])]
    sets = []
    for i, records in enumerate(stored):
        sets.append(tmp_path / str(i) / 'background.jsonl')
        images = [
            FalsePositives(
                img_id, 'x.jpg', **size, boxes=[box], labels=['a'], scores=[1]
            )
            for img_id in records
        ]
        write_background(sets[-1], dict(classes=['a'], images=2), images)
        write_store(
            sets[-1].parent / 'proposals',
            [(img_id, np.array(boxes), (50, 40)) for img_id, boxes in records.items()],
            source='by hand',
        )
    store = ProposalStore(module._joined_store(sets, tmp_path / 'joined'))
    found = {name: store.get(name)[0].tolist() for name in 'abc'}
    assert found == dict(a=[box, other, third], b=[box], c=[other])
    assert module._num_pictures(sets) == 3


def test_a_process_that_fails_is_named(tmp_path):
    tool = tmp_path / 'train.py'
    tool.write_text('raise SystemExit(3)')
    with pytest.raises(RuntimeError, match='train.py failed, and said why above'):
        module.run_tool(tool)
    tool.write_text('import os; os.kill(os.getpid(), 9)')
    with pytest.raises(RuntimeError, match='train.py was killed by signal 9'):
        module.run_tool(tool)


def test_a_tool_ends_with_the_process_that_started_it(tmp_path):
    """A killed bootstrapping leaves no training behind."""
    child = tmp_path / 'child.py'
    child.write_text("import time\nprint('here', flush=True)\ntime.sleep(1000)\n")
    parent = tmp_path / 'parent.py'
    text = (ROOT / 'mmdet_ohem' / 'runs' / 'child.py').read_text()
    parent.write_text(f'{text}\nstart_tool([{str(child)!r}]).wait()\n')
    process = start_tool([str(parent)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'here\n'
    process.kill()
    # The pipe ends when the child has ended, who would sleep longer than a test may.
    assert process.stdout.read() == ''
    process.wait()
