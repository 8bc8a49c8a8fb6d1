import json
import shutil
from xml.etree import ElementTree

import pytest
from studies.corrupt_labels import corrupt_labels
from support.tools import run_tool_here

from mmdet_ohem.reports.hardest_images import Hard, count_found


def objects_of(root, img_id):
    """(class, corners of the file) of an annotation."""
    tree = ElementTree.parse(root / 'Annotations' / f'{img_id}.xml')
    return [
        (
            node.findtext('name'),
            [
                int(node.findtext(f'bndbox/{k}'))
                for k in ('xmin', 'ymin', 'xmax', 'ymax')
            ],
        )
        for node in tree.findall('object')
    ]


def test_the_labels_it_names_are_spoilt_and_no_other(lookalikes, tmp_path):
    out = tmp_path / 'spoilt'
    spoilt = corrupt_labels(lookalikes, out, 'train', wrong=0.3, removed=0.2, seed=1)
    assert json.loads((out / 'corrupted.json').read_text()) == spoilt
    by_place = {(s['img_id'], *s['box']): s for s in spoilt}
    total = 0
    for img_id in (lookalikes / 'ImageSets/Main/train.txt').read_text().split():
        expected = []
        for name, corners in objects_of(lookalikes, img_id):
            total += 1
            label = by_place.pop((img_id, *(c - 1 for c in corners)), None)
            if label is None:
                expected.append((name, corners))
                continue
            assert label['label'] == name != label['given']
            if label['given'] is not None:
                expected.append((label['given'], corners))
        assert objects_of(out, img_id) == expected
    assert not by_place
    kinds = [label['given'] is None for label in spoilt]
    assert (kinds.count(False), kinds.count(True)) == (
        round(0.3 * total),
        round(0.2 * total),
    )
    for img_id in (lookalikes / 'ImageSets/Main/test.txt').read_text().split():
        assert objects_of(out, img_id) == objects_of(lookalikes, img_id)
    assert len(list((out / 'JPEGImages').iterdir())) == 10


def test_a_seed_gives_the_same_labels_again(lookalikes, tmp_path):
    spoilt = [
        corrupt_labels(lookalikes, tmp_path / str(i), 'train', wrong=0.5, seed=seed)
        for i, seed in enumerate((0, 0, 1))
    ]
    assert spoilt[0] == spoilt[1] != spoilt[2]


def test_found_labels_are_counted_by_hand():
    def hard(img_id, box, label):
        return Hard(img_id, '', [1.0], box, label)

    spoilt = [
        dict(img_id='a', box=[0, 0, 10, 10], label='cat', given='dog'),
        dict(img_id='a', box=[20, 0, 30, 10], label='cat', given='dog'),
        dict(img_id='b', box=[0, 0, 10, 10], label='cat', given=None),
    ]
    boxes = [
        hard('a', [0.1, 0, 10, 9.9], 'dog'),  # the first
        hard('b', [20, 0, 30, 10], 'dog'),  # of another image
        hard('a', [20, 0, 30, 10], 'dog'),  # the second, too late for two
    ]
    assert count_found(boxes, spoilt, first=2) == 1
    assert count_found(boxes, spoilt, first=3) == 2
    spots = [hard('b', [2, 0, 12, 10], 'background')]  # IoU 80 / 120
    assert count_found(spots, spoilt, first=1) == 1


@pytest.mark.parametrize(
    'flags, words',
    [
        (['--image-list', 'nothing'], 'nothing.txt, the list of images, is missing'),
        (['--wrong', 1.5], 'fractions of wrong'),
    ],
)
def test_bad_input_is_one_sentence(lookalikes, tmp_path, flags, words):
    with pytest.raises(SystemExit, match=words):
        run_tool_here('tools/corrupt_labels.py', lookalikes, tmp_path / 'out', *flags)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('corner', ['nan', 'inf', '-inf', '1e300', 'wide', '', None])
def test_a_box_that_is_none_is_named(lookalikes, tmp_path, corner):
    root = tmp_path / 'data'
    shutil.copytree(lookalikes, root)
    img_id = (root / 'ImageSets/Main/train.txt').read_text().split()[0]
    path = root / 'Annotations' / f'{img_id}.xml'
    tree = ElementTree.parse(path)
    box = tree.find('object/bndbox')
    if corner is None:
        box.remove(box.find('xmax'))
    else:
        box.find('xmax').text = corner
    tree.write(path)
    with pytest.raises(ValueError, match=f'{img_id}.xml: the xmax of an object of cla'):
        corrupt_labels(root, tmp_path / 'out', 'train')
    assert not list(tmp_path.glob('out*'))


def test_what_is_there_is_not_overwritten(lookalikes, tmp_path):
    with pytest.raises(FileExistsError, match='exists: remove it'):
        corrupt_labels(lookalikes, tmp_path, 'train')
