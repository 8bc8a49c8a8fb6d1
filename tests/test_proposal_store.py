import json
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from reference import random_boxes
from torch.utils.data import DataLoader

from mmdet_ohem.proposal_store import ProposalStore, write_store


def test_store_gives_back_what_was_written(store):
    opened = ProposalStore(store)
    assert len(opened) == 3
    boxes, size = opened.get('000009')
    assert boxes.dtype == np.float32 and size == (80, 70)
    np.testing.assert_array_equal(boxes, [[5, 6, 50, 60], [1, 2, 30, 40]])
    boxes, size = opened.get('zebra')
    assert boxes.shape == (0, 4) and size == (10, 20)
    assert '000001' in opened and 'zebra' in opened
    for absent in ('', '000002', '00000', '0000011', 'zebras in the savanna', 1):
        assert absent not in opened


def test_random_stores_are_found_again(tmp_path):
    seed = np.random.SeedSequence().entropy % 2**32
    print('seed', seed)
    rng = np.random.default_rng(seed)
    ids = [str(i) for i in rng.permutation(20000)[:500]]
    wanted = {i: random_boxes(rng, rng.integers(0, 6), 640, 480) for i in ids}
    records = ((i, boxes, (640, 480)) for i, boxes in wanted.items())
    write_store(tmp_path / 'store', records, source='random')
    opened = ProposalStore(tmp_path / 'store')
    for i, boxes in wanted.items():
        np.testing.assert_array_equal(opened.get(int(i))[0], boxes)


def test_missing_image_names_store_and_image(store):
    with pytest.raises(KeyError, match=f'{store}.*000002.*prepare_proposals'):
        ProposalStore(store).get('000002')


def test_store_is_pickled_as_its_path_and_read_by_workers(store):
    opened = ProposalStore(store)
    assert len(pickle.dumps(opened)) < 1000

    class Images(torch.utils.data.Dataset):
        ids = ['000001', '000009', 'zebra'] * 4

        def __len__(self):
            return len(self.ids)

        def __getitem__(self, index):
            return len(opened.get(self.ids[index])[0])

    counts = [int(c) for c in DataLoader(Images(), num_workers=2, batch_size=None)]
    assert counts == [1, 2, 0] * 4
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(opened)).get('000001')[0], [[0, 0, 99, 49]]
    )


def test_118k_images_of_2000_boxes_are_opened_without_loading(tmp_path):
    images, per_image = 118_000, 2000
    path = tmp_path / 'coco'
    write_store(path, [('0', np.zeros((1, 4)), (640, 480))], source='sparse')
    stops = np.arange(1, images + 1, dtype=np.int64) * per_image
    np.save(path / 'ids.npy', np.array([f'{i:012}' for i in range(images)]))
    np.save(path / 'spans.npy', np.stack([stops - per_image, stops], axis=1))
    np.save(path / 'sizes.npy', np.full((images, 2), 500, dtype=np.int32))
    # 3.8 GB of zeros that take no room on the disk
    with open(path / 'boxes.npy', 'wb') as file:
        header = {'descr': '<f4', 'fortran_order': False}
        header['shape'] = (images * per_image, 4)
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + images * per_image * 16)
    meta = json.loads((path / 'meta.json').read_text())
    meta.update(images=images, boxes=images * per_image)
    (path / 'meta.json').write_text(json.dumps(meta))

    tracemalloc.start()
    opened = ProposalStore(path)
    for i in range(0, images, 1000):
        assert opened.get(f'{i:012}')[0].shape == (per_image, 4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6  # bytes; one image's boxes are 32 kB


def test_writing_keeps_no_boxes_in_memory(tmp_path):
    boxes = np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (2000, 1))
    tracemalloc.start()
    records = ((f'{i:06}', boxes, (10, 10)) for i in range(1000))
    write_store(tmp_path / 'store', records, source='many')
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / 'store' / 'boxes.npy').stat().st_size > 32e6
    assert peak < 2e6


def test_existing_store_is_replaced_only_when_asked(store):
    new = [('new', np.array([[1, 1, 5, 5]]), (9, 9))]
    with pytest.raises(FileExistsError, match='--overwrite'):
        write_store(store, new, source='new')
    assert 'zebra' in ProposalStore(store)
    write_store(store, new, source='new', overwrite=True)
    assert 'new' in ProposalStore(store) and 'zebra' not in ProposalStore(store)
    assert [path.name for path in store.parent.iterdir()] == ['store']


def test_interrupted_writing_leaves_the_old_store(store):
    def records():
        yield 'new', np.array([[1, 1, 5, 5]]), (9, 9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(store, records(), source='new', overwrite=True)
    assert 'zebra' in ProposalStore(store)
    assert [path.name for path in store.parent.iterdir()] == ['store']


def test_what_is_no_store_is_never_replaced(tmp_path):
    (tmp_path / 'photos').mkdir()
    with pytest.raises(FileExistsError, match='not a proposal store'):
        write_store(tmp_path / 'photos', [], source='x', overwrite=True)


@pytest.mark.parametrize(
    'records, message',
    [
        ([], 'no images'),
        ([('a', np.zeros((1, 4)), (9, 9))] * 2, "'a' comes twice"),
        ([('a', np.array([[0, 0, np.nan, 1]]), (9, 9))], "'a'.*not finite"),
    ],
)
def test_bad_records_are_named(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        write_store(tmp_path / 'store', records, source='test')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', ['boxes', 'ids', 'sizes', 'spans'])
@pytest.mark.parametrize('damage', ['missing', 'cut off', 'text', 'other'])
def test_broken_store_is_named(store, name, damage):
    file = store / f'{name}.npy'
    if damage == 'missing':
        file.unlink()
    elif damage == 'cut off':
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == 'text':
        file.write_text('not an array')
    else:
        np.save(file, np.zeros((3, 3)))
    with pytest.raises(ValueError, match=f'{store}.*prepare_proposals'):
        ProposalStore(store)


@pytest.mark.parametrize('meta', ['', '{}', '[1]', '{"format": "other"}'])
def test_foreign_meta_is_named(store, meta):
    (store / 'meta.json').write_text(meta)
    with pytest.raises(ValueError, match=f'{store}.*prepare_proposals'):
        ProposalStore(store)
