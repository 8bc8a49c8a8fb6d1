import struct
import zlib

import numpy as np
import pytest
from scipy.io import loadmat, savemat
from support.broken_files import break_file

from mmdet_ohem.proposals.boxes import clean_boxes
from mmdet_ohem.proposals.mat import read_data_set_mat, read_image_mat
from mmdet_ohem.proposals.mcg import read_mcg_folder, read_mcg_mat


def cell(values, shape):
    """A MATLAB cell array."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def write_data_set_mat(path, boxes, names):
    """A file with the layout of Fast R-CNN's voc_2007_trainval.mat."""
    variables = {
        'boxes': cell(boxes, (1, len(boxes))),
        'images': cell([np.array([name]) for name in names], (len(names), 1)),
    }
    savemat(path, variables, do_compression=True)


# ------------------------------------------------------------------------- cleaning


def test_cleaning_drops_duplicates_and_small_boxes_and_keeps_the_order():
    boxes = [
        [50, 10, 60, 20],
        [0, 0, 1, 30],  # 1 px wide
        [0, 0, 2, 2],
        [50, 10, 60, 20],  # the first again
        [0, 0, 30, 1.5],  # 1.5 px high
        [30, 30, 20, 40],  # x2 before x1
        [5, 5, 9, 9],
    ]
    kept = clean_boxes(np.array(boxes), size=(100, 80))
    assert kept.dtype == np.float32
    assert kept.tolist() == [[50, 10, 60, 20], [0, 0, 2, 2], [5, 5, 9, 9]]
    assert clean_boxes(np.array(boxes), (100, 80), min_size=5).tolist() == [boxes[0]]


def test_cleaning_clips_to_the_image_first():
    boxes = np.array([[-5, -5, 120, 90], [0, 0, 100, 80], [99, 10, 140, 50]])
    assert clean_boxes(boxes, size=(100, 80)).tolist() == [[0, 0, 100, 80]]


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_cleaning_names_the_image_of_a_box_that_is_not_finite(bad):
    with pytest.raises(ValueError, match="'000005'.*NaN or infinite"):
        clean_boxes(np.array([[0, 0, bad, 9]]), (100, 80), name='000005')


def test_cleaning_agrees_with_a_plain_loop():
    seed = np.random.SeedSequence().entropy % 2**32
    print('seed', seed)
    rng = np.random.default_rng(seed)
    for _ in range(50):
        boxes = rng.integers(-3, 9, (rng.integers(0, 40), 4))
        expected = []
        for x1, y1, x2, y2 in boxes.tolist():
            x1, x2 = (min(max(x, 0), 6) for x in (x1, x2))
            y1, y2 = (min(max(y, 0), 5) for y in (y1, y2))
            box = [x1, y1, x2, y2]
            if x2 - x1 >= 2 and y2 - y1 >= 2 and box not in expected:
                expected.append(box)
        assert clean_boxes(boxes, size=(6, 5)).tolist() == expected


# ------------------------------------------------------------------------ .mat files


def test_data_set_mat_is_one_based_and_y_first(tmp_path):
    # MATLAB's (y1, x1, y2, x2) = (1, 1, 40, 30) is the top left 30 x 40 pixels.
    boxes = [np.array([[1, 1, 40, 30], [6, 5, 8, 7]], np.uint16), np.zeros((0, 0))]
    write_data_set_mat(tmp_path / 'voc.mat', boxes, ['000005', '000007'])
    (first, boxes_5), (second, boxes_7) = read_data_set_mat(tmp_path / 'voc.mat')
    assert (first, second) == ('000005', '000007')
    assert boxes_5.tolist() == [[0, 0, 29, 39], [4, 5, 6, 7]]
    assert boxes_7.shape == (0, 4)


def test_data_set_of_one_image(tmp_path):
    write_data_set_mat(tmp_path / 'one.mat', [np.ones((3, 4))], ['000005'])
    ((name, boxes),) = read_data_set_mat(tmp_path / 'one.mat')
    assert name == '000005' and boxes.tolist() == [[0, 0, 0, 0]] * 3


@pytest.mark.parametrize('dtype', [np.uint16, np.float64])
def test_image_mat_is_zero_based_and_x_first(tmp_path, dtype):
    boxes = np.array([[0, 0, 23, 15], [2, 1, 499, 405]], dtype)
    savemat(tmp_path / 'a_boxes.mat', {'boxes': boxes})
    read = read_image_mat(tmp_path / 'a_boxes.mat')
    assert read.dtype == np.float32 and read.tolist() == boxes.tolist()


