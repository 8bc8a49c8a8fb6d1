"""Configs that hold classes, as MMEngine's pure Python ones do: every check and tool
does with them what it does with the names of the classes."""

import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from studies import iterations
from studies.iterations import BatchMaker, Contender
from support.pure_python import with_classes, write_pure_python
from support.tools import run_tool_here, small_config

from mmdet_ohem.compare import SAMPLERS, fitting_samplers
from mmdet_ohem.compare.config_changes import make_run
from mmdet_ohem.compare.run import Run
from mmdet_ohem.reports import find_hardest
from mmdet_ohem.runs import PictureDetector, check_data, load_detector
from mmdet_ohem.visualization import draw_mined

OHEM = 'fast_rcnn_small_ohem_lookalikes.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('pure')


@pytest.fixture(scope='module')
def named(lookalikes, folder):
    """The config with the names."""
    return Config.fromfile(small_config(folder / 'named.py', lookalikes, OHEM))


@pytest.fixture(scope='module')
def pure_file(named, folder):
    return write_pure_python(folder / 'pure.py', named)


@pytest.fixture(params=['imported by a file', 'the classes themselves'])
def pure(request, named, pure_file):
    if request.param == 'imported by a file':
        return Config.fromfile(pure_file)
    return Config(with_classes(named.to_dict()))


@pytest.fixture(scope='module')
def checkpoint(named, folder):
    init_default_scope('mmdet')
    torch.manual_seed(0)
    detector = MODELS.build(named.model)
    torch.nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=1)
    torch.save(dict(state_dict=detector.state_dict(), meta={}), folder / 'iter_1.pth')
    return folder / 'iter_1.pth'


def test_the_data_are_checked(pure, lookalikes):
    check_data(pure, ('train', 'test'))
    pure.train_dataloader.dataset.metainfo = dict(classes=('bolt',))
    with pytest.raises(ValueError, match='has an object of class'):
        check_data(pure, ('train',))
    pure.train_dataloader.dataset.pipeline.reverse()
    with pytest.raises(ValueError, match='after LoadStoredProposals'):
        check_data(pure, ('train',))


def test_a_trained_detector_looks_at_pictures(pure, named, checkpoint, lookalikes):
    path = sorted((lookalikes / 'JPEGImages').iterdir())[0]
    found = [
        next(PictureDetector(config, checkpoint).run([path]))[1]
        for config in (pure, named)
    ]
    assert len(found[0]) > 0
    torch.testing.assert_close(found[0].bboxes, found[1].bboxes)


def test_what_is_mined_is_drawn_and_ranked(pure, checkpoint):
    detector = load_detector(pure, checkpoint)
    dataset = DATASETS.build(pure.train_dataloader.dataset)
    assert draw_mined(detector, dataset, 0).shape == (600, 800, 3)
    report = find_hardest(detector, dataset, [str(checkpoint)])
    assert len(report.images) == len(dataset)


def test_the_file_of_a_run_trains_and_tests(pure, tmp_path):
    assert fitting_samplers(pure) == list(SAMPLERS)
    run = Run('focal', 0, make_run(pure, 'focal', 0, budget=1), tmp_path / 'run')
    run.prepare()
    run.prepare()  # it is its own run, not another comparison's
    config = Config.fromfile(run.config_file)
    config.work_dir = str(tmp_path / 'work')
    config.experiment_name = config.visualizer.name = str(tmp_path)
    runner = Runner.from_cfg(config)
    runner.train()
    assert 0 <= runner.test()['pascal_voc/mAP'] <= 1


def test_a_class_that_no_file_can_name_is_refused(pure, tmp_path):
    class Sampler:
        pass

    pure.train_dataloader.sampler.type = Sampler
    run = Run('ohem', 0, make_run(pure, 'ohem', 0, budget=1), tmp_path / 'run')
    with pytest.raises(ValueError, match='Sampler.*cannot be imported from'):
        run.prepare()


def test_how_a_run_is_tested_may_change(pure, tmp_path):
    Run('ohem', 0, make_run(pure, 'ohem', 0, None), tmp_path / 'run').prepare()
    pure.test_evaluator.eval_mode = '11points'
    Run('ohem', 0, make_run(pure, 'ohem', 0, None), tmp_path / 'run').prepare()
    assert Config.fromfile(tmp_path / 'run.py').test_evaluator.eval_mode == '11points'
    pure.optim_wrapper.optimizer.lr = 7.0
    with pytest.raises(RuntimeError, match='run.py is of another comparison'):
        Run('ohem', 0, make_run(pure, 'ohem', 0, None), tmp_path / 'run').prepare()


def test_the_benchmark_takes_its_turns(pure):
    assert not Contender('ours', pure, 'net').is_mmdets_ohem
    contender = Contender('ours', pure, 'net')
    for _ in iterations.run([contender], BatchMaker(num_rois=50), 1, 'cpu'):
        pass
    assert len(contender.seconds) == 1


def test_the_tools_take_the_file(pure_file, checkpoint, lookalikes, tmp_path, capsys):
    image = sorted((lookalikes / 'JPEGImages').iterdir())[0]
    for tool, *arguments in (
        ('draw_pictures.py', pure_file, checkpoint, '--num', 1),
        ('hardest_images.py', pure_file, checkpoint),
        ('demo.py', image, '--config', pure_file, '--checkpoint', checkpoint),
        ('test.py', pure_file, checkpoint, '--tta'),
    ):
        run_tool_here(f'tools/{tool}', *arguments, '--work-dir', tmp_path / tool)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob('*.*')}
    assert 'draw_pictures.py/mined.png' in names
    assert 'hardest_images.py/hardest.html' in names
    assert f'demo.py/vis/{image.name}' in names
    assert 'pascal_voc/mAP' in capsys.readouterr().out
