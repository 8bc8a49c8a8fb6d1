"""tools/train_alternating.sh from the images to the mAP, at small sizes."""

import shutil

import pytest
import torch
from support.tools import ROOT, run_tool

from mmdet_ohem.proposals.store import ProposalStore

SMALL = """
_base_ = {base!r}

from mmdet_ohem.datasets import with_step

here = dict(num_workers=0, persistent_workers=False)
scale = (160, 120)
train_dataloader = with_step(_base_.train_dataloader, 'Resize', scale=scale)
train_dataloader.update(here)
train_dataloader.update(batch_size=1)
train_dataloader['dataset']['data_root'] = {data_root!r}
test_dataloader = with_step(_base_.test_dataloader, 'Resize', scale=scale)
test_dataloader.update(here)
test_dataloader['dataset']['data_root'] = {data_root!r}
default_hooks = dict(checkpoint=dict(interval=1), logger=dict(interval=1))
"""
SMALL_RPN = """
train_cfg = dict(max_iters=2)
model = dict(
    backbone=dict(init_cfg=None),
    rpn_head=dict(feat_channels=8, anchor_generator=dict(scales=[1, 2, 4])),
    test_cfg=dict(rpn=dict(max_per_img=50, min_bbox_size=4)),
)
"""
SMALL_FAST_RCNN = """
val_dataloader = test_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
model = dict(
    backbone=dict(init_cfg=None),
    roi_head=dict(bbox_head=dict(fc_out_channels=(16, 16), init_cfg=None)),
)
"""


@pytest.fixture
def devkit(lookalikes, tmp_path):
    """The demo's images as VOC2007, under names of VOC's classes."""
    voc = tmp_path / 'VOCdevkit' / 'VOC2007'
    shutil.copytree(lookalikes, voc)
    lists = voc / 'ImageSets' / 'Main'
    (lists / 'train.txt').rename(lists / 'trainval.txt')
    names = dict(washer='car', nut='person', gear='sofa')
    for annotation in (voc / 'Annotations').iterdir():
        text = annotation.read_text()
        for name, voc_name in names.items():
            text = text.replace(f'<name>{name}</name>', f'<name>{voc_name}</name>')
        annotation.write_text(text)
    return voc.parent


def backbone(work_dir):
    """Its weights at the end of a training."""
    weights = torch.load(work_dir / 'iter_2.pth', weights_only=True)['state_dict']
    return {name: w for name, w in weights.items() if name.startswith('backbone.')}


@pytest.mark.slow
def test_alternating_training_ends_in_one_conv_network(server, devkit, tmp_path):
    configs = []
    for name, small in (
        ('rpn_vgg16_voc07', SMALL_RPN),
        ('fast_rcnn_vgg16_ohem_voc07', SMALL_FAST_RCNN),
    ):
        base = str(ROOT / 'configs' / f'{name}.py')
        path = tmp_path / f'{name}.py'
        path.write_text(SMALL.format(base=base, data_root=f'{devkit}/') + small)
        configs.append(path)
    work = tmp_path / 'alternating'
    command = ['tools/train_alternating.sh', work, *configs]
    images = str(devkit / 'VOC2007' / 'JPEGImages')

    run = run_tool(*command, python=server.python, IMAGES=images)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('> python') == 12  # 4 trainings, 4 dumps, 4 stores
    assert 'pascal_voc/mAP' in run.stdout

    for rpn in ('rpn1', 'rpn2'):
        assert len(ProposalStore(work / rpn / 'trainval')) == 6
        assert len(ProposalStore(work / rpn / 'test')) == 4
    first, shared = backbone(work / 'rpn1'), backbone(work / 'fast_rcnn1')
    assert first.keys() == shared.keys()
    assert any(not torch.equal(first[name], shared[name]) for name in first)
    for later in (backbone(work / 'rpn2'), backbone(work / 'fast_rcnn2')):
        assert all(torch.equal(later[name], shared[name]) for name in shared)

    # An interrupted run: what is there stays, the rest is made again.
    (work / 'fast_rcnn2' / 'done').unlink()
    (work / 'fast_rcnn2' / 'iter_2.pth').unlink()
    (work / 'fast_rcnn2' / 'last_checkpoint').write_text(
        str(work / 'fast_rcnn2' / 'iter_1.pth')
    )
    again = run_tool(*command, python=server.python, IMAGES=images)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count('> python') == 1 and '--resume' in again.stdout
    assert (work / 'fast_rcnn2' / 'iter_2.pth').exists()


def test_without_a_work_dir_it_says_how_it_is_used():
    run = run_tool('tools/train_alternating.sh', '--help')
    assert run.returncode == 2 and run.stderr.startswith('usage: ')


def test_a_work_dir_that_cfg_options_would_garble_is_refused(tmp_path):
    run = run_tool('tools/train_alternating.sh', tmp_path / 'my runs')
    assert run.returncode == 2 and "my runs' has a space" in run.stderr
    assert not (tmp_path / 'my runs').exists()