NUMBERS = ['u1', 'i1', 'u2', 'i2', 'u4', 'i4', 'u8', 'i8', 'f4', 'f8']


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('dtype', NUMBERS)
def test_numbers_are_those_that_scipy_reads(tmp_path, dtype, packed):
    boxes = (np.arange(80).reshape(20, 4) + 1).astype(dtype)
    # Other variables of any kind are passed over.
    others = dict(scores=np.ones(3), text='abc', a=dict(b=cell([1, 'x'], (1, 2))))
    path = tmp_path / 'a.mat'
    for count in (0, 1, 20):
        variables = dict(others, boxes=boxes[:count])
        savemat(path, variables, do_compression=packed)
        np.testing.assert_array_equal(read_image_mat(path), loadmat(path)['boxes'])
        write_data_set_mat(path, [boxes[:count]] * 2, ['000005', 'Zürich 7'])
        read = dict(read_data_set_mat(path))
        of_scipy = loadmat(path)
        assert list(read) == [name.item() for name in of_scipy['images'].ravel()]
        for cell_of_scipy, ours in zip(
            of_scipy['boxes'].ravel(), read.values(), strict=True
        ):
            expected = cell_of_scipy.astype(np.float32)[:, [1, 0, 3, 2]] - 1
            np.testing.assert_array_equal(ours, expected)


# As MathWorks' "MAT-File Level 5 File Format" describes it, from the outside in.
def header(order: str) -> bytes:
    return b'MATLAB 5.0 MAT-file'.ljust(124) + struct.pack(f'{order}HH', 0x0100, 0x4D49)


def element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f'{order}II', kind, len(data)) + data + bytes(-len(data) % 8)


def small_element(order: str, kind: int, data: bytes) -> bytes:
    return struct.pack(f'{order}I', len(data) << 16 | kind) + data.ljust(4, b'\0')


def matrix(order: str, name: bytes, shape, data: bytes, kind=6, flags=0) -> bytes:
    content = element(order, 6, struct.pack(f'{order}II', flags << 8 | kind, 0))
    content += element(order, 5, struct.pack(f'{order}{len(shape)}i', *shape))
    named = small_element if 0 < len(name) <= 4 else element
    return element(order, 14, content + named(order, 1, name) + data)


@pytest.mark.parametrize('order', ['<', '>'])
def test_both_byte_orders_and_small_elements_are_read(tmp_path, order):
    path = tmp_path / 'a.mat'
    column_by_column = struct.pack(f'{order}4H', 1, 2, 300, 400)
    boxes = matrix(order, b'boxes', (1, 4), element(order, 4, column_by_column))
    nothing = matrix(order, b'tiny', (1, 1), small_element(order, 2, b'\7'))
    path.write_bytes(header(order) + nothing + boxes)
    assert read_image_mat(path).tolist() == [[1, 2, 300, 400]]
    assert loadmat(path)['boxes'].tolist() == [[1, 2, 300, 400]]


def packed(data: bytes) -> bytes:
    data = zlib.compress(data)
    return struct.pack('<II', 15, len(data)) + data


HARMFUL = dict(
    complex=matrix('<', b'boxes', (1, 4), element('<', 2, b'abcd') * 2, flags=8),
    logical=matrix('<', b'boxes', (1, 4), element('<', 2, b'abcd'), flags=2),
    sparse=matrix('<', b'boxes', (1, 4), element('<', 2, b'abcd'), kind=5),
    of_no_type=matrix('<', b'boxes', (1, 4), element('<', 99, b'abcd')),
    too_short=matrix('<', b'boxes', (9, 4), element('<', 2, b'abcd')),
    negative=matrix('<', b'boxes', (-1, -4), element('<', 2, b'abcd')),
    shape_of_7_bytes=matrix('<', b'boxes', (1, 4), element('<', 2, b'abcd')).replace(
        struct.pack('<II', 5, 8), struct.pack('<II', 5, 7)
    ),
    flat=matrix('<', b'boxes', (4,), element('<', 2, b'abcd')),
    claim=struct.pack('<II', 14, 2**32 - 1),
    no_variable=struct.pack('<II', 99, 8) + bytes(8),
    # What follows could be some kB that become gigabytes.
    bomb=packed(matrix('<', b'boxes', (2**25, 4), struct.pack('<II', 2, 2**27))),
    trailing_bomb=packed(
        matrix('<', b'boxes', (1, 4), element('<', 2, b'abcd') + bytes(2**20))
    ),
    checksum=packed(matrix('<', b'boxes', (1, 4), element('<', 2, b'abcd')))[:-1]
    + b'x',
    more_than_its_tag=packed(
        matrix('<', b'boxes', (1, 4), element('<', 2, b'abcd')) + bytes(8)
    ),
)


@pytest.mark.parametrize('name', HARMFUL)
def test_harmful_mats_are_refused(tmp_path, name):
    path = tmp_path / 'harmful.mat'
    path.write_bytes(header('<') + HARMFUL[name])
    with pytest.raises(ValueError, match='harmful.mat'):
        read_image_mat(path)


def test_more_cells_than_a_file_holds_are_refused(tmp_path):
    cells = packed(matrix('<', b'boxes', (1, 2**30), b'', kind=1))
    names = packed(matrix('<', b'images', (2**30, 1), b'', kind=1))
    (tmp_path / 'many.mat').write_bytes(header('<') + cells + names)
    with pytest.raises(ValueError, match='many.mat claims 1073741824 cells'):
        list(read_data_set_mat(tmp_path / 'many.mat'))


