import json
import os
import pickle
import resource
import signal
import sys
import time
import tracemalloc

import numpy as np
import pytest
import torch
from support.reference import random_boxes
from torch.utils.data import DataLoader

from mmdet_ohem.proposals.store import ProposalStore, write_store


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
        ([('a', np.zeros((1, 4)), (0, 9))], "'a'.*0x9 px"),
        ([('a\udcff', np.zeros((1, 4)), (9, 9))], 'not UTF-8'),
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


def spoil(store, name, place, value):
    """Write one number into an array file, behind ProposalStore's back."""
    array = np.load(store / f'{name}.npy')
    array[place] = value
    np.save(store / f'{name}.npy', array)


# In the order of their ids: 000001, 000009, zebra.
@pytest.mark.parametrize(
    'name, place, value',
    [
        ('spans', (1, 0), -1),
        ('spans', (1, 0), 3),  # behind its stop
        ('spans', (1, 1), 99),
        ('spans', (1, 1), 2**62),
        ('sizes', (1, 0), -80),
        ('sizes', (1, 1), 0),
        ('boxes', (0, 2), np.nan),
        ('boxes', (1, 3), np.inf),
    ],
)
def test_damage_is_seen_where_an_image_is_read(store, name, place, value):
    spoil(store, name, place, value)
    opened = ProposalStore(store)
    with pytest.raises(ValueError, match=f'{store} is damaged.*000009.*prepare_prop'):
        opened.get('000009')
    assert opened.get('000001')[0].tolist() == [[0, 0, 99, 49]]


def test_an_id_that_is_no_text_is_damage(store):
    ids = bytearray((store / 'ids.npy').read_bytes())
    ids[-21:] = b'\xff' * 21
    (store / 'ids.npy').write_bytes(ids)
    without_checksums(store)
    opened = ProposalStore(store)
    assert 'zebra' not in opened and '000009' in opened
    with pytest.raises(ValueError, match=f'{store} is damaged.*id is no text'):
        opened.check()
    (store / 'ids.npy').write_bytes(ids[:-72] + b'\xff' * 72)
    with pytest.raises(ValueError, match=f'{store} is damaged.*id is no text'):
        ProposalStore(store).get('zebra')


def test_one_box_of_an_image_cannot_be_the_whole_store(store, monkeypatch):
    monkeypatch.setattr('mmdet_ohem.proposals.store.MOST_BOXES', 1)
    with pytest.raises(ValueError, match='damaged.*000009'):
        ProposalStore(store).get('000009')
    records = [('a', np.zeros((2, 4)), (9, 9))]
    with pytest.raises(ValueError, match="'a'.*2 boxes, more than 1"):
        write_store(store.with_name('other'), records, source='test')


@pytest.mark.parametrize('name', ['boxes', 'ids', 'sizes', 'spans'])
def test_the_checksum_finds_a_byte_that_changed(store, name):
    file = store / f'{name}.npy'
    whole = file.read_bytes()
    assert ProposalStore(store).check() is True
    for place in range(0, len(whole), 5):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match=f'{store}'):
            ProposalStore(store).check()
    file.write_bytes(whole)
    assert ProposalStore(store).check() is True


def without_checksums(store):
    """As older versions wrote it."""
    meta = json.loads((store / 'meta.json').read_text())
    del meta['sha256']
    (store / 'meta.json').write_text(json.dumps(meta))


def test_a_store_of_an_older_version_is_read_and_checked_as_far_as_can_be(store):
    without_checksums(store)
    opened = ProposalStore(store)
    assert opened.check() is False
    assert opened.get('000009')[0].tolist() == [[5, 6, 50, 60], [1, 2, 30, 40]]


@pytest.mark.parametrize(
    'name, place, value, message',
    [
        ('spans', (1, 1), 1, 'do not divide'),  # a box of nobody
        ('spans', (1, 0), 1, 'do not divide'),
        ('ids', 1, '000000', 'not sorted'),
        ('ids', 1, '000001', 'not sorted'),
        ('boxes', (2, 0), np.nan, 'not finite'),
    ],
)
def test_the_structure_is_checked_without_checksums(store, name, place, value, message):
    without_checksums(store)
    spoil(store, name, place, value)
    with pytest.raises(ValueError, match=f'{store} is damaged.*{message}'):
        ProposalStore(store).check()


@pytest.mark.parametrize(
    'header',
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), ",  # no end
        b"{'descr': '<f4', 'fortran_order': True, 'shape': (3, 4), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (3, 4), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 4), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (3L, 4L), }\n",
        b'(' * 9000,
        b"{'descr': '<f4', 'fortran_order': __import__('os'), 'shape': (3, 4), }\n",
        b'\x00' * 64,
        b'"""',
    ],
)
def test_a_damaged_header_is_named(store, header):
    start = b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little')
    (store / 'boxes.npy').write_bytes(start + header + bytes(48))
    with pytest.raises(ValueError, match=f'{store}.*boxes.npy.*prepare_proposals'):
        ProposalStore(store)


