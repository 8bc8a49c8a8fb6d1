import pytest
from mmengine.config import Config

from mmdet_ohem.check_data import check_data
from mmdet_ohem.proposal_store import write_store


def test_data_are_looked_for_inside_wrappers(tmp_path):
    (tmp_path / 'here.txt').touch()
    here = dict(data_root=str(tmp_path), ann_file='here.txt')
    gone = dict(data_root=str(tmp_path), ann_file='gone.txt')
    wrapped = dict(dataset=dict(type='RepeatDataset', dataset=dict(datasets=[here])))
    cfg = Config(dict(train_dataloader=wrapped, val_dataloader=None))
    check_data(cfg, ('train', 'val', 'test'))

    wrapped['dataset']['dataset']['datasets'].append(gone)
    cfg = Config(dict(train_dataloader=wrapped, data_help='Fetch it there.'))
    with pytest.raises(SystemExit, match='gone.txt, the list of train.*Fetch it there'):
        check_data(cfg, ('train',))


def test_an_unknown_class_is_named_with_its_file(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'list.txt').write_text('one\n')
    (tmp_path / 'Annotations' / 'one.xml').write_text(
        '<annotation><object><name>cat</name><part><name>head</name></part></object>'
        '<object><name>platlet</name></object></annotation>'
    )
    dataset = dict(
        type='VOCDataset',
        metainfo=dict(classes=('cat', 'platelet')),
        data_root=str(tmp_path),
        ann_file='list.txt',
    )
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    with pytest.raises(
        SystemExit, match=r"one.xml.*'platlet'.*train_dataloader.dataset.metainfo.clas"
    ):
        check_data(cfg, ('train',))
    cfg.ignored_classes = ('platlet',)
    check_data(cfg, ('train',))

    (tmp_path / 'list.txt').write_text('one\ntwo\n')
    with pytest.raises(SystemExit, match='two.xml is missing'):
        check_data(cfg, ('train',))


@pytest.mark.parametrize('scope', ['', 'mmdet.'])
def test_a_transform_that_moves_boxes_unrecorded_is_named(scope, tmp_path):
    (tmp_path / 'list.txt').touch()
    write_store(tmp_path / 'store', [('a', [[0, 0, 5, 5]], (9, 9))], source='by hand')
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'store'))
    inner = dict(data_root=str(tmp_path), ann_file='list.txt')

    def check(pipeline, *outer):
        dataset = dict(inner, pipeline=[dict(type='RandomFlip'), *pipeline])
        mixed = dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[*outer])
        check_data(Config(dict(train_dataloader=dict(dataset=mixed))), ('train',))

    moves = dict(type=f'{scope}InstaBoost')
    check([moves])  # no stored proposals, no trouble
    check([load])
    for pipelines in (
        [[moves, load]],
        [[dict(type='RandomApply', transforms=[moves]), load]],
        [[load], dict(type=f'{scope}Mosaic')],
    ):
        with pytest.raises(SystemExit, match='train_dataloader.*moves boxes.*homo'):
            check(*pipelines)


def test_proposals_read_before_the_image_is_resized_are_refused(tmp_path):
    (tmp_path / 'list.txt').touch()
    write_store(tmp_path / 'store', [('a', [[0, 0, 5, 5]], (9, 9))], source='by hand')
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'store'))
    flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]

    def check(*pipeline):
        dataset = dict(data_root=str(tmp_path), ann_file='list.txt', pipeline=pipeline)
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))

    check(dict(type='Resize'), load, dict(type='PackDetInputs'))
    check(dict(type='TestTimeAug', transforms=[flips, [load]]))
    with pytest.raises(SystemExit, match='Resize after LoadStoredProposals'):
        check(load, dict(type='mmdet.Resize'), dict(type='PackDetInputs'))
    with pytest.raises(SystemExit, match='RandomFlip after LoadStoredProposals'):
        check(dict(type='TestTimeAug', transforms=[[load], flips]))


def test_a_missing_proposal_store_is_one_sentence(tmp_path):
    (tmp_path / 'list.txt').touch()
    load = dict(type='mmdet_ohem.LoadStoredProposals', store=str(tmp_path / 'gone'))
    dataset = dict(data_root=str(tmp_path), ann_file='list.txt', pipeline=[load])
    with pytest.raises(SystemExit, match='gone.*prepare_proposals.py'):
        check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))


def test_class_names_may_stand_in_a_file(tmp_path):
    (tmp_path / 'Annotations').mkdir()
    (tmp_path / 'list.txt').write_text('one\n')
    (tmp_path / 'names.txt').write_text('cat\ndog\n')
    (tmp_path / 'Annotations' / 'one.xml').write_text(
        '<annotation><object><name>dog</name></object></annotation>'
    )
    dataset = dict(
        type='mmdet.XMLDataset',
        metainfo=dict(classes=str(tmp_path / 'names.txt')),
        data_root=str(tmp_path),
        ann_file='list.txt',
    )
    check_data(Config(dict(train_dataloader=dict(dataset=dataset))), ('train',))