def test_a_file_cut_off_anywhere_is_named(tmp_path):
    path = tmp_path / 'cut.mat'
    for do_compression in (False, True):
        savemat(path, {'boxes': np.ones((5, 4))}, do_compression=do_compression)
        whole = path.read_bytes()
        for length in range(len(whole)):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match='cut.mat'):
                read_image_mat(path)


def test_a_mat_of_matlab_4_is_explained(tmp_path):
    savemat(tmp_path / 'old.mat', {'boxes': np.ones((5, 4))}, format='4')
    with pytest.raises(ValueError, match='old.mat is a MATLAB 4 file.*v7'):
        read_image_mat(tmp_path / 'old.mat')


@pytest.mark.parametrize('damage', ['truncated', 'empty', 'text', 'v7.3', 'missing'])
@pytest.mark.parametrize('kind', ['data set', 'image'])
def test_broken_mat_is_named(tmp_path, kind, damage):
    path = tmp_path / 'broken.mat'
    boxes = np.arange(400).reshape(100, 4)
    if kind == 'data set':
        write_data_set_mat(path, [boxes, boxes], ['a', 'b'])
    else:
        savemat(path, {'boxes': boxes})
    break_file(path, damage)
    with pytest.raises((ValueError, FileNotFoundError), match='broken.mat') as error:
        if kind == 'data set':
            list(read_data_set_mat(path))
        else:
            read_image_mat(path)
    assert ('v7' in str(error.value)) == (damage == 'v7.3')


@pytest.mark.parametrize(
    'variables, message',
    [
        ({'x': 1}, "no variable 'boxes'"),
        ({'boxes': np.ones((5, 4))}, "no variable 'images'.*single image"),
        ({'boxes': np.ones((5, 4)), 'images': 'a'}, 'two cells'),
        (
            {
                'boxes': cell([np.ones((5, 4))] * 2, (1, 2)),
                'images': cell(['a'], (1, 1)),
            },
            'two cells',
        ),
        (
            {'boxes': cell([np.ones((5, 3))], (1, 1)), 'images': cell(['a'], (1, 1))},
            "image 'a'.*\\(5, 3\\)",
        ),
        (
            {'boxes': cell([np.ones((5, 4))], (1, 1)), 'images': cell([1.0], (1, 1))},
            'images{1}',
        ),
    ],
)
def test_foreign_data_set_mat_is_explained(tmp_path, variables, message):
    savemat(tmp_path / 'foreign.mat', variables)
    with pytest.raises(ValueError, match=f'foreign.mat.*{message}'):
        list(read_data_set_mat(tmp_path / 'foreign.mat'))


@pytest.mark.parametrize(
    'variables',
    [
        {'x': 1},
        {'boxes': np.ones((5, 3))},
        {'boxes': 'a'},
        {'boxes': cell([1], (1, 1))},
    ],
)
def test_foreign_image_mat_is_explained(tmp_path, variables):
    savemat(tmp_path / 'foreign.mat', variables)
    with pytest.raises(ValueError, match='foreign.mat'):
        read_image_mat(tmp_path / 'foreign.mat')


# ------------------------------------------------------------------- MCG, for COCO


def test_mcg_boxes_lose_one_swap_axes_and_stay_best_first(tmp_path):
    boxes = np.array([[11, 21, 60, 90], [1, 1, 40, 30]], np.uint16)  # y1, x1, y2, x2
    savemat(tmp_path / 'COCO_val2014_000000000042.mat', {'boxes': boxes})
    read = read_mcg_mat(tmp_path / 'COCO_val2014_000000000042.mat')
    assert read.tolist() == [[20, 10, 89, 59], [0, 0, 29, 39]]


def test_mcg_files_are_found_in_subfolders_and_read_one_by_one(tmp_path):
    images = {name: tmp_path / f'{name}.jpg' for name in ('a', 'b', 'c')}
    for i, name in enumerate(images):
        folder = tmp_path / 'mat' / name / str(i)
        folder.mkdir(parents=True)
        savemat(folder / f'{name}.mat', {'boxes': np.array([[1, 1, 9, i + 9]])})
    found = read_mcg_folder(tmp_path / 'mat', images)
    image, boxes = next(found)
    assert image == images['a'] and boxes.tolist() == [[0, 0, 8, 8]]
    (tmp_path / 'mat' / 'b' / '1' / 'b.mat').write_bytes(b'')  # not read before
    with pytest.raises(ValueError, match='b.mat is not a readable .mat'):
        next(found)


def test_what_is_no_mcg_is_refused(tmp_path):
    (tmp_path / 'one.mat').touch()
    images = {name: tmp_path / f'{name}.jpg' for name in ('one', 'two', 'three')}
    with pytest.raises(FileNotFoundError, match=r'no two.mat \(2 of 3 images have non'):
        next(read_mcg_folder(tmp_path, images))
    write_data_set_mat(tmp_path / 'voc.mat', [np.ones((1, 4))], ['000001'])
    with pytest.raises(ValueError, match="voc.mat has no numeric variable 'boxes'"):
        read_mcg_mat(tmp_path / 'voc.mat')


# ----------------------------------------------------------------------- .pkl dumps
