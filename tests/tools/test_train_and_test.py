"""The tools end to end, as a user types them, on a data set of ten images."""

import json
import os
import pickle
import signal
import time

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from support.tools import run_tool, run_tool_here, small_config, start_tool

from mmdet_ohem.visualization.pictures import BACKGROUND, FOREGROUND, GROUND_TRUTH

OHEM = 'fast_rcnn_small_ohem_lookalikes.py'
RANDOM = 'fast_rcnn_small_lookalikes.py'


def losses_of(work_dir) -> dict[int, float]:
    """The loss of each iteration, from MMEngine's log."""
    (log,) = work_dir.glob('*/vis_data/scalars.json')
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line['step']: line['loss'] for line in lines if 'loss' in line}


@pytest.fixture(scope='module')
def trained(lookalikes, tmp_path_factory):
    """A config and the work dir of an unbroken run of six iterations."""
    folder = tmp_path_factory.mktemp('trained')
    config = small_config(folder / 'ohem.py', lookalikes, OHEM)
    run_tool_here('tools/train.py', config, '--work-dir', folder / 'unbroken')
    return config, folder / 'unbroken'


def test_train_writes_losses_and_checkpoints(trained):
    _, work_dir = trained
    losses = losses_of(work_dir)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert all(0 < loss < 100 for loss in losses.values())
    assert (work_dir / 'iter_3.pth').exists() and (work_dir / 'iter_6.pth').exists()


def test_resume_has_the_losses_of_the_unbroken_run(trained, tmp_path):
    config, unbroken = trained
    resumed = tmp_path / 'resumed'
    checkpoint = unbroken / 'iter_3.pth'
    run_tool_here(
        'tools/train.py', config, '--work-dir', resumed, '--resume', checkpoint
    )
    expected = losses_of(unbroken)
    assert losses_of(resumed) == {step: expected[step] for step in (4, 5, 6)}


def test_resume_of_random_sampling_draws_the_same_rois(lookalikes, tmp_path):
    config = small_config(tmp_path / 'random.py', lookalikes, RANDOM)
    run_tool_here('tools/train.py', config, '--work-dir', tmp_path / 'a')
    checkpoint = tmp_path / 'a' / 'iter_3.pth'
    run_tool_here(
        'tools/train.py', config, '--work-dir', tmp_path / 'b', '--resume', checkpoint
    )
    expected = losses_of(tmp_path / 'a')
    assert losses_of(tmp_path / 'b') == {step: expected[step] for step in (4, 5, 6)}


def test_resume_without_a_checkpoint_starts_with_the_weights_of_load_from(
    trained, tmp_path
):
    config, unbroken = trained
    options = ['--cfg-options', f'load_from={unbroken / "iter_6.pth"}']
    run_tool_here(
        'tools/train.py', config, '--work-dir', tmp_path, '--resume', *options
    )
    losses = losses_of(tmp_path)
    assert list(losses) == [1, 2, 3, 4, 5, 6]
    assert losses[1] != losses_of(unbroken)[1]


def test_test_evaluates_the_checkpoint_in_a_new_process(trained, tmp_path):
    config, work_dir = trained
    (tmp_path / 'old.pkl').write_text('old')
    os.link(tmp_path / 'old.pkl', tmp_path / 'detections.pkl')
    run = run_tool(
        'tools/test.py',
        config,
        work_dir / 'iter_6.pth',
        '--work-dir',
        tmp_path,
        '--out',
        tmp_path / 'detections.pkl',
        '--show-dir',
        'pictures',
    )
    assert run.returncode == 0, run.stderr
    assert 'pascal_voc/mAP' in run.stdout
    (pictures,) = tmp_path.glob('*/pictures')
    assert f'Wrote pictures of the detections to {pictures}.' in run.stdout
    with open(tmp_path / 'detections.pkl', 'rb') as file:
        assert len(pickle.load(file)) == 4
    # Replaced, not written over: at every moment it is whole.
    assert (tmp_path / 'old.pkl').read_text() == 'old'
    assert len(list(tmp_path.glob('*/pictures/*.jpg'))) == 4


