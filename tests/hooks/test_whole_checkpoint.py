"""Checkpoints of a training that is stopped at every point where it writes one."""

from pathlib import Path

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmdet_ohem.checkpoint import newest_checkpoint
from mmdet_ohem.hooks import whole_checkpoint as module
from mmdet_ohem.whole_file import only_one

OURS = module.WholeCheckpointHook


class Stop(BaseException):
    """What a kill is, for the files."""


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1000))

    def forward(self, inputs, mode='tensor'):
        return dict(loss=((self.weight - inputs.mean()) ** 2).sum())


def train(work_dir, hook, resume_from: str | None = None, **changes) -> Runner:
    """Ten iterations of a small model."""
    runner = Runner(
        model=Line(),
        work_dir=str(work_dir),
        experiment_name=f'{work_dir.name}{id(changes)}',
        train_dataloader=dict(
            batch_size=1,
            num_workers=0,
            dataset=list(torch.arange(1.0, 5.0)),
            sampler=dict(type='InfiniteSampler', shuffle=False),
        ),
        train_cfg=dict(by_epoch=False, max_iters=10),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_scope='mmengine',
        default_hooks=dict(
            checkpoint=dict(type=hook, by_epoch=False, interval=1, **changes)
        ),
        resume=resume_from is not None,
        load_from=resume_from,
        log_level='ERROR',
    )
    runner.train()
    return runner


def names(folder) -> set[str]:
    files = (path.name for path in Path(folder).iterdir() if path.is_file())
    return {name for name in files if not name.endswith('.py')}  # named by the time


def weight_of(checkpoint) -> list[float]:
    return torch.load(checkpoint)['state_dict']['weight'].tolist()


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
    """The work dir of a training with MMEngine's own hook."""
    folder = tmp_path_factory.mktemp('mmengines')
    train(folder, 'CheckpointHook', max_keep_ckpts=2)
    return folder


def test_it_leaves_what_mmengines_hook_leaves(unbroken, tmp_path):
    train(tmp_path, OURS, max_keep_ckpts=2)
    assert names(tmp_path) == names(unbroken) >= {'iter_9.pth', 'iter_10.pth'}
    last = (tmp_path / 'last_checkpoint').read_text()
    assert last == str(tmp_path / 'iter_10.pth')
    ours, theirs = torch.load(last), torch.load(unbroken / 'iter_10.pth')
    assert ours.keys() == theirs.keys()
    assert ours['state_dict']['weight'].equal(theirs['state_dict']['weight'])


@pytest.mark.parametrize('keep', [1, 2])
@pytest.mark.parametrize('point', ['the checkpoint', 'last_checkpoint', 'the removal'])
def test_a_stop_while_it_saves(point, keep, unbroken, tmp_path, monkeypatch):
    """The fourth time that it does."""
    if point == 'the checkpoint':
        target, name = module.WholeFileBackend, 'put'

        def stop(*args):
            content, path = args[-2:]
            with module.whole_file(path) as partial:
                partial.write_bytes(content[: len(content) // 2])
                raise Stop
    else:
        target = module.WholeCheckpointHook
        name = '_write_last' if point == 'last_checkpoint' else '_remove'

        def stop(*args):
            raise Stop

    done, calls = getattr(target, name), []

    def fourth(*args):
        calls.append(args)
        return stop(*args) if len(calls) == 4 else done(*args)

    monkeypatch.setattr(target, name, fourth)
    with pytest.raises(Stop):
        train(tmp_path, OURS, max_keep_ckpts=keep)
    monkeypatch.undo()

    for path in tmp_path.glob('*.pth'):
        weight_of(path)
    checkpoint, _ = newest_checkpoint(tmp_path)
    assert checkpoint == (tmp_path / 'last_checkpoint').read_text()
    train(tmp_path, OURS, checkpoint, max_keep_ckpts=keep)
    kept = sorted(tmp_path.glob('*.pth'))
    assert len(kept) == keep and kept[0].name == 'iter_10.pth'
    assert weight_of(kept[0]) == weight_of(unbroken / 'iter_10.pth')


def test_the_best_checkpoint_is_written_whole_as_well(tmp_path, monkeypatch):
    runner = train(tmp_path, OURS, save_best='loss', rule='less')
    hook = next(h for h in runner.hooks if isinstance(h, module.WholeCheckpointHook))
    written = []
    monkeypatch.setattr(
        module.WholeFileBackend, 'put', lambda self, obj, path: written.append(path)
    )
    hook._save_best_checkpoint(runner, dict(loss=0.5))
    assert any('best_loss' in path for path in written)


def test_a_resumed_training_names_what_it_went_on_from(unbroken, tmp_path):
    """It may have nothing left to save."""
    end = str(unbroken / 'iter_10.pth')
    train(tmp_path, OURS, end, max_keep_ckpts=2)
    assert (tmp_path / 'last_checkpoint').read_text() == end


def test_a_second_training_in_the_folder_is_refused(tmp_path):
    with (
        only_one(tmp_path, 'a training'),
        pytest.raises(BlockingIOError, match='in use: a training is running there'),
    ):
        train(tmp_path, OURS)
    train(tmp_path, OURS)
    train(tmp_path, OURS)  # one after the other may