@pytest.mark.parametrize('name', ['meta.json', 'boxes.npy', 'ids.npy'])
def test_a_pipe_in_place_of_a_file_does_not_hang(store, name):
    (store / name).unlink()
    os.mkfifo(store / name)
    with pytest.raises(ValueError, match=f'{store}.*no file {name}'):
        ProposalStore(store)


@pytest.mark.parametrize(
    'meta',
    [
        '[' * 100_000,
        '{"format": ' * 100_000,
        '{"format": "mmdet_ohem proposals 1", "images": -1, "boxes": 3}',
        '{"format": "mmdet_ohem proposals 1", "images": 0, "boxes": 0}',
        '{"format": "mmdet_ohem proposals 1", "images": true, "boxes": 3}',
        '{"format": "mmdet_ohem proposals 1", "images": 3.0, "boxes": 3}',
        '{"format": "mmdet_ohem proposals 1", "images": 1e999, "boxes": 3}',
        '{"format": "mmdet_ohem proposals 1", "images": ' + '9' * 5000 + '}',
        '{"format": ["mmdet_ohem proposals 1"]}',
        '\udcff',
    ],
)
def test_harmful_meta_is_named(store, meta):
    (store / 'meta.json').write_bytes(meta.encode('utf-8', 'surrogatepass'))
    with pytest.raises(ValueError, match=f'{store}.*prepare_proposals') as error:
        ProposalStore(store)
    assert len(str(error.value)) < 500 + len(str(store))


@pytest.mark.parametrize('meta', ['', '{}', '[1]', '{"format": "other"}'])
def test_foreign_meta_is_named(store, meta):
    (store / 'meta.json').write_text(meta)
    with pytest.raises(ValueError, match=f'{store}.*prepare_proposals'):
        ProposalStore(store)


def test_a_link_stays_one_however_often_its_store_is_replaced(tmp_path):
    """A dangling one as well."""
    link, disk = tmp_path / 'link', tmp_path / 'disk'
    link.symlink_to(disk / 'store')
    for number in range(3):
        records = [(f'image{number}', np.array([[1, 1, 5, 5]]), (9, 9))]
        write_store(link, records, source='here', overwrite=True)
        assert link.is_symlink() and f'image{number}' in ProposalStore(disk / 'store')
        assert [path.name for path in disk.iterdir()] == ['store']
    assert {path.name for path in tmp_path.iterdir()} == {'link', 'disk'}


@pytest.mark.parametrize('can_exchange', [True, False])
def test_whoever_reads_a_store_keeps_it_when_it_is_replaced(
    can_exchange, store, monkeypatch
):
    if not can_exchange:
        monkeypatch.setattr(
            'mmdet_ohem.proposals.store._exchange', lambda *paths: False
        )
    opened = ProposalStore(store)
    new = [('000001', np.array([[7, 7, 8, 8]]), (9, 9))]
    write_store(store, new, source='new', overwrite=True)
    assert opened.get('000001')[0].tolist() == [[0, 0, 99, 49]]
    assert pickle.loads(pickle.dumps(opened)).get('000001')[0].tolist() == [
        [7, 7, 8, 8]
    ]
    assert [path.name for path in store.parent.iterdir()] == ['store']


@pytest.mark.skipif(sys.platform != 'linux', reason='two renames elsewhere')
def test_a_store_that_is_opened_while_it_is_replaced_is_one_of_the_two(tmp_path):
    path = tmp_path / 'store'

    def write(value: int) -> None:
        boxes = np.full((50, 4), value)
        records = ((f'{i:03}', boxes, (value, value)) for i in range(20))
        write_store(path, records, source='test', overwrite=True)

    write(1)
    writer = os.fork()
    if writer == 0:
        value = 1
        while True:
            value += 1
            write(value)
    try:
        seen, end = set(), time.monotonic() + 1.5
        while time.monotonic() < end:
            opened = ProposalStore(path)
            found = {opened.get(f'{i:03}')[1][0] for i in range(20)}
            found |= {int(x) for i in range(20) for x in opened.get(f'{i:03}')[0].flat}
            assert len(found) == 1
            seen |= found
        assert len(seen) > 10
    finally:
        os.kill(writer, signal.SIGKILL)
        os.waitpid(writer, 0)


def test_a_store_that_another_process_writes_is_refused(tmp_path):
    one = [('a', np.array([[1, 1, 5, 5]]), (9, 9))]

    def records():
        yield from one
        with pytest.raises(
            BlockingIOError, match='the making of this store is running'
        ):
            write_store(tmp_path / 'store', one, source='second')

    write_store(tmp_path / 'store', records(), source='first')
    assert ProposalStore(tmp_path / 'store').path.exists()
    assert [path.name for path in tmp_path.iterdir()] == ['store']


def test_a_full_disk_is_named(tmp_path):
    records = ((str(i), np.zeros((500, 4)), (9, 9)) for i in range(100))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r'store cannot be written .File too large'):
            write_store(tmp_path / 'store', records, source='large')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())