def test_tta_flips_proposals_too(trained, tmp_path, capfd):
    config, work_dir = trained
    test_config = Config.fromfile(config)
    init_default_scope('mmdet')
    dataset = DATASETS.build(
        test_config.test_dataloader.dataset | dict(pipeline=test_config.tta_pipeline)
    )
    flipped, plain = (sample.proposals.bboxes for sample in dataset[0]['data_samples'])
    x1, y1, x2, y2 = plain.unbind(dim=1)
    torch.testing.assert_close(flipped, torch.stack([400 - x2, y1, 400 - x1, y2], 1))

    run_tool_here(
        'tools/test.py',
        config,
        work_dir / 'iter_6.pth',
        '--work-dir',
        tmp_path,
        '--tta',
    )
    assert 'pascal_voc/mAP' in capfd.readouterr().out


SAVE_WEIGHTS = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class SaveWeights(Hook):
    def __init__(self, folder):
        self.folder = folder
    def after_train(self, runner):
        weights = runner.model.module.state_dict()
        torch.save(weights, f'{self.folder}/rank{runner.rank}.pth')
"""


@pytest.mark.slow
def test_two_cpu_processes_end_with_the_same_weights(server, lookalikes, tmp_path):
    (tmp_path / 'save_weights.py').write_text(SAVE_WEIGHTS)
    config = small_config(
        tmp_path / 'ohem.py',
        lookalikes,
        OHEM,
        "custom_imports = dict(imports=['save_weights'])\n"
        "test_evaluator = [_base_.test_evaluator, dict(type='mmdet_ohem.FROCMetric')]\n"
        "custom_hooks = [dict(type='mmdet_ohem.SeedEachIterationHook'),\n"
        f"    dict(type='SaveWeights', folder={str(tmp_path)!r})]\n",
    )
    run = run_tool(
        'tools/dist_train.sh',
        config,
        2,
        '--work-dir',
        tmp_path / 'work',
        python=server.python,
        PYTHONPATH=str(tmp_path),
        PORT='29517',
    )
    assert run.returncode == 0, run.stderr
    one, other = (
        torch.load(tmp_path / f'rank{rank}.pth', weights_only=True) for rank in (0, 1)
    )
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name

    # Three images for two processes, so that one is padded.
    images = sorted((lookalikes / 'JPEGImages').iterdir())[:3]
    (tmp_path / 'empty.txt').write_text(''.join(f'{image}\n' for image in images))
    options = ['--background', tmp_path / 'empty.txt']
    options += ['--background-proposals', lookalikes / 'proposals', '--work-dir']
    checkpoint = tmp_path / 'work' / 'iter_6.pth'
    tested = run_tool(
        *('tools/dist_test.sh', config, checkpoint, 2, *options, tmp_path / 'two'),
        python=server.python,
        PYTHONPATH=str(tmp_path),
        PORT='29518',
    )
    assert tested.returncode == 0, tested.stderr
    assert 'pascal_voc/mAP' in tested.stdout
    by_one = run_tool(
        *('tools/test.py', config, checkpoint, *options, tmp_path / 'one'),
        python=server.python,
        PYTHONPATH=str(tmp_path),
    )
    assert by_one.returncode == 0, by_one.stderr
    of_two, of_one = (
        json.loads(next((tmp_path / name).glob('*/*.json')).read_text())
        for name in ('two', 'one')
    )
    for key, value in of_one.items():
        if key.startswith(('froc/', 'background/')):
            assert of_two[key] == pytest.approx(value, nan_ok=True), key
    assert of_one['background/highest_fp_per_image'] > 0


def test_pictures_show_colours_of_foreground_and_background(trained, tmp_path):
    config, work_dir = trained
    run_tool_here(
        'tools/draw_pictures.py',
        config,
        work_dir / 'iter_6.pth',
        '--work-dir',
        tmp_path,
        '--num',
        2,
    )
    strip = 48
    for name, shape in (
        ('detections.png', (600 + strip, 2 * 800, 3)),
        # The first checkpoint beside the last one, with titles.
        ('mined.png', (600 + 2 * strip, 4 * 800, 3)),
    ):
        picture = cv2.imread(str(tmp_path / name))[..., ::-1].astype(int)
        assert picture.shape == shape, name
        picture = picture[:-strip]  # without the legend
        shown = {
            colour
            for colour in (GROUND_TRUTH, FOREGROUND, BACKGROUND)
            if (np.abs(picture - colour).max(axis=2) < 40).sum() > 200
        }
        expected = {GROUND_TRUTH, FOREGROUND, BACKGROUND} if name == 'mined.png' else ()
        assert shown >= set(expected), name


@pytest.mark.slow
def test_a_killed_comparison_goes_on_and_ends_as_an_unbroken_one(
    server, lookalikes, tmp_path
):
    config = small_config(tmp_path / 'ohem.py', lookalikes, OHEM)
    samplers = ['random', 'ohem-per-label']
    empty = lookalikes / 'JPEGImages' / '*1.jpg'  # two images

    def command(folder):
        words = ['tools/compare_samplers.py', config, '--samplers', *samplers]
        words += ['--seeds', 0, '--budget', 10, '--jobs', 2, '--background', empty]
        words += ['--background-proposals', lookalikes / 'proposals']
        return [*words, '--work-dir', tmp_path / folder]

    unbroken = run_tool(*command('unbroken'), python=server.python)
    assert unbroken.returncode == 0, unbroken.stderr
    table = (tmp_path / 'unbroken' / 'table.md').read_text()
    assert table in unbroken.stdout
    for words in ('random, bg_lo 0.1', 'nms_per_label=True', 'per empty image at rec'):
        assert words in table

    killed = start_tool(*command('killed'), python=server.python)
    first = tmp_path / 'killed' / 'random-seed0'
    while not (first / 'last_checkpoint').exists() and killed.poll() is None:
        time.sleep(0.05)
    killed.send_signal(signal.SIGINT)
    _, stderr = killed.communicate()
    assert killed.returncode == 1 and 'Interrupted' in stderr
    assert not (first / 'result.json').exists()
    assert not (tmp_path / 'killed' / 'table.md').exists()

    again = run_tool(*command('killed'), python=server.python)
    assert again.returncode == 0, again.stderr
    assert len(list(first.glob('*/vis_data'))) == 2, 'two starts'

    def what_was_learnt(folder):
        results = json.loads((tmp_path / folder / 'results.json').read_text())
        return [(r['sampler'], r['mAP'], r['loss_all_rois']) for r in results]

    assert what_was_learnt('killed') == what_was_learnt('unbroken')


def test_pictures_need_the_sampler_whose_rois_they_show(trained, lookalikes, tmp_path):
    _, work_dir = trained
    config = small_config(tmp_path / 'random.py', lookalikes, RANDOM)
    with pytest.raises(SystemExit, match='has no mmdet_ohem.OHEMSampler'):
        run_tool_here('tools/draw_pictures.py', config, work_dir / 'iter_6.pth')
    one_stage = tmp_path / 'one_stage.py'
    text = f'_base_ = {str(config)!r}\nmodel = dict(train_cfg=dict(_delete_=True))\n'
    one_stage.write_text(text)
    with pytest.raises(SystemExit, match='has no mmdet_ohem.OHEMSampler'):
        run_tool_here('tools/draw_pictures.py', one_stage, work_dir / 'iter_6.pth')


@pytest.mark.parametrize(
    'command, words',
    [
        (
            ['tools/train.py', 'configs/nothing.py'],
            'There is no config configs/nothing',
        ),
        (
            [
                'tools/train.py',
                'configs/fast_rcnn_vgg16_ohem_voc07.py',
                '--cfg-options',
                'train_dataloader.dataset.data_root=nowhere',
            ],
            'nowhere/VOC2007/ImageSets/Main/trainval.txt, the list of train images, is '
            'missing. Correct train_dataloader.dataset.data_root',
        ),
        (
            [
                'tools/test.py',
                f'configs/{OHEM}',
                'nothing.pth',
                '--cfg-options',
                'test_dataloader.dataset.data_root=nowhere',
            ],
            'nowhere/ImageSets/Main/test.txt.*Correct test_dataloader.dataset.data_r',
        ),
    ],
)
def test_what_is_missing_is_said_in_one_sentence(command, words, tmp_path):
    with pytest.raises(SystemExit, match=words):
        run_tool_here(command[0], command[1], '--work-dir', tmp_path, *command[2:])


def test_amp_without_a_gpu_is_refused_in_one_sentence(trained, tmp_path):
    config, _ = trained
    with pytest.raises(SystemExit, match='^--amp needs a CUDA GPU'):
        run_tool_here('tools/train.py', config, '--amp', '--work-dir', tmp_path)
