import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from mmdet_ohem.datasets.images import (
    image_size,
    list_images,
    pick_images,
    picture_files,
    picture_ids,
    read_image,
    same_content,
)


@pytest.mark.parametrize('orientation, size', [(1, (30, 20)), (6, (20, 30))])
def test_image_size_is_that_of_the_image_as_opencv_turns_it(
    tmp_path, orientation, size
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (30, 20)).save(tmp_path / 'a.jpg', exif=exif)
    height, width = cv2.imread(str(tmp_path / 'a.jpg')).shape[:2]
    assert image_size(tmp_path / 'a.jpg') == (width, height) == size


def test_an_image_is_read_as_opencv_reads_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / 'a.jpg', exif=exif)
    ours = read_image(tmp_path / 'a.jpg')
    np.testing.assert_array_equal(ours, cv2.imread(str(tmp_path / 'a.jpg')))
    assert ours.shape == (30, 20, 3)


def png(width, height) -> bytes:
    """A PNG that claims a size, and whose checksums are right."""
    chunks = b''
    head = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    for kind, data in ((b'IHDR', head), (b'IDAT', zlib.compress(b'')), (b'IEND', b'')):
        crc = zlib.crc32(kind + data)
        chunks += struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc)
    return b'\x89PNG\r\n\x1a\n' + chunks


@pytest.mark.parametrize(
    'content, words',
    [
        (png(12_000, 12_000), '12000x12000 px, more than'),  # Pillow would only warn
        (png(40_000, 40_000), 'cannot be read'),  # Pillow's DecompressionBombError
        (png(0, 0), 'cannot be read'),
        (b'P6 30000 30000 255\n', 'cannot be read'),
        (b'P6 -3 3 255\n', 'cannot be read'),
        (b'BM' + b'\xff' * 60, 'cannot be read'),
        (b'', 'cannot be read'),
    ],
)
def test_what_claims_to_be_an_image_is_named_and_not_read(tmp_path, content, words):
    (tmp_path / 'a.png').write_bytes(content)
    with pytest.raises(ValueError, match=f'a.png.*{words}'):
        image_size(tmp_path / 'a.png')
    assert read_image(tmp_path / 'a.png') is None


def test_a_pipe_is_no_image(tmp_path):
    os.mkfifo(tmp_path / 'a.jpg')
    with pytest.raises(ValueError, match='a.jpg cannot be read'):
        image_size(tmp_path / 'a.jpg')
    assert read_image(tmp_path / 'a.jpg') is None


def test_names_that_are_not_utf8_are_refused_where_images_are_listed(tmp_path):
    path = tmp_path / os.fsdecode(b'caf\xe9.png')
    Image.new('RGB', (30, 20)).save(path)
    with pytest.raises(ValueError, match=r"caf\\udce9.png' is not UTF-8: rename"):
        list_images(tmp_path)
    # cv2.imread ends the process here.
    assert read_image(path).shape == (20, 30, 3)


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / 'a.jpg').touch()
    (tmp_path / 'list.txt').write_bytes(b'a\xff\n')
    with pytest.raises(ValueError, match='list.txt is no list of images'):
        pick_images(tmp_path, [tmp_path / 'list.txt'])
    (tmp_path / 'list.txt').write_text('a\n' + 'a' * 5000)
    with pytest.raises(ValueError, match='list.txt .* a line has 5000 characters'):
        pick_images(tmp_path, [tmp_path / 'list.txt'])


def test_images_are_listed_by_name_without_suffix(tmp_path):
    for name in ('b.jpg', 'a.PNG', 'notes.txt'):
        (tmp_path / name).touch()
    assert list_images(tmp_path) == {
        'a': tmp_path / 'a.PNG',
        'b': tmp_path / 'b.jpg',
    }
    (tmp_path / 'a.jpg').touch()
    with pytest.raises(ValueError, match='same image id'):
        list_images(tmp_path)


def test_image_folders_and_images_that_are_none_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        list_images(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match='no image'):
        list_images(tmp_path)
    (tmp_path / 'a.jpg').write_text('text')
    with pytest.raises(ValueError, match='a.jpg cannot be read'):
        image_size(tmp_path / 'a.jpg')


def test_a_list_names_images_and_may_have_a_second_column(tmp_path):
    for name in ('a', 'b', 'my image'):
        (tmp_path / f'{name}.jpg').touch()
    image_list = tmp_path / 'list.txt'
    image_list.write_bytes(b'b  1\r\nmy image\r\n\r\n')  # as VOC's class lists
    assert list(pick_images(tmp_path, [image_list])) == ['b', 'my image']
    image_list.write_text('c\n')
    with pytest.raises(ValueError, match="has no image 'c'"):
        pick_images(tmp_path, [image_list])


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / 'frames').mkdir()
    for name in ('broken.jpg', 'first.jpg', 'frames/1.jpg', 'second.png', 'notes.txt'):
        (tmp_path / name).write_text(name.upper())
    return tmp_path


def test_pictures_are_files_folders_and_patterns(pictures):
    names = ['notes.txt', 'frames', '*.jpg', 'frames/1.jpg']
    found = picture_files(pictures / name for name in names)
    # What was named is taken, and each picture once.
    expected = ['notes.txt', 'frames/1.jpg', 'broken.jpg', 'first.jpg']
    assert found == [str(pictures / name) for name in expected]
    (pictures / 'frames' / '1.jpg').unlink()
    with pytest.raises(ValueError, match='frames has no picture in it: give'):
        picture_files([pictures / 'frames'])
    for name in ('nothing.jpg', '*.gif'):
        with pytest.raises(ValueError, match='is not there: give'):
            picture_files([pictures / name])


@pytest.mark.parametrize(
    'files, ids',
    [
        (['/a/b/1.jpg', '/a/b/2.x.png'], ['1', '2.x']),
        (['/a/b/1.jpg', '/a/bc/1.jpg'], ['b/1', 'bc/1']),
        (['/a/1.jpg', '/b/1.jpg'], ['a/1', 'b/1']),
        (['/a/b/1.jpg'], ['1']),
    ],
)
def test_ids_are_names_below_the_folder_that_all_have_in_common(files, ids):
    assert picture_ids(files) == dict(zip(ids, files, strict=True))


def test_copies_are_found_by_their_content(pictures):
    copy, other = pictures / 'copy.jpg', pictures / 'other.jpg'
    copy.write_text('FIRST.JPG')
    other.write_text('OTHER.JPG')  # as long
    some = [str(other), str(copy), str(pictures / 'gone.jpg')]
    known = [str(pictures / name) for name in ('gone.jpg', 'first.jpg', 'second.png')]
    assert list(same_content(some, known)) == [(str(copy), known[1])]
