"""Commands that are killed at random moments, again and again, end as if they had not
been; and those for which there is no room, no right, or no place say so.

With MMDET_OHEM_FUZZ=1000 (`make fuzz`) each command is killed 20 times, and the
commands that take long are as well. docs/reliability.md has the counts.
"""

import json
import os
import re
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import dump
from support.forked_tools import processes_of
from support.tools import (
    run_tool_here,
    save_untrained,
    small_config,
    small_rpn_config,
)

from mmdet_ohem.checkpoint import check_resumable, newest_checkpoint
from mmdet_ohem.datasets import draw_image
from mmdet_ohem.proposals import ProposalStore, write_store

FUZZ = int(os.environ.get('MMDET_OHEM_FUZZ', 0))
KILLS = max(1, FUZZ // 50)
SEED = 20160627
OHEM = 'fast_rcnn_small_ohem_lookalikes.py'

pytestmark = pytest.mark.skipif(
    not Path('/proc/self/stat').exists(), reason='processes are found by /proc'
)
on_demand = pytest.mark.skipif(not FUZZ, reason='takes minutes: make fuzz')


@pytest.fixture(scope='module')
def config(lookalikes, tmp_path_factory):
    """Trains eight iterations, each with a checkpoint, of which the last two stay."""
    return small_config(
        tmp_path_factory.mktemp('config') / 'ohem.py',
        lookalikes,
        OHEM,
        'default_hooks = dict(logger=dict(interval=1),\n'
        '    checkpoint=dict(interval=1, max_keep_ckpts=2))\n'
        'train_cfg = dict(max_iters=8, val_interval=8)\n',
    )


@pytest.fixture(scope='module')
def trained(server, config, tmp_path_factory):
    """The work dir of an unbroken training, and the seconds that it took."""
    work_dir = tmp_path_factory.mktemp('trained') / 'ohem'
    start = time.monotonic()
    status, said = server.run('tools/train.py', config, '--work-dir', work_dir)
    assert status == 0, said
    return work_dir, time.monotonic() - start


def kill_often(server, make_command, seconds: float, check) -> None:
    """Kill a command KILLS times, and start it again until it ends by itself.

    Args:
        make_command: makes the words of a command that has a new folder to work in.
        seconds: that the command takes; it is killed before.
        check: is given the folder after each kill, and whether the command has ended.
    """
    rng = np.random.default_rng(SEED)
    kills = rounds = 0
    while kills < KILLS:
        command, folder = make_command(rounds)
        rounds += 1
        status = None
        while status is None:
            pid = server.start(*command)
            if kills < KILLS:
                delay = rng.uniform(0, seconds)
                status = server.wait(pid, delay)
            else:
                status = server.wait(pid)
            if status is None:
                os.kill(pid, signal.SIGKILL)
                status = server.wait(pid)
            if status == -signal.SIGKILL:  # it had not just ended
                kills, status = kills + 1, None
                print(f'seed {SEED}, kill {kills} after {delay:.3f} s')
                assert_nobody_is_left(pid)
            else:
                assert status == 0, server.log.read_text()
            check(folder, ended=status is not None)
    print(f'{kills} kills, {rounds} results, all as unbroken: {command[0]}')


def assert_nobody_is_left(session: int, seconds: float = 600) -> None:
    """A fork server finishes its imports before it looks, which may take minutes where
    others have the processors."""
    end = time.monotonic() + seconds
    while left := processes_of(session):
        assert time.monotonic() < end, f'{left} are alive'
        time.sleep(0.02)


def content(store: Path) -> dict:
    """Everything that a store holds."""
    opened = ProposalStore(store)
    ids = np.load(store / 'ids.npy').tolist()
    return {
        img_id: (boxes.tolist(), size)
        for img_id in ids
        for boxes, size in [opened.get(img_id)]
    }


def test_selective_search(server, lookalikes, tmp_path):
    expected = content(lookalikes / 'proposals')
    seconds = 12.0  # with two cores to itself

    def make_command(number):
        out = tmp_path / str(number) / 'store'
        words = ['tools/prepare_proposals.py', 'selective-search', '--out', out]
        return [*words, '--images', lookalikes / 'JPEGImages', '--workers', 2], out

    if KILLS > 1:  # it pays to know
        start = time.monotonic()
        server.run(*make_command('unbroken')[0])
        seconds = time.monotonic() - start

    def check(out, ended):
        if ended or out.exists():
            assert content(out) == expected
        if ended:
            assert [path.name for path in out.parent.iterdir()] == ['store']

    kill_often(server, make_command, seconds, check)


@pytest.fixture
def dumped(tmp_path, lookalikes):
    """Boxes of every image, as MMDetection dumps them."""
    boxes = {
        path.stem: dict(bboxes=np.array([[i, 0, i + 9, 9 + j] for j in range(200)]))
        for i, path in enumerate(sorted((lookalikes / 'JPEGImages').iterdir()))
    }
    dump(boxes, str(tmp_path / 'rpn.pkl'))
    return tmp_path / 'rpn.pkl'


def test_a_store_that_is_replaced(server, dumped, lookalikes, tmp_path):
    """It is the old one or the new one, also behind a link."""
    old = [('old', np.array([[0, 0, 9, 9]]), (10, 10))]
    images = ['--images', lookalikes / 'JPEGImages']
    words = ['tools/prepare_proposals.py', 'dump', dumped, *images, '--out']
    status, said = server.run(*words, tmp_path / 'new')
    assert status == 0, said
    expected = content(tmp_path / 'new')

    def make_command(number):
        disk = tmp_path / str(number)
        write_store(disk / 'store', old, source='old')
        (disk / 'link').symlink_to(disk / 'store')
        return [*words, disk / 'link', '--overwrite'], disk

    def check(disk, ended):
        assert (disk / 'link').is_symlink()
        found = content(disk / 'link')
        if 'old' not in found or ended:
            assert found == expected
        if ended:
            assert {path.name for path in disk.iterdir()} == {'link', 'store'}

    kill_often(server, make_command, 0.5, check)


def assert_same_training(work_dir: Path, unbroken: Path) -> None:
    for folder in (work_dir, unbroken):
        names = {path.name for path in folder.iterdir() if path.is_file()}
        assert names == {'iter_7.pth', 'iter_8.pth', 'last_checkpoint', 'ohem.py'}
    ours, expected = (
        torch.load(folder / 'iter_8.pth') for folder in (work_dir, unbroken)
    )
    for name, weight in expected['state_dict'].items():
        assert weight.equal(ours['state_dict'][name]), name
    momenta, others = (file['optimizer']['state'] for file in (expected, ours))
    assert momenta.keys() == others.keys()
    for key, state in momenta.items():
        assert state['momentum_buffer'].equal(others[key]['momentum_buffer']), key


def test_training(server, config, trained, tmp_path):
    unbroken, seconds = trained

    def make_command(number):
        work_dir = tmp_path / str(number)
        words = ['tools/train.py', config, '--work-dir', work_dir, '--resume']
        return words, work_dir

    def check(work_dir, ended):
        for checkpoint in work_dir.glob('*.pth'):
            if 'partial' not in checkpoint.name:
                check_resumable(checkpoint)
        if (work_dir / 'last_checkpoint').exists():
            named = (work_dir / 'last_checkpoint').read_text()
            assert newest_checkpoint(work_dir) == (named, '')
        if ended:
            assert_same_training(work_dir, unbroken)

    kill_often(server, make_command, seconds, check)


def test_a_training_goes_on_beside_a_damaged_checkpoint(
    server, config, trained, tmp_path
):
    unbroken, _ = trained
    work_dir = tmp_path / 'ohem'
    subprocess.run(['cp', '-r', unbroken, work_dir], check=True)
    last = work_dir / 'iter_8.pth'
    last.write_bytes(last.read_bytes()[:5000])
    (work_dir / 'last_checkpoint').write_text(str(last))
    command = ['tools/train.py', config, '--work-dir', work_dir, '--resume']
    status, said = server.run(*command, last)
    assert status == 1 and 'iter_8.pth cannot be read as a checkpoint' in said
    assert len(said.splitlines()) == 1
    status, said = server.run(*command)
    assert status == 0, said
    assert f'goes on from {work_dir / "iter_7.pth"}.' in said
    assert_same_training(work_dir, unbroken)


def test_hardest_images(server, config, trained, tmp_path):
    trained, _ = trained
    names = ('hardest.json', 'hardest.csv', 'hardest.html')
    words = ['tools/hardest_images.py', config, trained, '--work-dir']
    start = time.monotonic()
    status, said = server.run(*words, tmp_path / 'unbroken')
    seconds = time.monotonic() - start
    assert status == 0, said
    expected = {name: (tmp_path / 'unbroken' / name).read_text() for name in names}

    def make_command(number):
        return [*words, tmp_path / str(number)], tmp_path / str(number)

    def check(folder, ended):
        for name in names:
            if ended or (folder / name).exists():
                assert (folder / name).read_text() == expected[name]
        if ended:
            assert {path.name for path in folder.iterdir()} == set(names)

    kill_often(server, make_command, seconds, check)


@on_demand
def test_a_comparison(server, config, tmp_path):
    words = ['tools/compare_samplers.py', config, '--samplers', 'random', 'ohem']
    words += ['--seeds', 0, '--budget', 10, '--jobs', 2, '--work-dir']
    start = time.monotonic()
    status, said = server.run(*words, tmp_path / 'unbroken')
    seconds = time.monotonic() - start
    assert status == 0, said

    def learnt(folder):
        results = json.loads((folder / 'results.json').read_text())
        return [(r['sampler'], r['mAP'], r['loss_all_rois']) for r in results]

    def make_command(number):
        return [*words, tmp_path / str(number)], tmp_path / str(number)

    def check(folder, ended):
        for result in folder.glob('*/result.json'):
            json.loads(result.read_text())
        if ended:
            assert learnt(folder) == learnt(tmp_path / 'unbroken')

    kill_often(server, make_command, seconds, check)


@pytest.fixture(scope='module')
def pool(tmp_path_factory):
    """Twenty pictures without objects, and a file that is none."""
    pool = tmp_path_factory.mktemp('pool')
    for i in range(20):
        image, _ = draw_image(np.random.default_rng(300 + i))
        cv2.imwrite(str(pool / f'{i}.png'), image[:104, :136])
    (pool / 'broken.png').write_text('no picture')
    return pool


@pytest.fixture(scope='module')
def with_rpn(lookalikes, tmp_path_factory):
    """Trains eight iterations, each with a checkpoint."""
    folder = tmp_path_factory.mktemp('rpn')
    return small_rpn_config(
        folder / 'rpn.py',
        lookalikes,
        'default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2))\n',
    )


@pytest.mark.parametrize(
    'jobs, needs_boxes',
    [
        (1, False),
        pytest.param(1, True, marks=on_demand),
        pytest.param(2, False, marks=on_demand),
        pytest.param(2, True, marks=on_demand),
    ],
)
def test_mining(server, config, with_rpn, pool, tmp_path, jobs, needs_boxes):
    """By a detector with an RPN, and by one that needs boxes of Selective Search."""
    detector = config if needs_boxes else with_rpn
    weights = save_untrained(Config.fromfile(detector), tmp_path / 'weights.pth')
    words = ['tools/mine_background.py', detector, weights, pool, '--jobs', jobs]
    start = time.monotonic()
    status, said = server.run(*words, '--out', tmp_path / 'unbroken')
    seconds = time.monotonic() - start
    assert status == 0, said

    def mined(out):
        """What is there of a result; the page says where it is."""
        store = out / 'proposals'
        return ([content(store)] if store.exists() else []) + [
            path.read_text().replace(str(out), 'OUT')
            for path in (out / 'background.jsonl', out / 'background.html')
            if path.exists()
        ]

    expected = mined(tmp_path / 'unbroken')
    assert len(expected) == 3 and len(expected[-2].splitlines()) > 8

    def make_command(number):
        out = tmp_path / str(number) / 'out'
        return [*words, '--out', out], out

    def check(out, ended):
        found = mined(out)  # in the order in which they are written
        assert found == (expected if ended else expected[: len(found)])
        if ended:
            names = {path.name for path in (tmp_path / 'unbroken').iterdir()}
            assert {path.name for path in out.iterdir()} == names
            assert [path.name for path in out.parent.iterdir()] == ['out']

    kill_often(server, make_command, seconds, check)


@on_demand
def test_mining_goes_on_without_a_worker_that_was_killed(
    server, with_rpn, pool, tmp_path
):
    weights = save_untrained(Config.fromfile(with_rpn), tmp_path / 'weights.pth')
    words = ['tools/mine_background.py', with_rpn, weights, pool, '--out']
    status, said = server.run(*words, tmp_path / 'unbroken')
    assert status == 0, said

    server.log.unlink()
    pid = server.start(*words, tmp_path / 'out', '--jobs', 2)
    workers = []
    while len(workers) < 2:
        assert server.wait(pid, 0.01) is None
        commands = {p: Path(f'/proc/{p}/cmdline') for p in processes_of(pid)}
        workers = [p for p, c in commands.items() if b'spawn_main' in c.read_bytes()]
    os.kill(workers[0], signal.SIGKILL)
    assert server.wait(pid) == 1
    last = server.log.read_text().splitlines()[-1]
    assert last == 'A process was killed (out of memory?): try with fewer --jobs.'
    assert_nobody_is_left(pid)
    lines = (tmp_path / 'out' / 'partial' / 'results.jsonl').read_text().splitlines()
    assert len(lines) in (10, 11)  # the other's half
    status, said = server.run(*words, tmp_path / 'out')
    assert status == 0, said
    sets = [tmp_path / name / 'background.jsonl' for name in ('unbroken', 'out')]
    assert sets[0].read_text() == sets[1].read_text()


@on_demand
def test_bootstrapping(server, with_rpn, pool, tmp_path):
    words = ['tools/bootstrap.py', with_rpn, '--pool', pool, '--rounds', 2]
    words += ['--budget', 8, '--share', 0.5, '--score-thr', 0.2, '--work-dir']
    start = time.monotonic()
    status, said = server.run(*words, tmp_path / 'unbroken')
    seconds = time.monotonic() - start
    assert status == 0, said

    def names(out):
        """Of all files, but for MMEngine's logs, which have the time in their name."""
        paths = {path.relative_to(out) for path in out.rglob('*') if path.is_file()}
        return {path for path in paths if not re.match(r'round\d/\d+_\d+/', str(path))}

    def mined(out):
        """Of each set that is there, the pictures."""
        return {
            path.relative_to(out): path.read_text().splitlines()[1:]
            for path in out.glob('*/*/background.jsonl')
        }

    def weights(out):
        return [
            torch.load(out / f'round{i}' / 'iter_4.pth')['state_dict'] for i in (1, 2)
        ]

    unbroken = tmp_path / 'unbroken'
    expected_sets, expected_weights = mined(unbroken), weights(unbroken)
    assert len(expected_sets) == 3

    def make_command(number):
        return [*words, tmp_path / str(number)], tmp_path / str(number)

    def check(out, ended):
        for checkpoint in out.glob('*/*.pth'):
            if 'partial' not in checkpoint.name:
                check_resumable(checkpoint)
        found = mined(out)
        assert found == {path: expected_sets[path] for path in found}
        if not ended:
            return
        assert names(out) == names(unbroken)
        assert found == expected_sets
        assert (out / 'table.md').read_text() == (unbroken / 'table.md').read_text()
        for ours, expected in zip(weights(out), expected_weights, strict=True):
            assert ours.keys() == expected.keys()
            for name, weight in expected.items():
                assert weight.equal(ours[name]), name

    kill_often(server, make_command, seconds, check)


def test_a_search_in_use_is_refused_and_sigterm_takes_its_workers_along(
    server, lookalikes, tmp_path
):
    out = tmp_path / 'store'
    words = ['tools/prepare_proposals.py', 'selective-search', '--out', out]
    words += ['--images', lookalikes / 'JPEGImages', '--quality']
    pid = server.start(*words)
    while not list(tmp_path.glob('store.partial/*/*.npy')):
        assert server.wait(pid, 0.01) is None
    with pytest.raises(SystemExit, match='partial is in use: a search for .*store is'):
        run_tool_here(*words)
    os.kill(pid, signal.SIGTERM)
    assert server.wait(pid) == -signal.SIGTERM
    assert_nobody_is_left(pid)
    assert not out.exists()


def test_a_comparison_in_use_is_refused(tmp_path, config):
    from mmdet_ohem.whole_file import only_one

    with (
        only_one(tmp_path, 'a comparison'),
        pytest.raises(SystemExit, match='is in use: a comparison is running there'),
    ):
        run_tool_here('tools/compare_samplers.py', config, '--work-dir', tmp_path)


def test_a_training_for_which_there_is_no_room(server, config, trained, tmp_path):
    unbroken, _ = trained
    size = (unbroken / 'iter_8.pth').stat().st_size
    command = ['tools/train.py', config, '--work-dir', tmp_path, '--resume']
    status, said = server.run(*command, max_file=size // 2)
    assert status == 1 and 'Traceback' not in said, said
    last = said.splitlines()[-1]
    assert 'iter_1.pth cannot be written (File too large): make room' in last
    assert not list(tmp_path.glob('*.pth')) + list(tmp_path.glob('last_checkpoint'))


def test_a_report_and_a_store_for_which_there_is_no_room(
    server, config, trained, dumped, lookalikes, tmp_path
):
    weights = trained[0] / 'iter_8.pth'
    commands = {
        'hardest.html': ['tools/hardest_images.py', config, trained[0], '--work-dir'],
        'detections.png': ['tools/draw_pictures.py', config, weights, '--work-dir'],
        'store': [
            *('tools/prepare_proposals.py', 'dump', dumped),
            *('--images', lookalikes / 'JPEGImages', '--out'),
        ],
    }
    for name, words in commands.items():
        folder = tmp_path / name
        folder.mkdir()
        target = folder / name if name == 'store' else folder
        status, said = server.run(*words, target, max_file=3000)
        assert status == 1 and 'Traceback' not in said, said
        last = said.splitlines()[-1]
        assert str(folder) in last and 'cannot be written (File too large)' in last
        assert not [path for path in folder.iterdir() if 'hardest' not in path.name]


@contextmanager
def mounted(folder: Path, *options: str):
    """A small disk in memory, where the system lets us mount one."""
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', folder]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip('no disk can be mounted here')
    try:
        yield folder
    finally:
        subprocess.run(['umount', folder], check=True)


@on_demand
def test_a_training_goes_on_when_a_full_disk_has_room_again(
    server, config, trained, tmp_path
):
    unbroken, _ = trained
    size = (unbroken / 'iter_8.pth').stat().st_size
    with mounted(tmp_path / 'disk', f'size={int(2.5 * size)}') as disk:
        command = ['tools/train.py', config, '--work-dir', disk, '--resume']
        status, said = server.run(*command)
        assert status == 1
        assert 'cannot be written (No space left on device)' in said.splitlines()[-1]
        subprocess.run(['mount', '-o', f'remount,size={10 * size}', disk], check=True)
        status, said = server.run(*command)
        assert status == 0, said
        assert_same_training(disk, unbroken)


@on_demand
def test_full_and_read_only_disks_are_said(
    server, config, trained, dumped, lookalikes, tmp_path
):
    images = ['--images', lookalikes / 'JPEGImages']
    prepare = 'tools/prepare_proposals.py'
    commands = [
        [prepare, 'dump', dumped, *images, '--out', 'store'],
        [prepare, 'selective-search', *images, '--out', 'store'],
        ['tools/hardest_images.py', config, trained[0], '--work-dir', 'work'],
        ['tools/train.py', config, '--work-dir', 'work'],
        ['tools/compare_samplers.py', config, '--work-dir', 'work'],
    ]
    for options in (['ro'], ['size=4k']):
        for number, command in enumerate(commands):
            with mounted(tmp_path / f'{options[0]}{number}', *options) as disk:
                status, said = server.run(*command[:-1], disk / command[-1])
                assert status == 1
                last = said.splitlines()[-1]
                assert str(disk) in last and 'cannot be written' in last, said
                print(last)
